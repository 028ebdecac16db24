"""What a method decides: which tokens stay. Plain data, so it can be printed, saved and compared."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class MergeLists(NamedTuple):
    """Which tokens each output token is made of, as ops.merge_tokens takes it: merge_tokens(tokens, *lists).

    Output token m of a sample is the sum of weight[e] * token index[e] over the entries e from offsets[m] to
    offsets[m + 1] - 1. The lists of a sample may have any lengths; an index of -1 is no token.
    """

    offsets: Tensor  # [B, M + 1] int32, ascending
    index: Tensor  # [B, E] int32, positions or -1
    weight: Tensor  # [B, E] float

    @classmethod
    def partition(cls, member: Tensor, weight: Tensor, width: int) -> "MergeLists":
        """Lists in which no token stands twice: n is in list member[b, n] in [0, width), or in none where that is
        width, with weight[b, n]. Within a list tokens ascend."""
        order = member.sort(dim=1, stable=True).indices
        sizes = member.new_zeros(len(member), width + 1).scatter_add(1, member, torch.ones_like(member))
        offsets = torch.nn.functional.pad(sizes[:, :width].cumsum(1), (1, 0))
        return cls(offsets.int(), order.int(), weight.gather(1, order))

    @property
    def width(self) -> int:
        """M, output tokens of the longest sample."""
        return self.offsets.shape[1] - 1

    def dense(self, tokens: int) -> Tensor:
        """[B, M, N] float, the same as a matrix, to be looked at and compared."""
        at = torch.arange(self.index.shape[1], dtype=torch.int32, device=self.index.device).repeat(len(self.index), 1)
        row = torch.searchsorted(self.offsets.contiguous(), at, right=True) - 1
        used = (row >= 0) & (row < self.width) & (self.index >= 0)
        cell = torch.where(used, row * tokens + self.index, self.width * tokens)
        flat = self.weight.new_zeros(len(self.index), self.width * tokens + 1).scatter_add(1, cell, self.weight)
        return flat[:, :-1].unflatten(1, (self.width, tokens))


@dataclass(frozen=True)
class TokenPlan:
    """The tokens kept of each sample, and how they are built where a method merges.

    kept: [B, K] int32, ascending positions, padded with -1.
    merge: MergeLists or None. None: the output tokens are the kept ones, unchanged. Otherwise they are the sums that
        its lists name, in the order of the lists.
    lengths: [B] int64 or None, output tokens of each sample; None: every row of `kept` (or every list of
        `merge`) is one, which spares reading the lengths back from a GPU.
    """

    kept: Tensor
    merge: MergeLists | None = None
    lengths: Tensor | None = None

    @property
    def width(self) -> int:
        """Output tokens of the longest sample."""
        return self.kept.shape[1] if self.merge is None else self.merge.width

    def counts(self) -> list[int]:
        """Output tokens of each sample."""
        return [self.width] * len(self.kept) if self.lengths is None else self.lengths.tolist()

    def keeps_all(self, tokens: int) -> bool:
        """Whether nothing changes: every one of `tokens` tokens stays, none is merged."""
        return self.merge is None and self.width == tokens and self.counts() == [tokens] * len(self.kept)

    def mask(self, tokens: int) -> Tensor:
        """[B, N] bool, True where a token is kept."""
        padded = self.kept.new_zeros((len(self.kept), tokens + 1), dtype=torch.bool)
        return padded.scatter(1, self.kept.long().remainder(tokens + 1), True)[:, :tokens]
