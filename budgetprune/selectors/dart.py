"""DART: a few pivots, and the tokens that repeat them least."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import normalize

from ..ops import select_topk
from ..plan import TokenPlan
from .base import Selector, TokenView, ragged


@dataclass(frozen=True)
class DART(Selector):
    """P pivots of the largest |key|_1; then each takes, in turn, the tokens x_j of least cos(x_pivot, x_j) left.

    Wen et al., 2025, "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More". The
    rule is the paper's; it was not held against the authors' code. The pivots are always kept.

    Departures: the method stands before the language model and reads the tower: keys of its last block, all heads
    joined, and the features that a family prunes (published: keys and states inside the language model, after its
    second layer). Text tokens are no pivots, because only the language model has both (published: pivots of the image
    and of the text). The K - P other tokens are divided evenly, the first pivots taking one more where that does not
    come out, so that exactly K stay; pivots take turns in falling norm. With fewer than P tokens to keep, all are
    pivots. Kept tokens have their original positions, as those inside the model have.
    """

    name = "dart"
    needs: ClassVar = frozenset({"keys"})
    positions: ClassVar[str] = "original"

    pivots: int = 4

    def __post_init__(self):
        if self.pivots < 1:
            raise ValueError(f"pivots must be at least 1, got {self.pivots}")

    def plan(self, view: TokenView, keep):
        keep, keys = self.require(keep), view.need("keys")
        norm = keys.float().abs().sum((1, 3))
        b, n = norm.shape
        count = torch.tensor([min(self.pivots, k) for k in keep], device=norm.device)[:, None]
        rest = torch.tensor(keep, device=norm.device)[:, None] - count
        pivots = norm.argsort(dim=1, descending=True, stable=True)[:, : min(self.pivots, max(keep))]
        turn = torch.arange(pivots.shape[1], device=norm.device)
        shares = rest // count + (turn < rest % count).long()
        shares = shares.masked_fill(turn >= count, 0)
        unit = normalize(view.tokens.float(), dim=-1)
        chosen = unit.gather(1, pivots[..., None].expand(-1, -1, unit.shape[-1]))
        unlike = -(chosen @ unit.transpose(1, 2))
        most = max(-(-k // min(self.pivots, k)) for k in keep)  # no share is larger
        kept = TokenPlan(pivots.masked_fill(turn >= count, -1)).mask(n)
        for share, each in zip(shares.T.int().contiguous(), unlike.unbind(1)):
            best = select_topk(each.masked_fill(kept, -torch.inf), share, max_keep=most)
            kept = kept | TokenPlan(best).mask(n)
        positions = torch.arange(n, device=norm.device).masked_fill(~kept, n).sort(dim=1).values[:, : max(keep)]
        return ragged(positions.masked_fill(positions == n, -1).int(), keep)

    def flops(self, tokens, width, keep):
        return 2 * min(self.pivots, keep) * tokens * width  # the pivots' cosines; their norms only add
