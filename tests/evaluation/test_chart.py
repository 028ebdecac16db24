"""Charts and the sentence above them: every point where the records put it."""

from itertools import combinations
from xml.etree import ElementTree

import numpy as np
import pytest
from sample_run import HOSTILE, RECORDS, cell, inside, report

from budgetprune.evaluation import write_chart_svg
from budgetprune.evaluation.chart import COLOURS, DARK, LIGHT, chart, marker, number, ticks
from budgetprune.evaluation.summary import group_records, headline


@pytest.mark.parametrize(("records", "sentence"), [
    ([RECORDS[0], RECORDS[3]],
     "No method stays within 0.01 of the full model's 0.975 accuracy; closest is learnt at 0.750 with 4 of 64 image "
     "tokens, with 80 % fewer prefill FLOPs and 60 % less prefill time."),
    (RECORDS[1:],
     "Keeping 12 image tokens, learnt reaches 0.970 accuracy, the highest here; the full model was not run."),
    (RECORDS[:1], "The full model reaches 0.975 accuracy; no method was run beside it."),
    ([cell("none", 64, 190), cell("b", 8, 190), cell("a", 9, 195)],
     "Keeping 8 of 64 image tokens, b reaches 0.950 accuracy (full model 0.950)."),
    ([RECORDS[0], cell("slow", 8, 195, 90_000_000, 5.0)],
     "Keeping 8 of 64 image tokens, slow reaches 0.975 accuracy (full model 0.975), with 10 % fewer prefill FLOPs and "
     "25 % more prefill time."),
    ([RECORDS[0], cell("tiny", 8, 195, 400_000, 2.0)],
     "Keeping 8 of 64 image tokens, tiny reaches 0.975 accuracy (full model 0.975), with 99.6 % fewer prefill FLOPs "
     "and 50 % less prefill time."),
])
def test_the_headline_has_a_form_for_every_case(records, sentence, run_dir):
    assert headline(group_records(records)[0]).sentence.replace("\u00a0", " ") == sentence
    report(run_dir(records))


def test_charts_hold_every_point_with_its_interval_and_the_full_model_line(run_dir):
    page = report(run_dir())
    results = next(e for e in page.elements if e.get("id") == "results")
    charts = [e for e in page.all("svg", class_="chart") if inside(e, results)]
    assert len(charts) == 4  # two axes, each in a wide and a narrow form
    for figure in charts:
        points = [e for e in page.elements if "data-tip" in e and inside(e, figure)]
        assert len(points) == len(RECORDS)
        assert sum("full model" in e["data-tip"] for e in points) == 1
        assert len([e for e in page.all("path", class_="whisker") if inside(e, figure)]) == 5
    tips = "\n".join(e["data-tip"] for e in page.elements if "data-tip" in e)
    assert "learnt\n12 of 64 image tokens\naccuracy 0.9700 (0.936 to 0.986)\n29 MFLOPs" in tips
    assert "learnt\n12 of 64 image tokens\naccuracy 0.9700 (0.936 to 0.986)\n2 ms" in tips
    assert [e["text"] for e in page.all("button") if "data-curve" in e] == ["learnt", "random"]


def test_higher_accuracy_is_drawn_higher_and_more_flops_further_right():
    svg = ElementTree.fromstring(chart(group_records(RECORDS)[0], "prefill_flops", legend=True))
    runs = [e.get("d") for e in svg.iter() if e.get("class") == "run"]
    places = [[float(v) for v in pair.split()] for pair in runs[1][1:].split("L")]  # learnt is drawn last, on top
    xs, ys = zip(*places, strict=True)
    assert list(xs) == sorted(xs) and ys[0] > ys[1] == ys[2]
    assert (xs[2] - xs[1]) / (xs[1] - xs[0]) == pytest.approx(11 / 9, rel=0.02)


def test_a_lone_chart_is_well_formed_and_says_its_names(tmp_path):
    path = write_chart_svg(RECORDS + [cell(HOSTILE, 4, 20, 30_000_000)], tmp_path / "deep" / "a.svg")
    root = ElementTree.parse(path).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and "Accuracy over prefill" in root.get("aria-label")
    texts = ["".join(e.itertext()) for e in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"learnt", "random", HOSTILE, "full model 0.975"} <= set(texts)
    assert "prefers-color-scheme" in path.read_text()
    with pytest.raises(ValueError, match="axis must be prefill_flops or prefill_ms, got 'x'"):
        write_chart_svg(RECORDS, tmp_path / "b.svg", axis="x")
    with pytest.raises(ValueError, match="no record has prefill_ms"):
        write_chart_svg([cell("a", 4, 20, 30)], tmp_path / "b.svg", axis="prefill_ms")
    with pytest.raises(ValueError, match="must leave one pair to draw, got digits with tiny, other with tiny"):
        write_chart_svg([*RECORDS, cell("a", 4, 2, 3, task="other")], tmp_path / "b.svg")
    assert not (tmp_path / "b.svg").exists()
    write_chart_svg([*RECORDS, cell("a", 4, 2, 3, task="other")], tmp_path / "b.svg", task="other")


def test_variants_of_a_method_are_told_apart_by_the_options_that_differ():
    records = [cell("fastv", 4, 90, 9, method_options={"layer": k, "rows": "last"}) for k in (2, 3)]
    records.append(cell("other", 4, 90, 9, method_options={"layer": 2}))
    assert [c.label for c in group_records(records)[0].curves] == ["fastv (layer=2)", "fastv (layer=3)", "other"]


def test_ticks_are_round_and_inside():
    assert ticks(0.18, 1.0, 6) == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0.961, 0.988, 6) == [0.965, 0.97, 0.975, 0.98, 0.985]
    for low, high in ((0, 1), (3, 3.001), (17, 940), (1e-5, 9e-5)):
        marks = ticks(low, high, 6)
        assert 2 <= len(marks) <= 7 and low - 1e-9 <= marks[0] and marks[-1] <= high + 1e-9
    assert [number(v) for v in (0, 29, 1234.6, 0.000123, 2.5)] == ["0", "29", "1235", "0.000123", "2.5"]


def test_sixteen_curves_differ_in_marker_or_colour_and_one_point_can_be_drawn():
    looks = {(slot % COLOURS, marker(slot, 0, 0, 4)) for slot in range(2 * COLOURS)}
    assert len(looks) == 2 * COLOURS
    assert "NaN" not in chart(group_records([cell("a", 4, 200, 7)])[0], "prefill_flops").replace("nan", "NaN")
    wide = [cell("a", keep, 100, 10**keep) for keep in (3, 6, 9)]
    assert "nan" not in chart(group_records(wide)[0], "prefill_flops")


# Machado et al., 2009, severity 1: what linear RGB looks like to eyes without one kind of cones.
SEEN = {"all": np.eye(3),
        "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
        "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]]}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour):
    value = np.array([int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    value = TO_XYZ @ np.clip(rgb, 0, 1) / TO_XYZ.sum(1)
    x, y, z = np.where(value > 0.008856, np.cbrt(value), 7.787 * value + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("eyes", SEEN)
@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_no_two_colours_look_alike_to_any_eyes(palette, eyes):
    places = [lab(np.array(SEEN[eyes]) @ linear(colour)) for colour in palette]
    assert len(palette) == COLOURS
    assert min(np.linalg.norm(a - b) for a, b in combinations(places, 2)) >= 12
