"""Intervals of scores in between; Wilson's own test is that of the records."""

import numpy as np
import pytest

from budgetprune.evaluation.interval import Z, interval, mean_interval, wilson_interval


def test_right_and_wrong_take_wilsons_and_anything_else_a_means():
    assert interval([True, False, True]) == wilson_interval(2, 3)
    assert interval([1.0, 0.0, 1.0]) == mean_interval([1.0, 0.0, 1.0]) != wilson_interval(2, 3)
    assert interval([0.3, True]) == mean_interval([0.3, 1.0])


def test_a_means_interval_by_hand():
    # Mean 0.5; squares of 0.2, 0.1, 0.1, 0.2: 0.1 in all, over 3: variance 1/30, standard error sqrt(1/120).
    assert mean_interval([0.3, 0.4, 0.6, 0.7]) == pytest.approx((0.5 - Z / 120**0.5, 0.5 + Z / 120**0.5))


def test_it_stays_within_0_and_1_and_is_never_empty():
    assert mean_interval([0.0, 0.0, 0.3]) == (0.0, pytest.approx(0.1 + Z * 0.1)) and mean_interval([1.0, 0.9])[1] == 1
    for scores in ([0.6], [0.0] * 5, [1.0] * 5, [0.3] * 4):
        low, high = mean_interval(scores)
        assert low <= scores[0] <= high and high - low > 0.1
    assert mean_interval([0.0] * 10) == wilson_interval(0, 10)


def test_it_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    values = np.array([0.0, 0.3, 0.6, 0.9, 1.0])
    chance = np.array([0.4, 0.1, 0.1, 0.1, 0.3])
    hits = sum(low <= chance @ values <= high
               for low, high in (mean_interval(rng.choice(values, 200, p=chance).tolist()) for _ in range(1000)))
    assert 0.93 < hits / 1000 < 0.97
