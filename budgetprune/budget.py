"""How many tokens to keep. The only place where a ratio becomes a count."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

from .checked import shown


@dataclass(frozen=True)
class TokenBudget:
    """A token budget: one amount for every sample, or one per sample.

    An int is an exact count; a float is the fraction kept. Counts follow the experiment plan: a
    budget of 0 keeps one token, a budget of N or more keeps all.

    Raises:
        TypeError: `keep` is neither an int, a float nor a sequence of them.
        ValueError: a negative count, a ratio outside [0, 1], or an empty sequence.
    """

    keep: int | float | tuple[int | float, ...]

    def __post_init__(self):
        keep = self.keep.tolist() if hasattr(self.keep, "tolist") else self.keep
        if isinstance(keep, Sequence) and not isinstance(keep, str):
            keep = tuple(keep)
            if not keep:
                raise ValueError("keep must hold at least one amount, got an empty sequence")
        for amount in keep if isinstance(keep, tuple) else (keep,):
            _check(amount)
        object.__setattr__(self, "keep", keep)

    @staticmethod
    def from_ratio(tokens: int, keep_ratio: float) -> int:
        """The count of a ratio: max(1, round(N * keep_ratio)), halves to the even count."""
        return max(1, round(tokens * keep_ratio))

    def count(self, tokens: int, sample: int = 0) -> int:
        """Tokens kept of `tokens` in sample number `sample`."""
        amount = self.keep[sample] if isinstance(self.keep, tuple) else self.keep
        wanted = int(amount) if isinstance(amount, Integral) else self.from_ratio(tokens, amount)
        return min(tokens, max(1, wanted))

    def counts(self, tokens: Sequence[int], each: str = "sample") -> list[int]:
        """The count of each sample, given how many tokens each has. each: what the caller's samples are, for errors."""
        if isinstance(self.keep, tuple) and len(self.keep) != len(tokens):
            raise ValueError(f"keep must have {len(tokens)} entries, one per {each}, got {len(self.keep)}")
        return [self.count(n, sample) for sample, n in enumerate(tokens)]


def count_range(name: str, counts) -> tuple[int, int]:
    """A pair (K_min, K_max), for counts that are drawn. TypeError: no pair of ints. ValueError: no range of counts."""
    wanted = f"{name} must be two ints (K_min, K_max) with 1 <= K_min <= K_max, got {shown(counts)}"
    if not isinstance(counts, (tuple, list)) or any(isinstance(k, bool) or not isinstance(k, Integral) for k in counts):
        raise TypeError(wanted)
    if len(counts) != 2 or not 1 <= counts[0] <= counts[1]:
        raise ValueError(wanted)
    return int(counts[0]), int(counts[1])


def _check(amount):
    if isinstance(amount, bool) or not isinstance(amount, Real):
        raise TypeError(f"keep must be an int (a count) or a float (the fraction kept), got {type(amount).__name__}")
    if not isinstance(amount, Integral) and not 0.0 <= amount <= 1.0:
        raise ValueError(f"keep as a fraction must be in [0, 1], got {amount}; a count is an int")
    if amount < 0:
        raise ValueError(f"keep must be at least 0, got {amount}")
