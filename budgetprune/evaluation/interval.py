"""95 % intervals around a mean score."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

Z = 1.959963984540054


def interval(scores: Sequence[bool | float]) -> tuple[float, float]:
    """Of right and wrong answers Wilson's interval; of scores in between a mean's."""
    if all(isinstance(score, bool) for score in scores):
        return wilson_interval(sum(scores), len(scores))
    return mean_interval(scores)


def wilson_interval(hits: float, n: int) -> tuple[float, float]:
    """95 % interval of a proportion, valid near 0 and 1 too. Source: Wilson, JASA 1927.

    ValueError: n < 1 or hits outside [0, n].
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if not 0 <= hits <= n:
        raise ValueError(f"hits must be in [0, n={n}], got {hits}")
    share, spread = hits / n, Z * Z / n
    centre = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    # Exact at the ends, where rounding could leave the interval just short of the proportion itself.
    return (0.0 if hits == 0 else max(0.0, centre - half)), (1.0 if hits == n else min(1.0, centre + half))


def mean_interval(scores: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of scores in [0, 1], by the normal approximation with their own standard deviation.

    Where all are the same that would be no interval at all: then Wilson's, which is wide enough for any scores with
    this mean, because none spread more than those of 0 and 1.
    """
    n = len(scores)
    if n < 2 or min(scores) == max(scores):
        return wilson_interval(sum(scores), n)
    mean, half = fmean(scores), Z * stdev(scores) / math.sqrt(n)
    return max(0.0, mean - half), min(1.0, mean + half)
