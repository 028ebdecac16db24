"""How cells that spare layers are kept and shown: records, curves, the report and its front."""

import json
import re
from dataclasses import replace

import pytest
from browser import BROWSER, Browser
from sample_run import cell, report

from budgetprune.evaluation import area_under_curve, markdown_table, pareto_front, record, write_report
from budgetprune.evaluation.predicted import predicted
from budgetprune.evaluation.scaling_points import scaling_points
from budgetprune.evaluation.summary import group_records

BOTH, LAYERS = "adaptive+adallava", "adallava"


def test_records_of_before_are_read_and_keep_their_keys():
    line = json.loads(cell("uniform", 8, 100).to_json())
    assert "layers" not in line and "kv_bytes" not in line
    old = record.Record.from_json(json.dumps(line))
    assert old.layers is None and len(old.key()) == 7
    new = replace(old, layers=3)
    assert record.Record.from_json(new.to_json()) == new and new.key() == (*old.key(), 3)
    with pytest.raises(TypeError, match="layers must be an int"):
        replace(old, layers=2.5)


SPARED = [cell("none", 64, 190, 100), cell(BOTH, 8, 100, 20, layers=2), cell(BOTH, 16, 120, 30, layers=2),
          cell(BOTH, 8, 140, 30, layers=4), cell(BOTH, 16, 180, 45, layers=4), cell(LAYERS, 64, 150, 60, layers=2),
          cell(LAYERS, 64, 189, 80, layers=3), cell(LAYERS, 64, 190, 101, layers=4)]


def test_each_number_of_layers_is_a_curve_over_tokens_and_layers_alone_are_one_curve():
    (group,) = group_records(SPARED)
    assert [(c.label, [(p.keep, p.layers, p.name) for p in c.points]) for c in group.curves] == [
        (f"{BOTH} in 2 layers", [(8, 2, f"{BOTH} in 2 layers"), (16, 2, f"{BOTH} in 2 layers")]),
        (f"{BOTH} in 4 layers", [(8, 4, f"{BOTH} in 4 layers"), (16, 4, f"{BOTH} in 4 layers")]),
        (LAYERS, [(64, n, f"{LAYERS} in {n} layers") for n in (2, 3, 4)])]
    for label, records, mean in ((f"{BOTH} in 2 layers", SPARED[1:3], 0.55), (f"{BOTH} in 4 layers", SPARED[3:5], 0.8),
                                 (LAYERS, SPARED[5:7], 0.8475)):
        assert area_under_curve(records) == {label: pytest.approx(mean)}
    assert [(r.method, r.keep, r.layers) for r in pareto_front(SPARED)] == [
        (BOTH, 8, 2), (BOTH, 8, 4), (BOTH, 16, 4), (LAYERS, 64, 3), ("none", 64, None)]


def test_the_report_shows_the_layers(run_dir):
    page = report(run_dir(SPARED))
    rows = page.rows("every-cell") if any(e.get("id") == "every-cell" for e in page.elements) else page.rows()
    at = [text.startswith("Layers") for text in rows[0]].index(True)
    shown = {(row[0], row[at - 1], row[at]) for row in rows[1:]}
    assert {(f"{BOTH} in 2 layers", "8", "2"), (LAYERS, "64", "3")} <= shown
    assert any(row[0].startswith("none") and row[at] == "all" for row in rows[1:])
    tips = [e["data-tip"].split("\n")[0] for e in page.elements if "data-tip" in e]
    assert {f"{BOTH} in 4 layers", f"{LAYERS} in 3 layers"} <= set(tips)
    table = markdown_table(SPARED).splitlines()
    assert any(line.startswith(f"| {LAYERS} | 64 in 3 layers |") for line in table)
    assert not any("layers" in line for line in markdown_table([cell("none", 64, 190, 100)]).splitlines())


@pytest.mark.skipif(BROWSER is None, reason="no chromium to open the report with")
def test_in_a_browser_the_front_goes_through_the_cell_with_the_right_layers(run_dir):
    folder = run_dir(SPARED)
    browser = Browser(folder / "profile")
    try:
        browser.open(write_report(folder))
        places = browser.run("""Object.fromEntries([...document.querySelectorAll('.plot .curve .pt')].map((e) =>
            [e.dataset.tip.split('\\n')[0], e.querySelector('.mark').getAttribute('transform')]))""")
        front = browser.run("document.querySelector('.plot path.front').getAttribute('d')")
        problems = browser.problems
    finally:
        browser.close()
    x, y = re.match(r"translate\((\S+) (\S+)\)", places[f"{LAYERS} in 3 layers"]).groups()
    assert f"H{x}V{y}" in front and front.count("V") == 4 and problems == []


def test_what_speaks_of_tokens_in_whole_models_leaves_these_cells_out(tmp_path):
    timed = [replace(r, prefill_ms=float(r.prefill_flops)) for r in SPARED]
    assert [row.method for row in predicted(timed)][:4:2] == [f"{BOTH} in 2 layers", f"{BOTH} in 4 layers"]
    for r in [*SPARED, cell("uniform", 8, 100, 20)]:
        record.append(tmp_path / "records.jsonl", r)
    assert [p.tokens for p in scaling_points([tmp_path], {"tiny": 7})] == [64, 8]
