"""The scaling law: known parameters come back, the published points give the known fit, plans are the least error."""

import math
import random

import pytest

from budgetprune.cost import (
    ScalingPoint,
    best_tokens,
    fit_scaling,
    hold_out,
    plan_budget,
    published_notes,
    published_points,
    scaling_flops,
)
from budgetprune.cost.budget_plan import size_for
from budgetprune.cost.scaling import PUBLISHED, law

SIZES, COUNTS = (0.5, 1.8, 4, 7), (1, 4, 16, 36, 64, 144, 576)


def synthetic(a, alpha, beta, d, sizes=SIZES, counts=COUNTS, noise=0.0, seed=0):
    draw = random.Random(seed)
    return [ScalingPoint(n, v, law((a, alpha, beta, d), n, v) + draw.gauss(0, noise)) for n in sizes for v in counts]


@pytest.fixture(scope="module")
def published():
    return fit_scaling(published_points(), draws=200)


@pytest.mark.parametrize("values", [(0.55, 0.08, 0.02, 0.0), (0.4, 0.3, 0.1, 0.2), (0.3, 0.05, 0.4, 0.1),
                                    (0.9, 0.03, 0.04, 0.0), (0.2, 1.5, 0.7, 0.35)])
def test_known_parameters_come_back_from_points_without_noise(values):
    fit = fit_scaling(synthetic(*values), draws=0)
    assert (fit.a, fit.alpha, fit.beta, fit.d) == pytest.approx(values, rel=1e-4, abs=1e-5)
    assert fit.sse < 1e-15 and fit.n == 28 and fit.intervals is None


def test_known_parameters_lie_in_the_intervals_of_points_with_noise():
    values = dict(zip(("a", "alpha", "beta", "d"), (0.4, 0.5, 0.3, 0.2)))
    fit = fit_scaling(synthetic(*values.values(), noise=0.002), draws=100)
    for name, value in (values | {"ratio": 0.5 / 0.3}).items():
        low, high = fit.intervals[name]
        assert low < value < high and low <= getattr(fit, name) <= high, name


def test_the_published_points_give_the_known_fit(published):
    assert published.a == pytest.approx(0.5908, abs=1e-4) and published.d == 0
    assert published.alpha == pytest.approx(0.0709, abs=5e-5) and published.beta == pytest.approx(0.0151, abs=5e-5)
    assert published.sse == pytest.approx(3.79e-4, abs=5e-7) and published.n == 28
    assert published.sizes == (0.5, 7) and published.tokens == (1, 576)
    off = [abs(published.error(p.size, p.tokens) / p.error - 1) for p in published_points()]
    assert sum(off) / len(off) == pytest.approx(0.0056, abs=5e-5) and max(off) == pytest.approx(0.0129, abs=5e-5)


def test_no_other_parameters_nearby_fit_better(published):
    best = published.a, published.alpha, published.beta, published.d
    points = published_points()
    for i in range(4):
        for factor in (0.999, 1.001):
            moved = list(best)
            moved[i] = best[i] * factor if i < 3 else 0.001
            assert sum((law(moved, p.size, p.tokens) - p.error) ** 2 for p in points) > published.sse


def test_the_ratio_is_known_better_than_the_exponents_and_d_is_not_known(published):
    def spread(name):
        low, high = published.intervals[name]
        return (high - low) / getattr(published, name)

    assert published.intervals["d"][0] == 0 and published.intervals["d"][1] > 0.05
    assert spread("ratio") < spread("alpha") and spread("ratio") < spread("beta")
    low, high = published.intervals["ratio"]
    assert low < PUBLISHED["alpha"] / PUBLISHED["beta"] < high


def test_a_far_larger_d_fits_the_published_points_about_as_well():
    """With D at 0.1 the others move by a fifth, for an SSE of a ninth more: D says nothing by itself."""
    lifted = [ScalingPoint(p.size, p.tokens, p.error - 0.1) for p in published_points()]
    fit = fit_scaling(lifted, draws=0)
    assert fit.sse < 4.4e-4 and fit.alpha > 0.085 and fit.ratio == pytest.approx(4.70, abs=0.01)


def test_the_same_points_give_the_same_fit_in_any_order(published):
    points = published_points()
    random.Random(3).shuffle(points)
    assert fit_scaling(points, draws=200) == published
    assert fit_scaling(points, draws=20, seed=1).intervals != fit_scaling(points, draws=20).intervals


