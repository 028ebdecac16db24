"""DART: a few pivots, and the tokens that repeat them least."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..checked import integer
from ..ops import select_topk
from ..plan import TokenPlan
from .base import Selector, TokenView, ragged, settle


@dataclass(frozen=True)
class DART(Selector):
    """P pivots of the largest |key|_1; then each takes, in turn, the tokens x_j of least cos(x_pivot, x_j) left.

    Wen et al., 2025, "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More". The
    rule is that of the authors' code for LLaVA: before decoder layer `layer`, by the keys of the layer before it, all
    heads joined, and by hidden states that have passed the decoder's last norm; 4 pivots of the image, which stay, and
    4 of the text behind it, which only choose. Kept tokens keep their original positions.

    Departures: exactly K stay, the image's pivots among them, the K - P others divided evenly over all pivots, the
    first taking one more where that does not come out (published: ceil(K / 8) for each, so that more than K stay, and
    in LLaVA floor(K / 8)). Pivots take turns by falling norm, those of the image first (published: in the order of a
    Python set). With fewer than P tokens to keep, all are the image's pivots. The published code takes one sample at a
    time, its image at a fixed place. Norms are of rotated keys, as published, so they depend on where a prompt begins:
    forward() with padding on the left needs position_ids for rows to choose as they would alone; generate() makes them.
    """

    name = "dart"
    needs: ClassVar = frozenset({"keys", "text_states", "text_keys"})
    place: ClassVar[str] = "llm"
    normed: ClassVar[bool] = True
    positions: ClassVar[str] = "original"

    layer: int = 2
    pivots: int = 4
    text_pivots: int = 4

    def __post_init__(self):
        settle(self, layer=integer("layer", self.layer, 1), pivots=integer("pivots", self.pivots, 1),
               text_pivots=integer("text_pivots", self.text_pivots))

    def plan(self, view: TokenView, keep) -> TokenPlan:
        keep, (b, n, _) = self.require(keep), view.tokens.shape
        counts = torch.tensor(keep, device=view.tokens.device)[:, None]
        exists = view.tokens.new_ones(b, n, dtype=torch.bool) if view.valid is None else view.valid
        unit, texts = normalize(view.tokens.float(), dim=-1), normalize(view.need("text_states").float(), dim=-1)
        first, is_first = _largest(view.need("keys"), exists, self.pivots, counts)
        words, is_word = _largest(view.need("text_keys"), view.text_valid, self.text_pivots, counts)
        judges = torch.cat([_at(unit, first), _at(texts, words)], dim=1)
        is_judge = torch.cat([is_first, is_word], dim=1)

        rest, turn = counts - is_first.sum(1, keepdim=True), is_judge.long().cumsum(1) - 1
        count = is_judge.sum(1, keepdim=True).clamp_min(1)
        shares = (rest // count + (turn < rest % count)).masked_fill(~is_judge, 0)
        most = max((-(-k // min(self.pivots, k)) for k in keep if k), default=1)  # no share is larger
        unlike = -(judges @ unit.transpose(1, 2))
        kept = TokenPlan(first.masked_fill(~is_first, -1)).mask(n)
        for share, each in zip(shares.T.int().contiguous(), unlike.unbind(1)):
            best = select_topk(each.masked_fill(kept | ~exists, -torch.inf), share, max_keep=most)
            kept = kept | TokenPlan(best).mask(n)
        positions = torch.arange(n, device=kept.device).masked_fill(~kept, n).sort(dim=1).values[:, : max(keep)]
        return ragged(positions.masked_fill(positions == n, -1).int(), keep)

    def flops(self, tokens, width, keep):
        """With as many pivots of the text as are asked for."""
        return 2 * (min(self.pivots, keep) + self.text_pivots) * tokens * width  # cosines; the keys' norms only add


def _largest(keys: Tensor, exists: Tensor, most: int, counts: Tensor) -> tuple[Tensor, Tensor]:
    """The `most` columns of the largest |key|_1 by falling norm [B, P], no more than counts [B, 1]; which are there."""
    norm = keys.float().abs().sum((1, 3)).masked_fill(~exists, -1)
    order = norm.argsort(dim=1, descending=True, stable=True)[:, :most]
    place = torch.arange(order.shape[1], device=order.device)
    return order, exists.gather(1, order) & (place < counts)


def _at(x: Tensor, rows: Tensor) -> Tensor:
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[2]))
