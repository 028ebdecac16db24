"""PruMerge: keep the outliers of CLS attention, merge their neighbours into them."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..checked import integer, one_of
from ..plan import MergeLists, TokenPlan
from .base import Selector, TokenView, settle


def outliers(a: Tensor) -> Tensor:
    """[B] int64, tokens of each row above Q3 + 1.5 (Q3 - Q1), at least one."""
    q1, q3 = torch.quantile(a.double(), torch.tensor([0.25, 0.75], dtype=torch.double, device=a.device), dim=1)
    return (a > (q3 + 1.5 * (q3 - q1))[:, None]).sum(1).clamp_min(1)


def nearest_keys(keys: Tensor, rows: Tensor, neighbours: int) -> Tensor:
    """[B, M, J]: for each token rows[m] the other tokens with the nearest keys, J = min(neighbours, N - 1) of them."""
    unit = torch.nn.functional.normalize(keys.float(), dim=-1)
    chosen = unit.gather(1, rows[..., None].expand(-1, -1, unit.shape[-1]))
    cosine = (chosen @ unit.transpose(1, 2)).scatter(2, rows[..., None], -torch.inf)
    return cosine.topk(min(neighbours, keys.shape[1] - 1), dim=2).indices


def without_extra(keep: list[int], tokens: int) -> list[int]:
    """Tokens of an exact budget beside the extra one, which a budget of 1 or of N has no room for."""
    return [k if k >= tokens else max(k - 1, 1) for k in keep]


@dataclass(frozen=True)
class PruMerge(Selector):
    """a = softmax(q_cls k / sqrt(C)), all heads as one; the outliers of a stay, and take their neighbours in.

    Shang et al., 2024, "LLaVA-PruMerge"; the rule is the authors' code at batch 1. Kept token i becomes
    x_i + sum of a_j x_j over the 32 tokens j whose keys are nearest to key i by cosine (kept or not, not
    normalised); one more token, sum of a_j x_j over the dropped, goes last. q and k come from the tower's
    last block. `keep=None`: the count is the number of outliers a > Q3 + 1.5 IQR, plus the extra token.
    An int: exactly that many tokens reach the language model, the extra one included (keep = 1 has none).

    Departures: outliers are counted per image, not over the flattened batch; without any outlier one
    token stays; where nothing is dropped there is no extra token (published: one of zeros); the tower's last
    block is found, not block 23; in a tower without CLS a is the mean over all rows. Where a family prunes behind its
    projector, projected tokens are merged.
    order: "attention", as published: kept tokens in falling a; "raster" keeps their order in the image.
    """

    name = "prumerge"
    needs: ClassVar = frozenset({"attention", "keys"})
    one_head: ClassVar[bool] = True
    merges: ClassVar[bool] = True
    adaptive_count: ClassVar = True

    neighbours: int = 32
    order: str = "attention"

    def __post_init__(self):
        one_of("order", self.order, ("attention", "raster"))
        settle(self, neighbours=integer("neighbours", self.neighbours))

    def chosen(self, a: Tensor, keep: list[int] | None) -> tuple[Tensor, Tensor]:
        """(order [B, N] of all tokens with the kept ones first, how many are kept [B], the extra one not counted)."""
        count = outliers(a) if keep is None else torch.tensor(without_extra(keep, a.shape[1]), device=a.device)
        return a.argsort(dim=1, descending=True, stable=True), count

    def plan(self, view: TokenView, keep) -> TokenPlan:
        a, keys = view.need("attention"), view.need("keys").transpose(1, 2).flatten(2)
        b, n = a.shape
        if keep is not None and min(keep) >= n:
            return TokenPlan(torch.arange(n, dtype=torch.int32, device=a.device).expand(b, n))
        order, count = self.chosen(a, keep)
        # An exact budget is known here, so nothing is read back from a GPU, and shapes do not depend on data.
        m = int(count.max()) if keep is None else max(without_extra(keep, n))
        filled = torch.arange(m, device=a.device) < count[:, None]
        rows = order[:, :m].masked_fill(~filled, n)
        ascending = rows.sort(dim=1).values
        if self.order == "raster":
            rows = ascending
        kept = ascending.masked_fill(ascending == n, -1).int()
        # A kept token's list: itself, and its neighbours. With a budget for all of them a sample stays as it is.
        whole = torch.zeros_like(filled[:, :1]) if keep is None else (count == n)[:, None]
        rows = torch.where(whole, ascending, rows).masked_fill(~filled, 0)
        nearest = nearest_keys(keys, rows, self.neighbours)
        merges = filled & ~whole
        own = rows.masked_fill(~filled, -1)[..., None]
        index = torch.cat([own, nearest.masked_fill(~merges[..., None], -1)], dim=2).flatten(1)
        weight = a.gather(1, index.clamp_min(0)).unflatten(1, (m, -1))
        weight = torch.cat([torch.ones_like(weight[..., :1]), weight[..., 1:]], dim=2).flatten(1)
        # The extra token follows the kept ones of its own sample; its list is the dropped. A full sample has none.
        dropped = ~TokenPlan(kept).mask(n)
        lengths = count + dropped.any(1) if keep is None else torch.tensor(keep, device=a.device)
        rest = torch.arange(n, device=a.device).masked_fill(~dropped, -1)
        each = index.shape[1] // m
        start = torch.arange(m + 2, device=a.device)
        offsets = torch.where(start <= count[:, None], start * each, m * each + n)
        most = int(lengths.max()) if keep is None else max(keep)
        lists = MergeLists(offsets[:, : most + 1].int(), torch.cat([index, rest], dim=1).int(),
                           torch.cat([weight, a], dim=1))
        return TokenPlan(kept, lists, None if keep is not None and len(set(keep)) == 1 else lengths)

    def flops(self, tokens, width, keep):
        merged = keep * (min(self.neighbours, tokens - 1) + 1) + tokens  # entries of the kept and of the extra token
        return 2 * width * (tokens + tokens * keep + merged)  # the CLS row, key cosines of every kept token, the merge
