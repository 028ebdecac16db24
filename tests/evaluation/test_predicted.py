"""Measured time beside what FLOPs and rooflines promised, on records made by hand."""

import pytest

from budgetprune.cost import Device, known, prefill_flops, table
from budgetprune.evaluation import record
from budgetprune.evaluation.predicted import by_method, of_run, predicted
from budgetprune.evaluation.record import Record
from budgetprune.evaluation.this_machine import device_of, measured_device

BASE = {"task": "digits", "model": "m", "samples": 10, "seed": 0, "accuracy": 0.5, "ci95": (0.2, 0.8)}
TOY = Device("toy", "bfloat16", 1e12, 1e9, 0, "a test")
LLAVA = known("llava-1.5-7b")


def cell(method, keep, ms, flops, **options):
    return Record(method=method, keep=keep, prefill_ms=ms, prefill_flops=flops, **{**BASE, **options})


def test_the_ratio_is_measured_over_promised():
    rows = predicted([cell("none", 64, 100.0, 1000), cell("fastv", 8, 60.0, 500), cell("fastv", 32, 80.0, 800),
                      cell("uniform", 8, 40.0, 400)])
    assert [(r.method, r.keep, r.measured_share, r.flops_share) for r in rows] == [
        ("fastv", 8, 0.6, 0.5), ("fastv", 32, 0.8, 0.8), ("uniform", 8, 0.4, 0.4)]
    assert [r.flops_ratio for r in rows] == pytest.approx([1.2, 1.0, 1.0])
    assert all(r.roofline_share is None and r.roofline_ratio is None for r in rows)
    fastv, uniform = by_method(rows)
    assert (fastv.method, fastv.cells, fastv.least, fastv.most) == ("fastv", 2, pytest.approx(1), pytest.approx(1.2))
    assert fastv.mean == pytest.approx(1.2**0.5) and (uniform.method, uniform.mean) == ("uniform", pytest.approx(1))


def test_only_cells_that_were_timed_like_the_full_model_are_compared():
    full = cell("none", 64, 100.0, 1000, device="a", latency_batch=4, commit="x")
    like = {"device": "a", "latency_batch": 4, "commit": "x"}
    others = [{**like, "device": "b"}, {**like, "latency_batch": 8}, {**like, "commit": "y"}, {**like, "task": "t"},
              {**like, "model": "n"}]
    records = [full, *(cell("uniform", n, 50.0, 500, **other) for n, other in enumerate(others, 1)),
               cell("uniform", 8, None, 500, **like), cell("uniform", 9, 50.0, None, **like)]
    assert predicted(records) == []
    row, = predicted([*records, cell("uniform", 7, 50.0, 500, **like), cell("uniform", 7, 70.0, 500, **like)])
    assert row.measured_share == 0.7  # of a cell that ran twice the later record counts


@pytest.mark.parametrize("method, keep, options, stages", [
    ("uniform", 144, {}, None), ("fastv", 144, {"layer": 3, "fraction": 0.25}, lambda kept: ((3, kept),)),
    ("divprune", 64, {}, None)])
def test_rooflines_are_those_of_the_budget_with_the_text_that_makes_the_full_model_s_flops(method, keep, options,
                                                                                            stages):
    text = 37
    full = prefill_flops(LLAVA, 576, 576, text).total
    records = [cell("none", 576, 100.0, full, latency_batch=2),
               cell(method, keep, 50.0, full // 2, latency_batch=2, method_options=options)]
    row, = predicted(records, LLAVA, TOY)
    projected = "all" if method == "divprune" else None
    part, = table(LLAVA, [keep], text, stages=stages, batch=2, on=TOY, projected=projected)
    whole, = table(LLAVA, [576], text, batch=2, on=TOY)
    assert row.roofline_share == pytest.approx(part.prefill_roofline_ms / whole.prefill_roofline_ms, rel=1e-9)
    assert row.roofline_ratio == pytest.approx(0.5 / row.roofline_share) and 0 < row.roofline_share < 1


def test_records_of_another_model_and_of_images_of_mixed_size():
    full = prefill_flops(LLAVA, 576, 576, 37).total
    records = [cell("none", 576, 100.0, full + 1), cell("uniform", 64, 50.0, full // 2)]
    with pytest.raises(ValueError, match=f"model must be that of the records: their full model needs {full + 1} FLOPs"):
        predicted(records, LLAVA, TOY)
    mixed = [cell("none", 576, 100.0, full, kept_mean=576.5), records[1]]
    assert predicted(mixed, LLAVA, TOY)[0].roofline_share is None
    assert predicted([cell("none", 30, 100.0, full), records[1]], LLAVA, TOY)[0].roofline_share is None


def test_a_run_without_a_timed_pair_says_how_to_get_one(tmp_path):
    with pytest.raises(ValueError, match="run must have timed cells of the full model and .*records.jsonl has"):
        of_run(tmp_path)
    record.append(tmp_path / "records.jsonl", cell("none", 64, 100.0, 1000))
    record.append(tmp_path / "records.jsonl", cell("uniform", 8, 50.0, 500))
    assert of_run(tmp_path) == of_run(tmp_path / "records.jsonl") and len(of_run(tmp_path)) == 1


def test_this_machine_has_rates_and_is_asked_as_others_are():
    found = measured_device(size=64, megabytes=1, seconds=0.01)
    assert found.dtype == "float32" and found.bytes_per_value == 4 and "measured with torch" in found.source
    assert 1e6 < found.flops_per_s < 1e15 and 1e6 < found.bytes_per_s < 1e13
    assert device_of("h100").name.startswith("H100 SXM")
    with pytest.raises(ValueError, match="hardware must be this or one of v100-pcie, .*, h200, l40, got 'abacus'"):
        device_of("abacus")