def test_the_largest_model_is_predicted_from_the_others():
    held = hold_out(published_points())
    assert held.size == 7 and held.mean == pytest.approx(0.0045, abs=2e-4) and held.mean < held.most < 0.02
    assert held.fit.a == pytest.approx(0.5899, abs=1e-4) and held.fit.alpha == pytest.approx(0.0708, abs=5e-5)
    assert held.fit.beta == pytest.approx(0.0146, abs=5e-5) and held.fit.d == 0 and held.fit.n == 21
    assert hold_out(published_points(), 0.5).size == 0.5


def test_the_ocr_points_leave_the_placeholder_out_and_want_as_many_tokens_as_there_are():
    points = published_points("ocr")
    assert len(points) == 27 and (7, 576) not in {(p.size, p.tokens) for p in points}
    assert any("doubtful" in note for note in published_notes("ocr")) and not published_notes()
    fit = fit_scaling(points, draws=0)
    assert fit.beta > fit.alpha > 0 and fit.sse == pytest.approx(4.585e-3, abs=5e-6) and fit.d == 0
    assert fit.alpha == pytest.approx(0.0271, abs=5e-5) and fit.beta == pytest.approx(0.0386, abs=5e-5)
    assert plan_budget(fit, 2e12, 50).best.tokens == 576
    assert plan_budget(fit, 2e12, 50, most=2880).best.tokens == 2880


@pytest.mark.parametrize(("text", "tokens"), [(0, 1), (50, 12.1), (100, 24.2), (200, 48.4), (400, 96.8)])
def test_the_closed_form_with_the_published_exponents(text, tokens):
    assert best_tokens(0.077, 0.015, text) == pytest.approx(tokens, abs=0.05)


@pytest.mark.parametrize("values", [(0.59, 0.0709, 0.0151, 0.0), (0.4, 0.1, 0.06, 0.2), (0.5, 0.05, 0.07, 0.1),
                                    (0.5, 0.07, 0.07, 0.0), (0.5, 0.07, -0.01, 0.0)])
@pytest.mark.parametrize("text", [0, 7, 50, 333])
def test_a_plan_is_the_least_error_of_all_counts(values, text):
    fit = fit_scaling(synthetic(*values), draws=0)
    flops = 3e12
    found = plan_budget(fit, flops, text)
    brute = min(range(1, 577), key=lambda v: (fit.error(size_for(flops, v, text), v), -v))
    least = fit.error(size_for(flops, brute, text), brute)
    assert found.best.error == pytest.approx(least, rel=1e-9)
    if text or values[1] - values[2]:  # with both equal and no text every count is as good
        assert found.best.tokens == brute
    assert found.best.flops == pytest.approx(flops)
    assert scaling_flops(found.best.size, found.best.tokens, text) == found.best.flops


def test_the_plan_of_the_readme(published):
    found = plan_budget(published, 2e12, 50)
    assert abs(found.best.tokens - best_tokens(published.alpha, published.beta, 50)) < 1
    assert found.best.size == pytest.approx(1e3 / (50 + found.best.tokens))
    low, high = found.tokens_interval
    assert low < found.best.tokens < high and found.best.interval[0] < found.best.error < found.best.interval[1]
    assert "billion parameters lie outside the 0.5 to 7" in found.caution and "bootstrap fits take" in found.caution
    assert "Size and count lie within" in plan_budget(published, 3e11, 50).caution
    assert "image tokens lie outside the 1 to 576" in plan_budget(published, 1e12, 9000, most=2880).caution


def test_of_models_that_exist_each_gets_what_the_budget_leaves_and_the_best_is_named(published):
    found = plan_budget(published, 2e12, 50, sizes=[14, 0.5, 7, 1.8, 4, 72])
    assert [c.size for c in found.choices] == [0.5, 1.8, 4, 7, 14] and found.too_large == (72,)
    assert [c.tokens for c in found.choices] == [576, 505, 200, 92, 21]
    assert all(c.flops <= 2e12 < scaling_flops(c.size, c.tokens + 1, 50) for c in found.choices[1:])
    assert found.best.size == 14 and found.best.error == min(c.error for c in found.choices)
    assert 0.5 < found.agreement <= 1 and "of the bootstrap fits take the same model" in found.caution


def test_where_tokens_do_not_help_one_is_taken():
    fit = fit_scaling(synthetic(0.5, 0.1, -0.02, 0.0), draws=0)
    assert plan_budget(fit, 2e12, 50).best.tokens == 1
    assert [c.tokens for c in plan_budget(fit, 2e12, 50, sizes=[1, 7]).choices] == [1, 1]
    assert "too few for intervals" in plan_budget(fit, 2e12, 50).caution


