"""What the report's script draws from: each cost, front and area as the records have them."""

import json

import pytest
from sample_run import RECORDS, cell, report

from budgetprune.evaluation.chart import slots_of
from budgetprune.evaluation.report_data import COSTS, areas, common_range, front, page_data
from budgetprune.evaluation.summary import group_records


def group(*records):
    return group_records(records)[0]


def test_every_point_carries_its_costs_and_leaves_out_what_is_not_known():
    groups = group_records(RECORDS)
    data = page_data(groups, slots_of(groups))
    assert [m["label"] for m in data["methods"]] == ["learnt", "random"]
    assert [c["field"] for c in data["costs"]] == [c.field for c in COSTS]
    only, = data["groups"]
    assert only["full"]["costs"] == {"prefill_flops": 100_000_000, "prefill_ms": 4.0, "peak_bytes": 3 << 20,
                                     "decode_ms_per_token": 0.5, "keep": 64}
    learnt = next(c for c in only["curves"] if c["slot"] == 0)
    assert [p["keep"] for p in learnt["points"]] == [4, 12, 16] and only["best"] == [0, 12]
    assert learnt["points"][1]["costs"] == {"prefill_flops": 29_000_000, "prefill_ms": 2.0, "keep": 12}
    json.dumps(data, allow_nan=False)


def test_a_mean_over_seeds_needs_all_of_them():
    groups = group_records([cell("a", 4, 100, 10, 1.0, seed=1, metrics={"f1": 0.5}),
                            cell("a", 4, 100, 20, None, seed=2, metrics={"f1": 0.7, "x": 3})])
    point = page_data(groups, slots_of(groups))["groups"][0]["curves"][0]["points"][0]
    assert point["costs"] == {"prefill_flops": 15, "keep": 4} and point["seeds"] == 2
    assert point["metrics"] == {"f1": pytest.approx(0.6)}


def test_one_method_looks_alike_in_every_task():
    groups = group_records([cell("a", 4, 100, 9), cell("b", 4, 120, 9), cell("c", 4, 150, 9, task="other"),
                            cell("b", 8, 100, 9, task="other")])
    slots = slots_of(groups)
    assert sorted(slots.values()) == [0, 1, 2] and slots["c"] == 2
    curves = [{c["slot"] for c in g["curves"]} for g in page_data(groups, slots)["groups"]]
    assert curves == [{slots["a"], slots["b"]}, {slots["c"], slots["b"]}]


def test_the_front_is_what_no_cell_beats():
    members = group(*RECORDS)
    assert [(p.label, p.keep) for p in front(members, "prefill_flops")] == [
        ("learnt", 4), ("learnt", 12), ("none", 64)]
    assert [(p.label, p.keep) for p in front(members, "prefill_ms")][0] == ("random", 4)
    assert front(group(cell("a", 4, 9)), "prefill_flops") == []


def test_the_area_is_the_mean_accuracy_over_the_logarithm_of_the_cost():
    flat = cell("flat", 4, 150, 10), cell("flat", 8, 150, 100)
    members = group(cell("up", 4, 100, 10), cell("up", 8, 200, 100), *flat)
    assert common_range(members) == (10, 100)
    assert areas(members) == {"up": pytest.approx(0.75), "flat": pytest.approx(0.75)}
    longer = group(cell("up", 4, 100, 10), cell("up", 8, 200, 1000), *flat)  # at 100 it has come half its way
    assert common_range(longer) == (10, 100)
    assert areas(longer) == {"up": pytest.approx((0.5 + 0.75) / 2), "flat": pytest.approx(0.75)}
    assert common_range(group(cell("alone", 4, 100, 10), cell("alone", 8, 200, 1000))) == (10, 1000)


def test_a_method_that_begins_where_others_end_has_no_area_and_spoils_none():
    records = [cell(name, keep, hits, flops) for name in ("a", "b")
               for keep, hits, flops in ((4, 100, 10), (8, 180, 40))]
    late = [cell("inside", 4, 190, 50), cell("inside", 8, 190, 60)]
    assert common_range(group(*records, *late)) == (10, 40)
    assert areas(group(*records, *late)).keys() == {"a", "b"}
    assert areas(group(*late, cell("one point", 4, 5, 55))).keys() == {"inside"}
    assert common_range(group(cell("a", 4, 5), cell("a", 8, 5))) is None and areas(group(cell("a", 4, 5))) == {}


def test_a_range_that_many_methods_barely_share_loses_to_one_that_some_share_well():
    records = [cell(name, keep, 100, flops) for name, low, high in (("a", 10, 40), ("b", 10, 40), ("c", 38, 60))
               for keep, flops in ((4, low), (8, high))]
    assert common_range(group(*records)) == (10, 40)


def test_metrics_are_columns_of_the_table(run_dir):
    page = report(run_dir([*RECORDS, cell("a", 4, 20, task="pope", metrics={"f1": 0.25, "yes_ratio": 0.5})]))
    head, *rows = page.rows()
    assert head[-4:] == ["f1metric", "yes ratiometric", "Samples", "Seed"]
    assert rows[-1][-4:] == ["0.2500", "0.5000", "200", "0"] and rows[0][-4:-2] == ["\u2013", "\u2013"]


def test_methods_in_one_line_are_ordered_by_their_area(run_dir):
    head, *rows = report(run_dir()).rows("methods")
    assert head[1:3] == ["Area under curveaccuracy over log FLOPs", "Fewest tokenswithin 0.01 of full"]
    assert rows == [["learnt", "0.9110", "12", "4, 12", "0.9700 at 12"], ["random", "0.4100", "\u2013", "\u2013",
                                                                          "0.5200 at 16"]]
