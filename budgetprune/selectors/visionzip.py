"""VisionZip: the tokens that CLS attends to most, and averages of the rest."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..checked import number
from ..ops import select_topk
from ..plan import MergeLists, TokenPlan
from .base import Selector, TokenView, ragged, settle

HEAD = 64  # width of a head in CLIP's towers, which flops() is not told


@dataclass(frozen=True)
class VisionZip(Selector):
    """D dominant tokens by CLS attention, then M contextual ones: x_t + mean of the x_j that join target t.

    Yang et al., CVPR 2025, "VisionZip"; the rule is the authors' code. Of the R tokens that are not dominant every
    s-th is a target, s = R // M, the first M of them; each other joins the target whose key is nearest by cosine, keys
    being averaged over heads. A target that nobody joins stays as it is. Attention and keys come from the last block
    but one. Dominant tokens go first, in raster order, then the contextual ones in raster order.

    Departures: `keep` is split by dominant_share, round(keep * 54 / 64) : the rest as published for 64, 128 and 192
    tokens (54 : 10, 108 : 20, 162 : 30), where 54 counts CLS; CLS is not among the tokens here, a patch has its place.
    Without a contextual token (keep of 1 or 2) the rest is dropped; keep = N changes nothing. A key of zeros has cosine
    0 with all (published: NaN). In a tower without CLS attention is the mean over all rows. Where a family prunes
    behind its projector, projected tokens are merged.
    """

    name = "visionzip"
    needs: ClassVar = frozenset({"attention", "keys"})
    tower_layer: ClassVar[int] = -2
    merges: ClassVar[bool] = True

    dominant_share: float = 54 / 64

    def __post_init__(self):
        settle(self, dominant_share=number("dominant_share", self.dominant_share, 0, 1))

    def _dominant(self, keep: int, tokens: int) -> int:
        return keep if keep >= tokens else int(keep * self.dominant_share + 0.5)

    def plan(self, view: TokenView, keep) -> TokenPlan:
        keep, a = self.require(keep), view.need("attention")
        keys = view.need("keys").float().mean(1)
        n = a.shape[1]
        dominant = [self._dominant(k, n) for k in keep]
        best = select_topk(a, dominant)
        if dominant == keep:
            return ragged(best, keep)
        is_dominant = TokenPlan(best).mask(n)
        d, total = (torch.tensor(counts, device=a.device)[:, None] for counts in (dominant, keep))
        contextual, rest = total - d, n - d
        place = (~is_dominant).cumsum(1) - 1  # among the rest
        step = (rest // contextual.clamp_min(1)).clamp_min(1)
        is_target = ~is_dominant & (place % step == 0) & (place // step < contextual)
        joined = nearest_target(keys, is_target, max(k - m for k, m in zip(keep, dominant)))
        joins = ~is_dominant & ~is_target & (contextual > 0)
        sizes = torch.zeros_like(a, dtype=torch.long).scatter_add(1, joined, joins.long())
        width = max(keep)
        member = torch.where(is_dominant, is_dominant.cumsum(1) - 1, d + torch.where(is_target, place // step, joined))
        member = member.masked_fill(~(is_dominant | is_target | joins), width)
        weight = torch.where(joins, 1 / sizes.gather(1, joined), 1.0)
        positions = torch.arange(n, device=a.device).masked_fill(~(is_dominant | is_target), n)
        kept = positions.sort(dim=1).values[:, :width]
        lengths = None if len(set(keep)) == 1 else total[:, 0]
        return TokenPlan(kept.masked_fill(kept == n, -1).int(), MergeLists.partition(member, weight, width), lengths)

    def flops(self, tokens, width, keep):
        dominant = self._dominant(keep, tokens)
        targets = keep - dominant
        cosines = (tokens - keep) * targets * min(HEAD, width)
        return 2 * (tokens * width + cosines + (tokens * width if targets else 0))  # the CLS row, keys, the merge


def nearest_target(keys: Tensor, is_target: Tensor, most: int) -> Tensor:
    """[B, N] which of a sample's targets, counted in raster order, has the key of largest cosine; `most` is the
    largest number of targets of any sample. The earlier of equal ones; 0 where a sample has none."""
    unit = torch.nn.functional.normalize(keys, dim=-1)
    places = is_target.int().sort(dim=1, descending=True, stable=True).indices[:, :most]
    targets = unit.gather(1, places[..., None].expand(-1, -1, unit.shape[-1]))
    exists = torch.arange(most, device=keys.device) < is_target.sum(1, keepdim=True)
    return (unit @ targets.transpose(1, 2)).masked_fill(~exists[:, None], -torch.inf).argmax(2)
