"""Budgets of training steps: how many tokens are kept, drawn anew for each step or for each sample."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log
from random import Random

from .checked import flag, integer, one_of, shown

KINDS = ("uniform", "log_uniform", "list")


@dataclass(frozen=True)
class BudgetSampler:
    """Counts K of training, a function of (seed, step, sample) alone: a resumed run and one of several processes draw
    what one unbroken process draws.

    kind: "uniform", every count of [k_min, k_max] alike; "log_uniform", every octave of it alike, so that small budgets
        come as often as large ones; "list", every entry of `counts` alike, so one named twice comes twice as often.
    k_min, k_max: the range, both included; equal: a fixed K. counts: of kind "list".
    per_sample: each sample of a step draws its own count; otherwise a step has one for all.
    seed: of the draws.

    TypeError, ValueError: an argument of another type or outside its range; 1 <= k_min <= k_max.
    """

    kind: str = "uniform"
    k_min: int = 1
    k_max: int = 1
    counts: tuple[int, ...] = ()
    per_sample: bool = False
    seed: int = 0

    def __post_init__(self):
        one_of("kind", self.kind, KINDS)
        flag("per_sample", self.per_sample)
        integer("seed", self.seed)
        if self.kind == "list":
            if isinstance(self.counts, str) or not isinstance(self.counts, Sequence) or not self.counts:
                raise ValueError(f"counts must be a sequence of at least one count, got {shown(self.counts)}")
            counts = tuple(integer(f"counts[{i}]", k, 1) for i, k in enumerate(self.counts))
            for name, value in (("counts", counts), ("k_min", min(counts)), ("k_max", max(counts))):
                object.__setattr__(self, name, value)
            return
        if self.counts:
            raise ValueError(f"counts must be empty where kind is {self.kind!r}, got {shown(self.counts)}")
        integer("k_min", self.k_min, 1)
        integer("k_max", self.k_max, 1)
        if self.k_min > self.k_max:
            raise ValueError(f"k_min and k_max must satisfy 1 <= k_min <= k_max, got {self.k_min} and {self.k_max}")

    def draw(self, step: int, samples: int, first: int = 0) -> list[int]:
        """The counts of `samples` samples of one step. first: number of the first among all samples of the step, which
        several processes share."""
        if not self.per_sample:
            return [self._one(f"{self.seed}/{step}")] * samples
        return [self._one(f"{self.seed}/{step}/{first + sample}") for sample in range(samples)]

    def _one(self, name: str) -> int:
        draw = Random(name)  # from a string: its SHA-512, the same on every machine
        if self.kind == "list":
            return draw.choice(self.counts)
        if self.kind == "uniform":
            return draw.randint(self.k_min, self.k_max)
        # Count k owns [k, k + 1) of the range, so that the smallest is not cut in half.
        low, high = log(self.k_min), log(self.k_max + 1)
        return min(self.k_max, int(exp(low + (high - low) * draw.random())))
