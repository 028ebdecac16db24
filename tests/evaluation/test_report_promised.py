"""The report's section on what FLOPs promised and what was measured, from records made by hand."""

import re
from dataclasses import replace

import pytest
from sample_run import RECORDS, cell, inside, report
from typer.testing import CliRunner

from budgetprune.cli import app
from budgetprune.cost import DEVICES, known, prefill_flops, reported_device, table
from budgetprune.evaluation import write_report
from budgetprune.evaluation.report_promised import Shares, chart, model_of, shares
from budgetprune.evaluation.summary import group_records

LLAVA, H100 = known("llava-1.5-7b"), "NVIDIA H100 80GB HBM3"
FULL = prefill_flops(LLAVA, 576, 576, 37).total


def on_h100(records):
    return [replace(one, device=H100) for one in records]


def llava(method, keep, ms, flops, **more):
    return cell(method, keep, 100, flops, ms, model="llava-1.5-7b-hf", latency_batch=1, **more)


def test_shares_are_of_the_full_model_and_say_how_much_of_the_saving_became_time():
    group, = group_records(RECORDS)
    found = {(row.label, row.keep): row for row in shares(group)}
    assert found["random", 4] == Shares("random", 4, 0.2, 0.375) and found["random", 4].roofline is None
    assert found["random", 4].became == pytest.approx(0.625 / 0.8)
    assert found["learnt", 16].became == pytest.approx(0.4 / 0.6) and len(found) == 5
    assert Shares("slower", 4, 0.5, 1.5).became == -1 and Shares("more work", 4, 1.0, 1.5).became is None


def test_seeds_are_averaged_and_a_cell_that_was_not_timed_as_the_full_model_was_has_no_row():
    records = [cell("none", 64, 190, 100, 4.0), cell("a", 4, 100, 20, 1.0), cell("a", 4, 100, 20, 2.0, seed=1),
               cell("b", 4, 100, 20), cell("c", 4, 100, None, 1.0), cell("d", 4, 100, 20, 1.0, latency_batch=7)]
    group, = group_records(records)
    assert shares(group) == [Shares("a", 4, 0.2, 0.375)]


def test_rooflines_stand_there_where_names_tell_model_and_device():
    records = on_h100([llava("none", 576, 20.0, FULL), llava("uniform", 64, 10.0, FULL // 4)])
    group, = group_records(records)
    row, = shares(group)
    part, whole = table(LLAVA, [64, 576], 37, on="h100")
    assert row.roofline == pytest.approx(part.prefill_roofline_ms / whole.prefill_roofline_ms, rel=1e-9)
    plain, = group_records([llava("none", 576, 20.0, FULL), llava("uniform", 64, 10.0, FULL // 4)])
    assert shares(plain)[0].roofline is None and shares(plain)[0].measured == 0.5
    assert shares(plain, LLAVA, DEVICES["h100-sxm"])[0].roofline == row.roofline
    other, = group_records(on_h100([llava("none", 576, 20.0, FULL + 1), llava("uniform", 64, 10.0, FULL // 4)]))
    assert shares(other)[0].roofline is None, "no text makes these FLOPs: it is another model of that name"


@pytest.mark.parametrize("name, key", [
    ("llava-1.5-7b-hf", "llava-1.5-7b"), ("llava-hf/llava-1.5-13b-hf", "llava-1.5-13b"), ("digits-llava", None),
    ("Qwen2.5-VL-7B-Instruct", "qwen2.5-vl-7b"), ("llava-1.5-7b-lora", None)])
def test_a_checkpoint_is_known_by_its_name(name, key):
    assert model_of(name) == (known(key) if key else None)


def test_a_card_is_known_by_what_its_driver_calls_it_and_by_nothing_near_it():
    assert reported_device(H100) == DEVICES["h100-sxm"] and reported_device("NVIDIA A10") == DEVICES["a10"]
    for other in ("NVIDIA A100 80GB PCIe", "NVIDIA A10G", "NVIDIA L40", "AMD EPYC (2 threads)", ""):
        assert reported_device(other) is None


def test_the_section_has_a_row_for_each_cell_and_a_figure_for_each_task(run_dir):
    second = [cell("none", 64, 190, 100, 4.0, task="shapes"), cell("learnt", 4, 100, 150, 5.0, task="shapes")]
    page = report(run_dir([*RECORDS, *second]))
    head, *rows = page.rows("promised")
    assert head == ["Method", "Task", "Model", "Kepttokens", "FLOPsof full", "Timeof full",
                    "Saved timeof saved FLOPs"] and len(rows) == 6
    assert ["random", "digits", "tiny", "4", "20.0\u00a0%", "37.5\u00a0%", "78\u00a0%"] in rows
    assert ["learnt", "shapes", "tiny", "4", "150.0\u00a0%", "125.0\u00a0%", "\u2013"] in rows
    home = next(e for e in page.elements if e.get("id") == "promised")
    figures = [e for e in page.all("figure") if inside(e, home)]
    assert [e["data-group"] for e in figures] == ["0", "1"] and "hidden" not in home
    tips = [e["data-tip"].split("\n") for e in page.elements if "data-tip" in e and inside(e, figures[0])]
    assert len(tips) == 5 and ["random", "4 of 64 image tokens", "FLOPs 20.0% of full",
                               "time 37.5% of full, measured"] in tips


def test_on_the_diagonal_both_shares_are_the_same():
    group, = group_records(RECORDS)
    svg = chart(group, [Shares("random", 4, 0.5, 0.5), Shares("learnt", 4, 0.25, 1.4)], {"random": 0, "learnt": 1})
    ends = [float(v) for v in re.search(r'class="even" d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', svg).groups()]
    left, y = (float(v) for v in re.search(r'd="M([\d.]+) ([\d.]+)a3\.6', svg).groups())
    assert left + 3.6 == pytest.approx((ends[0] + ends[2]) / 2, abs=0.2)
    assert y == pytest.approx((ends[1] + ends[3]) / 2, abs=0.2)


def test_without_times_there_is_no_section(run_dir):
    page = report(run_dir([cell("none", 64, 190, 100), cell("random", 4, 100, 20)]))
    home = next(e for e in page.elements if e.get("id") == "promised")
    assert "hidden" in home and not [e for e in page.all("tr") if inside(e, home)]


def test_the_command_names_hardware_and_model_of_rooflines_and_refuses_another_model(run_dir):
    folder = run_dir([llava("none", 576, 20.0, FULL), llava("uniform", 64, 10.0, FULL // 4)])
    result = CliRunner().invoke(app, ["report", str(folder), "--model", "llava-1.5-7b", "--hardware", "h100"])
    assert result.exit_code == 0, result.output
    text = (folder / "report.html").read_text()
    assert "for H100 SXM 80 GB, not measured" in text and "Roofline<small>of full" in text
    assert "Roofline<small>" not in write_report(folder).read_text(), "the records' own device is no known one"
    wrong = CliRunner().invoke(app, ["report", str(folder), "--model", "llava-1.5-13b", "--hardware", "h100"])
    assert isinstance(wrong.exception, ValueError) and "model must be that of the records" in str(wrong.exception)
