"""Intervals of scores in between; Wilson's own test is that of the records."""

import numpy as np
import pytest

from budgetprune.evaluation.interval import Z, effective, interval, mean_interval, standard_error, wilson_interval


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


def test_questions_of_one_image_are_taken_together_by_hand():
    # Two questions an image, both right or both wrong: as many facts as images.
    scores, images = [True, True, False, False] * 5, [number // 2 for number in range(20)]
    # About the mean 0.5 the ten sums are +1 and -1: 10 * 10/9 / 400 against 20 * 0.25 / (20 * 19).
    assert standard_error(scores, images) ** 2 == pytest.approx(1 / 36)
    assert standard_error(scores) ** 2 == pytest.approx(5 / 380)
    assert effective(scores, images) == pytest.approx(20 * (5 / 380) * 36)
    assert interval(scores, images) == pytest.approx(wilson_interval(180 / 38, 180 / 19))


def test_one_question_an_image_is_the_interval_of_independent_ones():
    rng = np.random.default_rng(1)
    for scores in (rng.random(30).tolist(), (rng.random(30) < 0.3).tolist(), [True] * 30, [0.5] * 30):
        assert interval(scores, [f"image {n}" for n in range(30)]) == pytest.approx(interval(scores), abs=1e-12)


def test_an_interval_is_never_narrower_than_that_of_independent_questions():
    images = [number // 2 for number in range(40)]
    opposed = [True, False] * 20  # one of each image's two questions is right: less spread than chance has
    assert effective(opposed, images) == 40 and interval(opposed, images) == interval(opposed)
    fractions = [0.2, 0.8] * 20
    assert interval(fractions, images) == interval(fractions)


def test_where_all_answers_are_right_an_images_questions_count_as_one():
    assert effective([True] * 30, [n // 3 for n in range(30)]) == 10
    assert interval([True] * 30, [n // 3 for n in range(30)]) == wilson_interval(10, 10)
    assert interval([0.4] * 30, [n // 3 for n in range(30)]) == wilson_interval(4, 10)
    assert effective([True] * 6, ["a", "a", "a", "a", "b", "c"]) == 2  # 36 / (16 + 1 + 1)
    assert interval([True, False, True], ["a", "a", "a"]) == wilson_interval(2, 3)  # one image shows no spread


@pytest.mark.parametrize("kind", [bool, float])
def test_with_three_questions_an_image_it_covers_where_the_old_one_does_not(kind):
    rng, cells, n = np.random.default_rng(3), 1500, 100
    images = np.arange(n).repeat(3).tolist()
    together = alone = 0
    for _ in range(cells):
        hard = rng.choice([0.2, 0.9], n)  # some images are hard, with all of their questions; the mean is 0.55
        scores = [kind(score) for score in rng.random(3 * n) < hard.repeat(3)]
        low, high = interval(scores, images)
        together += low <= 0.55 <= high
        low, high = interval(scores)
        alone += low <= 0.55 <= high
    assert 0.93 < together / cells < 0.97 and alone / cells < 0.89
