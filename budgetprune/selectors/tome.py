"""ToMe: tokens whose keys are alike become one, pair by pair, until the budget is met."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..checked import integer
from ..ops import merge_tokens
from ..plan import MergeLists, TokenPlan
from .base import Selector, TokenView, settle

HEAD = 64  # width of a head in CLIP's towers, which flops() is not told


@dataclass(frozen=True)
class ToMe(Selector):
    """Bipartite soft matching, round by round: the r even tokens with the nearest odd one (cosine of keys) join it.

    Bolya et al., ICLR 2023, "Token Merging"; a round is the authors' bipartite_soft_matching: keys averaged over heads,
    tokens split by turns, r of the first half merged by falling cosine, then the unmerged in their order followed by
    the other half. A token that comes out is the mean of all it holds (published: the average weighted by size, the
    same). Output tokens stand in the order of their first member.

    Departures, which make this a floor for merging and not the published method: published, a round stands in every
    block of the tower, with the keys and features of that block; here all rounds run after the tower, over the keys
    of its last block, where a merged token has the mean key of its members, and the features are merged once. r is
    ceil((N - K) / rounds), the last round merging what is left to exactly K (published: a constant that leaves what it
    leaves); it is half the tokens at most, as published, and then more rounds follow. No token for CLS takes part.
    Equal cosines: the earlier token first. Where a family prunes behind its projector, projected tokens are merged.
    rounds: 24, the blocks of CLIP's ViT-L.
    """

    name = "tome"
    needs: ClassVar = frozenset({"keys"})
    merges: ClassVar[bool] = True

    rounds: int = 24

    def __post_init__(self):
        settle(self, rounds=integer("rounds", self.rounds, 1))

    def plan(self, view: TokenView, keep) -> TokenPlan:
        keep, keys = self.require(keep), view.need("keys").float().mean(1)
        b, n, _ = keys.shape
        everyone = torch.arange(n, device=keys.device).expand(b, n)
        if min(keep) >= n:
            return TokenPlan(everyone.int())
        merged = [merges(n, k, self.rounds) for k in keep]
        counts = [[n] * b]
        for i in range(max(map(len, merged))):
            counts.append([count - (r[i] if i < len(r) else 0) for count, r in zip(counts[-1], merged)])
        on_device = torch.tensor(counts, device=keys.device)[..., None]
        place, current = everyone, keys
        for now, count, following in zip(counts[1:], on_device, on_device[1:]):
            place = matched(current, count, count - following).gather(1, place)
            # Sums are as good as means, cosines know no length; from the first keys, so that every run adds alike.
            current = merge_tokens(keys, *MergeLists.partition(place, torch.ones_like(keys[..., 0]), max(now)))
        return in_order(place, keep)

    def flops(self, tokens, width, keep):
        left, cosines, sums = tokens, 0, 0
        for r in merges(tokens, keep, self.rounds):
            cosines += ((left + 1) // 2) * (left // 2)
            sums += tokens
            left -= r
        return 2 * ((cosines + sums) * min(HEAD, width) + tokens * width * (keep < tokens))


def merges(tokens: int, keep: int, rounds: int) -> list[int]:
    """How many tokens each round takes away until `keep` are left."""
    r, taken = -(-(tokens - keep) // rounds), []
    while tokens > keep:
        taken.append(min(r, tokens - keep, tokens // 2))
        tokens -= taken[-1]
    return taken


def matched(keys: Tensor, count: Tensor, r: Tensor) -> Tensor:
    """[B, T] where each of the first `count` [B, 1] tokens of `keys` [B, T, D] stands when `r` [B, 1] are merged."""
    unit = normalize(keys, dim=-1)
    even, odd = unit[:, ::2], unit[:, 1::2]
    turn = torch.arange(even.shape[1], device=keys.device).expand(even.shape[:2])
    exists, partners = turn < (count + 1) // 2, turn[:, : odd.shape[1]] < count // 2
    cosine, nearest = (even @ odd.transpose(1, 2)).masked_fill(~partners[:, None], -torch.inf).max(2)
    falling = cosine.masked_fill(~exists, -torch.inf).argsort(dim=1, descending=True, stable=True)
    joins = torch.empty_like(falling).scatter(1, falling, turn) < r
    stays = exists & ~joins
    unmerged = stays.sum(1, keepdim=True)
    to = torch.where(stays, stays.cumsum(1) - 1, unmerged + nearest)
    places = torch.zeros_like(turn[:, :1]).repeat(1, keys.shape[1])
    places[:, ::2], places[:, 1::2] = to, unmerged + turn[:, : odd.shape[1]]
    return places


def in_order(place: Tensor, keep: list[int]) -> TokenPlan:
    """The plan in which token n is averaged into cluster place[b, n]; clusters ordered by their first member."""
    n, width = place.shape[1], max(keep)
    positions = torch.arange(n, device=place.device).expand_as(place)
    first = torch.full_like(place[:, :width], n).scatter_reduce(1, place, positions, "amin")
    kept, order = first.sort(dim=1, stable=True)
    member = order.argsort(dim=1).gather(1, place)
    sizes = torch.zeros_like(first).scatter_add(1, member, torch.ones_like(member))
    lists = MergeLists.partition(member, 1 / sizes.gather(1, member), width)
    lengths = None if len(set(keep)) == 1 else torch.tensor(keep, device=place.device)
    return TokenPlan(kept.masked_fill(kept == n, -1).int(), lists, lengths)
