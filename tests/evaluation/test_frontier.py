"""Areas and fronts with hand answers."""

from math import log

import pytest
from sample_run import RECORDS, cell

from budgetprune.evaluation.frontier import area_under_curve, pareto_front, shared_range

FULL = cell("none", 64, 180, 1600)


def test_an_area_by_hand_over_the_logarithm():
    # 0.5 at 100, 0.7 at 200, 0.9 at 800: one halving with mean 0.6, two with mean 0.8: (0.6 + 2 * 0.8) / 3.
    curve = [cell("a", 2, 100, 100), cell("a", 4, 140, 200), cell("a", 16, 180, 800)]
    assert area_under_curve([FULL, *curve]) == {"a": pytest.approx(2.2 / 3)}
    # Over the cost itself 100 wide with mean 0.6, 600 wide with mean 0.8.
    assert area_under_curve(curve, scale="linear") == {"a": pytest.approx((60 + 480) / 700)}
    assert area_under_curve(reversed(curve)) == area_under_curve(curve)


def test_methods_are_compared_over_the_range_they_share():
    # b runs from 200 to 400. There a rises from 0.6 to 0.7, over the logarithm in a straight line; b lies at 0.65.
    a = [cell("a", 2, 100, 100), cell("a", 8, 160, 800)]
    b = [cell("b", 4, 130, 200), cell("b", 8, 130, 400)]
    assert shared_range(a + b) == (200, 400)
    assert area_under_curve(a + b) == {"a": pytest.approx(0.65), "b": pytest.approx(0.65)}
    # Linear: at 200 a is 0.5 + 0.3/7, at 400 0.5 + 0.9/7.
    assert area_under_curve(a + b, scale="linear")["a"] == pytest.approx(0.5 + 0.6 / 7)
    assert area_under_curve(a, within=(100, 400))["a"] == pytest.approx(0.6)


def test_an_area_is_the_mean_accuracy_whatever_the_unit_of_cost():
    flat = [cell("a", k, 150, k * 10**9) for k in (3, 5, 64)]
    assert area_under_curve(flat) == {"a": pytest.approx(0.75)} == area_under_curve(flat, "keep")
    rising = [cell("a", k, 100 + k, 10 * k) for k in (10, 20, 50)]
    scaled = [cell("a", k, 100 + k, 70 * k) for k in (10, 20, 50)]
    assert area_under_curve(rising)["a"] == pytest.approx(area_under_curve(scaled)["a"])
    assert 0.55 < area_under_curve(rising)["a"] < 0.75
    middle = 0.55 * log(2) + 0.05 * log(2) / 2 + 0.6 * log(2.5) + 0.15 * log(2.5) / 2
    assert area_under_curve(rising)["a"] == pytest.approx(middle / log(5))


def test_seeds_are_averaged_and_variants_are_curves_of_their_own():
    seeds = [cell("a", k, hits + 10 * seed, 100 * k, seed=seed) for k, hits in ((1, 90), (2, 110)) for seed in range(3)]
    assert area_under_curve(seeds) == {"a": pytest.approx(0.55)}
    variants = [cell("a", k, 100 + n, 100 * k, method_options={"layer": n}) for k in (1, 2) for n in (2, 4)]
    assert area_under_curve(variants) == {"a (layer=2)": pytest.approx(0.51), "a (layer=4)": pytest.approx(0.52)}


def test_a_method_with_one_cost_and_the_full_model_have_no_area():
    curve = [cell("a", 2, 100, 100), cell("a", 4, 140, 200)]
    alone = [cell("b", 3, 150, 150), cell("c", 3, 150, 150), cell("c", 4, 160, 150)]
    assert set(area_under_curve([FULL, *curve, *alone])) == {"a"}
    assert area_under_curve([FULL]) == {} == area_under_curve([])
    with pytest.raises(ValueError, match="records must have a method at two costs at least, got none"):
        shared_range([FULL])


@pytest.mark.parametrize("records, options, match", [
    ([cell("a", 1, 1, 10), cell("a", 2, 1, 20), cell("b", 1, 1, 20), cell("b", 2, 1, 40)], {},
     "records must overlap in prefill_flops: a ends at 20 where b begins at 20"),
    ([cell("a", 1, 1), cell("a", 2, 1)], {}, "cost must be one that records have, none has prefill_flops"),
    ([cell("a", 1, 1, 1), cell("a", 2, 1, 2, task="other")], {}, "records must be of one task, got digits, other"),
    ([cell("a", 1, 1, 1), cell("a", 2, 1, 2, model="other")], {}, "records must be of one model, got other, tiny"),
    ([cell("a", 1, 1, 1)], {"cost": "price"}, "cost must be one of 'prefill_flops'"),
    ([cell("a", 1, 1, 1)], {"scale": "square"}, "scale must be one of 'log', 'linear', got 'square'"),
    ([cell("a", 1, 1, 10), cell("a", 2, 1, 20)], {"within": (10, 30)},
     r"within must lie between 10 and 20, the costs of a, got \(10, 30\)"),
    ([cell("a", 1, 1, 10), cell("a", 2, 1, 20)], {"within": (20, 10)}, "with 0 < low < high, got .20, 10."),
])
def test_what_has_no_area_is_refused(records, options, match):
    with pytest.raises(ValueError, match=match):
        area_under_curve(records, **options)


def test_a_front_by_hand():
    # learnt at 12 tokens is as good as at 16 and cheaper, at 4 better than random for the same; the full model is best.
    front = [("learnt", 4), ("learnt", 12), ("none", 64)]
    assert [(r.method, r.keep) for r in pareto_front(RECORDS)] == front
    # random at 4 took the least time.
    assert [(r.method, r.keep) for r in pareto_front(RECORDS, "prefill_ms")] == [("random", 4), *front]


def test_equal_cells_share_the_front_and_beaten_ones_leave_it():
    same = [cell("a", 4, 100, 10), cell("b", 4, 100, 10)]
    beaten = [cell("c", 4, 90, 10), cell("d", 8, 100, 20), cell("e", 2, 100, 30), cell("f", 9, 100, None)]
    assert [r.method for r in pareto_front(beaten + same)] == ["a", "b"]
    assert pareto_front([]) == []
    with pytest.raises(ValueError, match="none has peak_bytes"):
        pareto_front(same, "peak_bytes")
    with pytest.raises(ValueError, match="records must be of one task, got digits, other"):
        pareto_front([*same, cell("a", 4, 10, 1, task="other")])


def test_a_front_takes_several_models_and_the_means_of_seeds():
    small = [cell("a", 4, 80 + 20 * seed, 10, seed=seed, model="small") for seed in (0, 1)]
    large = [cell("none", 64, 85, 20, model="large"), cell("a", 4, 120, 15, model="large")]
    assert [(r.model, r.method, r.seed) for r in pareto_front(small + large)] == [
        ("small", "a", 0), ("small", "a", 1), ("large", "a", 0)]


def test_nothing_on_a_front_beats_anything_on_it():
    records = [cell("m", k, (37 * k) % 191, 1 + (53 * k) % 97) for k in range(1, 60)]
    front = pareto_front(records)

    def beats(a, b):
        return a.prefill_flops <= b.prefill_flops and a.accuracy >= b.accuracy and (
            (a.prefill_flops, a.accuracy) != (b.prefill_flops, b.accuracy))

    assert [r for r in records if not any(beats(other, r) for other in records)] == sorted(front, key=lambda r: r.keep)
    assert 1 < len(front) < 20
