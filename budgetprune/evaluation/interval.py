"""95 % intervals around a mean score. Questions about one image are not independent: they are taken together."""

import math
from collections.abc import Sequence
from statistics import fmean

Z = 1.959963984540054


def interval(scores: Sequence[bool | float], images: Sequence | None = None) -> tuple[float, float]:
    """Of right and wrong answers Wilson's interval; of scores in between a mean's.

    images: which image each score is about; None: each about one of its own. Where images have several questions,
    Wilson's interval is that of `effective` many, and a mean's has the spread of the images' sums.
    """
    if all(isinstance(score, bool) for score in scores):
        n = effective(scores, images)
        return wilson_interval(sum(scores) / len(scores) * n, n)
    return mean_interval(scores, images)


def wilson_interval(hits: float, n: float) -> tuple[float, float]:
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


def mean_interval(scores: Sequence[float], images: Sequence | None = None) -> tuple[float, float]:
    """95 % interval of the mean of scores in [0, 1], by the normal approximation with their own standard error.

    Where all are the same that would be no interval at all: then Wilson's, which is wide enough for any scores with
    this mean, because none spread more than those of 0 and 1.
    """
    if min(scores) == max(scores):
        n = effective(scores, images)
        return wilson_interval(scores[0] * n, n)
    mean, half = fmean(scores), Z * standard_error(scores, images)
    return max(0.0, mean - half), min(1.0, mean + half)


def standard_error(values: Sequence[float], images: Sequence | None = None) -> float:
    """Of the mean, images being drawn and all their questions with them; never below that of independent questions,
    since a few images may seem to differ less than chance allows. Values that are all the same have none: 0."""
    n, mean = len(values), fmean(values)
    if n < 2 or min(values) == max(values):
        return 0.0
    alone = math.fsum((value - mean) ** 2 for value in values) / (n * (n - 1))
    groups = list(_grouped(values, images).values())
    if len(groups) < 2:
        return math.sqrt(alone)
    sums = math.fsum(math.fsum(value - mean for value in members) ** 2 for members in groups)
    together = sums * len(groups) / (len(groups) - 1) / n**2  # with one question each this is `alone`
    return math.sqrt(max(alone, together))


def effective(values: Sequence[float], images: Sequence | None = None) -> float:
    """How many independent questions say as much as these: n over Kish's design effect, the ratio of the two
    variances of the mean. Values that are all the same do not show it: then an image's questions count as one."""
    n = len(values)
    sizes = [len(members) for members in _grouped(values, images).values()]
    if len(sizes) == n:
        return float(n)
    if min(values) == max(values):
        return n**2 / sum(size**2 for size in sizes)
    alone, together = standard_error(values), standard_error(values, images)
    return max(1.0, n * (alone / together) ** 2)


def _grouped(values, images):
    found = {}
    for value, image in zip(values, range(len(values)) if images is None else images, strict=True):
        found.setdefault(image, []).append(value)
    return found
