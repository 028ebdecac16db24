"""VisPruner: half the tokens by CLS attention, the rest what is left when near duplicates are gone."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..checked import integer, number
from ..ops import cosine_similarity_matrix
from .base import Selector, TokenView, ragged, settle


@dataclass(frozen=True)
class VisPruner(Selector):
    """int(K / 2) important tokens by CLS attention; of the others, 8 a round go until the budget is met.

    Zhang et al., ICCV 2025, "VisPruner"; the rule is the authors' code. The others stand in falling attention. Each
    round every second of them (the 1st, the 3rd, ...) is compared with those between: s = its largest cosine. The 8 of
    largest s are removed; the next round sees the compared that are left, in falling s, then the rest. Attention comes
    from the last block but one; what stays keeps its order.

    Departures: a round removes half of the others at most, so that any budget can be met; at 576 tokens and 64, 128
    or 192 kept no round wants more. Equal values: the earlier token ranks first (published: any). In a tower without
    CLS attention is the mean over all rows. Where a family prunes behind its projector, projected tokens are compared.
    """

    name = "vispruner"
    needs: ClassVar = frozenset({"attention"})
    tower_layer: ClassVar[int] = -2

    important_share: float = 0.5
    per_round: int = 8

    def __post_init__(self):
        settle(self, important_share=number("important_share", self.important_share, 0, 1),
               per_round=integer("per_round", self.per_round, 1))

    def plan(self, view: TokenView, keep):
        keep, a = self.require(keep), view.need("attention")
        b, n = a.shape
        important = [int(k * self.important_share) for k in keep]
        first = torch.tensor(important, device=a.device)[:, None]
        order = a.argsort(dim=1, descending=True, stable=True)
        others = order.gather(1, (torch.arange(n, device=a.device) + first).clamp_max(n - 1))
        diverse = [k - i for k, i in zip(keep, important)]
        others = without_duplicates(view.tokens, others, [n - i for i in important], diverse, self.per_round)
        column = torch.arange(max(keep), device=a.device)
        behind = others.gather(1, (column - first).clamp(0, others.shape[1] - 1))
        total = torch.tensor(keep, device=a.device)[:, None]
        kept = torch.where(column < first, order[:, : max(keep)], behind).masked_fill(column >= total, n)
        kept = kept.sort(dim=1).values
        return ragged(kept.masked_fill(kept == n, -1).int(), keep)

    def flops(self, tokens, width, keep):
        return 2 * (tokens * width + tokens * tokens * width)  # the CLS row, the cosines


def removals(count: int, left: int, per_round: int) -> list[int]:
    """How many of `count` tokens go in each round until `left` are left; no round where none is wanted."""
    gone = []
    while count > left > 0:
        gone.append(min(per_round, count - left, count // 2))
        count -= gone[-1]
    return gone


def without_duplicates(tokens: Tensor, others: Tensor, counts: list[int], left: list[int], per_round: int) -> Tensor:
    """[B, max(left)] positions: what the rounds leave of the first counts[b] positions in others [B, N]."""
    rounds = [removals(count, end, per_round) for count, end in zip(counts, left)]
    if not any(rounds):
        return others
    cosine = cosine_similarity_matrix(tokens)
    sample = torch.arange(len(others), device=others.device)[:, None, None]
    sizes = [list(counts)]
    for i in range(max(map(len, rounds))):
        sizes.append([size - (gone[i] if i < len(gone) else 0) for size, gone in zip(sizes[-1], rounds)])
    on_device = torch.tensor(sizes, device=others.device)[..., None]
    for now, then, size, following in zip(sizes, sizes[1:], on_device, on_device[1:]):
        compared, between = others[:, : max(now) : 2], others[:, 1 : max(now) : 2]
        rank = torch.arange(compared.shape[1], device=others.device)
        in_compared, in_between = rank < (size + 1) // 2, rank[: between.shape[1]] < size // 2
        closest = cosine[sample, compared[:, :, None], between[:, None]].masked_fill(~in_between[:, None], -torch.inf)
        closest = closest.amax(2).masked_fill(~in_compared, -torch.inf)
        compared = compared.gather(1, closest.argsort(dim=1, descending=True, stable=True))
        stays = torch.cat([in_compared & (rank >= size - following), in_between], dim=1)
        front = stays.int().sort(dim=1, descending=True, stable=True).indices[:, : max(then)]
        others = torch.cat([compared, between], dim=1).gather(1, front)
    return others
