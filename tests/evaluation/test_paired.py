"""Differences of paired scores: hand answers, other derivations, and how often intervals cover and tests err."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import binomtest

from budgetprune.evaluation.interval import wilson_interval
from budgetprune.evaluation.paired import bootstrap, flip_at_random, flip_exactly, holm, newcombe, paired


def table(both, only_a, only_b, neither):
    """(a, b) of a 2 x 2 table."""
    return ([True] * (both + only_a) + [False] * (only_b + neither),
            [True] * both + [False] * only_a + [True] * only_b + [False] * neither)


def test_newcombes_interval_by_hand():
    # 20 both, 12 only b, 2 only a, 16 neither. b: 32 of 50, a: 22 of 50.
    a, b = table(20, 2, 12, 16)
    (l1, u1), (l2, u2) = wilson_interval(32, 50), wilson_interval(22, 50)
    # 20 * 16 - 12 * 2 = 296, less 25; over the root of 32 * 18 * 22 * 28.
    phi = 271 / (32 * 18 * 22 * 28) ** 0.5
    low = 0.2 - ((0.64 - l1) ** 2 - 2 * phi * (0.64 - l1) * (u2 - 0.44) + (u2 - 0.44) ** 2) ** 0.5
    high = 0.2 + ((u1 - 0.64) ** 2 - 2 * phi * (u1 - 0.64) * (0.44 - l2) + (0.44 - l2) ** 2) ** 0.5
    assert newcombe(a, b, 50) == pytest.approx((low, high))
    result = paired(a, b)
    assert (result.difference, result.ci95) == (pytest.approx(0.2), pytest.approx((low, high)))
    assert (result.only_a, result.only_b, result.n, result.images) == (2, 12, 50, 50)
    assert (result.a, result.b) == (0.44, 0.64)


def test_swapping_the_two_turns_everything_around():
    a, b = table(20, 2, 12, 16)
    one, other = paired(a, b), paired(b, a)
    assert other.ci95 == pytest.approx((-one.ci95[1], -one.ci95[0])) and other.difference == -one.difference
    assert (other.only_a, other.only_b, other.p) == (one.only_b, one.only_a, one.p)


def test_newcombes_interval_stays_within_minus_1_and_1_and_is_never_a_point():
    for cells in ((5, 0, 0, 0), (0, 0, 0, 5), (0, 0, 5, 0), (0, 5, 0, 0), (3, 0, 0, 2), (0, 1, 0, 0), (1, 1, 1, 1)):
        low, high = paired(*table(*cells)).ci95
        assert -1 <= low <= (cells[2] - cells[1]) / sum(cells) <= high <= 1 and high - low > 0.05, cells


@pytest.mark.parametrize("only_a, only_b, expected", [
    (2, 12, 0.012939453125), (0, 5, 0.0625), (3, 3, 1.0), (0, 0, 1.0)])
def test_one_question_an_image_is_mcnemars_exact_test(only_a, only_b, expected):
    result = paired(*table(7, only_a, only_b, 4))
    assert result.mcnemar == pytest.approx(expected) and result.p == pytest.approx(expected)
    if only_a + only_b:
        assert result.p == pytest.approx(binomtest(only_a, only_a + only_b).pvalue)


def test_flips_of_whole_images_are_all_counted():
    for sums in ([3, 1, -1, 0, 2], [2, 2, 2], [-1, -2, 4], [0, 0], [5]):
        far = abs(sum(sums))
        signs = list(product((-1, 1), repeat=len(sums)))
        expected = sum(abs(np.dot(s, sums)) >= far for s in signs) / len(signs)
        assert flip_exactly(np.array(sums)) == pytest.approx(expected), sums


def test_questions_of_one_image_are_one_fact():
    # b is better in all six questions, which are of two images: of four ways to sign them two are as far.
    result = paired([False] * 6 + [True] * 4, [True] * 10, ["x"] * 3 + ["y"] * 3 + ["z"] * 4)
    assert result.p == 0.5 and result.mcnemar == pytest.approx(2 / 64) and result.images == 3
    alone = paired([False] * 6 + [True] * 4, [True] * 10)
    assert alone.ci95[0] > result.ci95[0] and alone.p == alone.mcnemar


def test_scores_in_between_are_flipped_and_drawn_by_image():
    rng = np.random.default_rng(0)
    sums = rng.choice([-0.6, 0.3, 0.9, 0.0], 11)
    signs = np.array(list(product((-1, 1), repeat=11)))
    exact = (np.abs(signs @ sums) >= abs(sums.sum()) - 1e-9).mean()
    assert flip_at_random(sums, np.random.default_rng(1)) == pytest.approx(exact, abs=0.02)
    sizes = np.full(400, 2)
    sums = rng.normal(0.2, 1, 400)
    low, high = bootstrap(sums, sizes, np.random.default_rng(1))
    half = 1.96 * sums.std() / 20 / 2
    assert [low, high] == pytest.approx([sums.mean() / 2 - half, sums.mean() / 2 + half], abs=0.006)


def test_fractions_get_no_mcnemar_and_the_same_result_each_time():
    rng = np.random.default_rng(2)
    a, b = (rng.choice([0.0, 0.3, 0.6, 1.0], 60).tolist() for _ in range(2))
    result = paired(a, b, [n // 3 for n in range(60)])
    assert result == paired(a, b, [n // 3 for n in range(60)]) and result.mcnemar is None and result.images == 20
    assert result.ci95[0] < result.difference < result.ci95[1] and 0 < result.p <= 1
    assert paired(a, a).ci95 == (pytest.approx(0.025 ** (1 / 60) - 1), pytest.approx(1 - 0.025 ** (1 / 60)))
    assert paired(a, a).p == 1


@pytest.mark.parametrize("kind", [bool, float])
def test_intervals_cover_and_tests_err_as_often_as_they_say(kind, monkeypatch):
    """Images are hard or easy for one of the two methods, with all three questions; the means are equal."""
    monkeypatch.setattr("budgetprune.evaluation.paired.RESAMPLES", 400)
    rng, runs, n = np.random.default_rng(5), 400, 80
    images, covered, found = np.arange(n).repeat(3).tolist(), 0, 0
    for _ in range(runs):
        chances = rng.choice([0.2, 0.8], (2, n)).repeat(3, axis=1)
        a, b = ([kind(x) for x in row] for row in rng.random((2, 3 * n)) < chances)
        result = paired(a, b, images)
        covered += result.ci95[0] <= 0 <= result.ci95[1]
        found += result.p < 0.05
    assert 0.92 < covered / runs < 0.985 and found / runs < 0.08


def test_holm_by_hand():
    # 0.01 * 4, then the larger of that and 0.02 * 3, of that and 0.03 * 2, of that and 0.5.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([0.2]) == [0.2] and holm([]) == []


def test_other_lengths_are_refused():
    with pytest.raises(ValueError, match="a and b must be scores of the same questions, got 1 and 2"):
        paired([True], [True, False])
    with pytest.raises(ValueError, match="got 0 and 0"):
        paired([], [])