def test_four_points_are_fitted_and_leave_no_interval():
    fit = fit_scaling(synthetic(0.5, 0.1, 0.02, 0.0, sizes=(1, 7), counts=(4, 64)))
    assert fit.n == 4 and fit.intervals is None and fit.draws == ()
    assert (fit.alpha, fit.beta) == pytest.approx((0.1, 0.02), rel=1e-6)


def test_an_error_of_zero_is_a_point_like_others():
    fit = fit_scaling([*synthetic(0.5, 0.5, 0.3, 0.0), ScalingPoint(70, 2880, 0)], draws=5)
    assert fit.d == 0 and fit.alpha > 0 and all(map(math.isfinite, fit.intervals["ratio"]))


@pytest.mark.parametrize(("make", "match"), [
    (lambda: ScalingPoint(0, 1, 0.5), "size must be above 0, got 0"),
    (lambda: ScalingPoint("7B", 1, 0.5), "size must be a number, got '7B'"),
    (lambda: ScalingPoint(7, 0, 0.5), "tokens must be above 0, got 0"),
    (lambda: ScalingPoint(7, 1, 1.5), r"error must be in \[0, 1\], got 1.5"),
    (lambda: fit_scaling([]), "at least 2 model sizes, got none"),
    (lambda: fit_scaling([(7, 1, 0.5)]), "points must be ScalingPoints, got tuple"),
    (lambda: fit_scaling(synthetic(0.5, 0.1, 0.1, 0, sizes=(7,))), "at least 2 model sizes, got 7"),
    (lambda: fit_scaling(synthetic(0.5, 0.1, 0.1, 0, counts=(9,))), "at least 2 counts of image tokens, got 9"),
    (lambda: fit_scaling([ScalingPoint(n, n, 1 / n) for n in (2, 4, 8, 16)]), "must not all lie on one line"),
    (lambda: fit_scaling([ScalingPoint(n, v, 0) for n in (1, 2) for v in (1, 2)]), "must not all have an error of 0"),
    (lambda: fit_scaling(published_points(), draws=-1), "draws must be at least 0, got -1"),
    (lambda: fit_scaling(published_points(), seed=-1), "seed must be at least 0, got -1"),
    (lambda: hold_out([(7, 1, 0.5)]), "points must be ScalingPoints, got tuple"),
    (lambda: hold_out([*published_points(), ScalingPoint(14, 1, 0)]), "errors above 0, got 14 with an error of 0"),
    (lambda: hold_out(published_points(), 13), "size must be that of a point, got 13"),
    (lambda: hold_out(synthetic(0.5, 0.1, 0.1, 0, sizes=(1, 7))), "at least 2 model sizes, got 1"),
    (lambda: published_points("chess"), "task must be one of 'visual-reasoning', 'ocr', got 'chess'"),
    (lambda: best_tokens(0, 0.1, 50), "alpha must be above 0, got 0"),
    (lambda: best_tokens(0.1, 0.1, -1), "text_tokens must be at least 0, got -1"),
    (lambda: best_tokens(0.1, 0.01, 50, 0), "most must be at least 1, got 0"),
    (lambda: best_tokens(0.1, 0.01, 50, None), "most must be a number, got None"),
    (lambda: scaling_flops(-7, 1, 1), "size must be above 0, got -7"),
])
def test_wrong_input_is_named(make, match):
    with pytest.raises((ValueError, TypeError), match=match):
        make()


@pytest.mark.parametrize(("arguments", "options", "match"), [
    ((0, 50), {}, "flops must be above 0, got 0"),
    ((math.nan, 50), {}, "flops must be a finite number"),
    ((2e12, -1), {}, "text_tokens must be at least 0, got -1"),
    ((2e12, 50), {"most": 0}, "most must be at least 1, got 0"),
    ((2e12, 50), {"sizes": []}, "sizes must name at least one model"),
    ((2e12, 50), {"sizes": [7, 0]}, "sizes must be above 0, got 0"),
    ((2e9, 50), {"sizes": [7, 14]}, "flops must pay for an image token beside 50 text tokens, 7 billions need 7.14e"),
])
def test_a_wrong_plan_is_named(published, arguments, options, match):
    with pytest.raises(ValueError, match=match):
        plan_budget(published, *arguments, **options)


def test_points_in_which_larger_models_are_no_better_plan_nothing():
    with pytest.raises(ValueError, match="alpha above 0, got -0.1000: larger models are no better"):
        plan_budget(fit_scaling(synthetic(0.5, -0.1, 0.1, 0.0), draws=0), 2e12, 50)
