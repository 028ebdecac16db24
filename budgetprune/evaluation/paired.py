"""Two lists of scores of the same questions: their difference, an interval, and a test. Images are what is drawn."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from .interval import effective, wilson_interval

RESAMPLES = 10_000
_CHUNK = 2**22  # numbers drawn at a time


@dataclass(frozen=True)
class Paired:
    """b against a. difference: mean score of b less that of a, ci95 around it. only_a, only_b: questions that a, or b,
    answered better. p: sign-flip test of no difference, whole images flipped. mcnemar: McNemar's exact p of right and
    wrong answers, which takes questions for independent; None where scores lie in between. images: different ones."""

    n: int
    images: int
    a: float
    b: float
    difference: float
    ci95: tuple[float, float]
    only_a: int
    only_b: int
    p: float
    mcnemar: float | None


def paired(a: Sequence[bool | float], b: Sequence[bool | float], images: Sequence | None = None, *,
           seed: int = 0) -> Paired:
    """a, b: scores in [0, 1] of the same questions, in the same order. images: which each is about, None: one each.

    Right and wrong answers (bool) have Newcombe's interval at the effective number of questions and an exact test.
    Scores in between have a bootstrap over images and a test by random flips, both of RESAMPLES draws from `seed`.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"a and b must be scores of the same questions, got {len(a)} and {len(b)}")
    whole = all(isinstance(score, bool) for score in (*a, *b))
    differences = [float(y) - float(x) for x, y in zip(a, b, strict=True)]
    images = range(len(a)) if images is None else images
    _, place = np.unique(np.asarray(images, dtype=str), return_inverse=True)
    sums = np.bincount(place, differences)
    better, worse = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    difference, mcnemar = fmean(differences), None
    if whole:
        from scipy.stats import binomtest

        ci95 = newcombe(a, b, effective(differences, images))
        p = flip_exactly(sums.round().astype(int))
        mcnemar = float(binomtest(worse, better + worse).pvalue) if better + worse else 1.0
    else:
        rng = np.random.default_rng(seed)
        ci95, p = bootstrap(sums, np.bincount(place), rng), flip_at_random(sums, rng)
    ci95 = min(ci95[0], difference), max(ci95[1], difference)  # a sum and a mean may differ in their last bit
    return Paired(len(a), len(sums), fmean(map(float, a)), fmean(map(float, b)), difference, ci95, worse, better, p,
                  mcnemar)


def newcombe(a: Sequence[bool], b: Sequence[bool], n: float) -> tuple[float, float]:
    """95 % interval of the difference of two paired proportions, b less a, of n independent questions.

    Both proportions' Wilson intervals, squared and added, with their correlation. n may be less than the questions
    there are, see `effective`. Source: Newcombe, Statistics in Medicine 1998 (17), 2635-2650, method 10.
    """
    share = n / len(a)
    both, only_b = sum(x and y for x, y in zip(a, b)) * share, sum(y and not x for x, y in zip(a, b)) * share
    only_a, neither = sum(x and not y for x, y in zip(a, b)) * share, sum(not (x or y) for x, y in zip(a, b)) * share
    high, low = min(1.0, (both + only_b) / n), min(1.0, (both + only_a) / n)  # of b, of a
    correlation, product = 0.0, (both + only_b) * (both + only_a) * (only_a + neither) * (only_b + neither)
    if product > 0:
        excess = both * neither - only_b * only_a
        correlation = (max(excess - n / 2, 0.0) if excess > 0 else excess) / math.sqrt(product)
    (l1, u1), (l2, u2) = wilson_interval(high * n, n), wilson_interval(low * n, n)

    def width(x, y):
        return math.sqrt(max(0.0, x * x - 2 * correlation * x * y + y * y))

    return high - low - width(high - l1, u2 - low), high - low + width(u1 - high, low - l2)


def flip_exactly(sums) -> float:
    """Two-sided p: how often the total is at least as far from 0 when each image's sum gets a sign at random, over all
    signs. sums: int [G]. With one question an image it is McNemar's exact test."""
    far, sizes = abs(int(sums.sum())), np.abs(sums[sums != 0])
    total = int(sizes.sum())
    chance = np.zeros(2 * total + 1)  # of each total, from -total
    chance[total] = 1.0
    for size in sizes:
        chance = (np.roll(chance, size) + np.roll(chance, -size)) / 2  # what rolls over is 0: no total is that large
    return min(1.0, float(chance[np.abs(np.arange(-total, total + 1)) >= far].sum()))


def flip_at_random(sums, rng) -> float:
    """The same with RESAMPLES random signs and those that are there: never 0."""
    far = abs(sums.sum()) - 1e-9
    hits = sum(int((np.abs(signs @ sums) >= far).sum()) for signs in (
        rng.choice(np.array([-1.0, 1.0]), (rows, len(sums))) for rows in _chunks(len(sums))))
    return (1 + hits) / (1 + RESAMPLES)


def bootstrap(sums, sizes, rng) -> tuple[float, float]:
    """95 % percentile interval of the mean, images drawn with all of their questions. sums, sizes: [G] of each image.

    Where nothing differs: what G images that show no difference leave possible, 1 - 0.025^(1/G) of the questions by as
    much as 1."""
    images = len(sums)
    if not np.any(sums):
        bound = 1 - 0.025 ** (1 / images)
        return -bound, bound
    means = []
    for rows in _chunks(images):
        drawn = rng.integers(0, images, (rows, images))
        means.append(sums[drawn].sum(1) / sizes[drawn].sum(1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def holm(p: Sequence[float]) -> list[float]:
    """p adjusted for as many tests, in their order. Source: Holm, Scandinavian Journal of Statistics 1979."""
    adjusted, most = [0.0] * len(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        most = max(most, min(1.0, (len(p) - rank) * p[place]))
        adjusted[place] = most
    return adjusted


def _chunks(width):
    """Numbers of rows that together are RESAMPLES, none of which fills the memory."""
    most = max(1, _CHUNK // width)
    return [min(most, RESAMPLES - start) for start in range(0, RESAMPLES, most)]
