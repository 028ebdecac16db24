"""What a method decides: which tokens stay. Plain data, so it can be printed, saved and compared."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenPlan:
    """The tokens kept of each sample, and how they are built where a method merges.

    kept: [B, K] int32, ascending positions, padded with -1.
    merge: [B, M, N] float or None. None: the output tokens are the kept ones, unchanged. Otherwise
        output token m of a sample is sum_n merge[m, n] * token n, in the order of the rows.
    lengths: [B] int64 or None, output tokens of each sample; None: every row of `kept` (or of
        `merge`) is full, which spares reading the lengths back from a GPU.
    """

    kept: Tensor
    merge: Tensor | None = None
    lengths: Tensor | None = None

    @property
    def width(self) -> int:
        """Output tokens of the longest sample."""
        return (self.kept if self.merge is None else self.merge).shape[1]

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
