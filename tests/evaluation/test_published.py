"""Published figures: restated with their source, named published wherever they stand, and never mixed."""

import re

import pytest
from sample_run import RECORDS, cell, inside, report

from budgetprune.evaluation.published import full_of, is_published_model, published, references, relative
from budgetprune.evaluation.published_chart import apart, panel
from budgetprune.selectors import available

SOURCES = published()["sources"]


def rows(source, **fields):
    return [row for row in published()["scores"] if row["source"] == source
            and all(row[name] == value for name, value in fields.items())]


def test_every_row_names_a_source_and_whether_others_measured_it():
    for row in published()["relative"] + published()["scores"]:
        assert row["source"] in SOURCES and isinstance(row["third_party"], bool)
        assert row["ours"] is None or row["ours"] in available()
        assert 0 < row["tokens"] <= 576
    for source in SOURCES.values():
        assert source["title"] and source["where"] and source["read_from"] in ("picture", "text", "secondary")
    assert {row["source"] for row in published()["relative"] + published()["scores"]} == set(SOURCES)


@pytest.mark.parametrize("method, detail, percent", [
    ("AdaLLaVA-L", "trained; budget 60 %", 95.7), ("AdaLLaVA-H", "trained; budget 60 %", 96.4),
    ("PruMerge+", "fine-tuned", 99.0), ("FastV and AdaLLaVA-H", "trained; budget 60 %", 95.6),
    ("PruMerge+ and AdaLLaVA-L", "trained; budget 100 %", 97.8), ("LLaVA-1.5", "all tokens, all layers", 100.0)])
def test_relative_accuracy_is_the_mean_of_the_six_ratios(method, detail, percent):
    """The percentages were worked out apart from the code, from the same table."""
    row, = rows("adallava", method=method, detail=detail)
    assert round(relative(row), 1) == percent


def test_a_row_without_all_scores_or_a_full_model_has_no_relative_accuracy():
    single, = rows("fastv-paper", tokens=144)
    assert relative(single) is None
    quoted, = rows("prumerge-training-free")
    assert full_of(quoted) is None and relative(quoted) is None
    large, = rows("prumerge", method="PruMerge", model="LLaVA-1.5-13B")
    assert full_of(large)["model"] == "LLaVA-1.5-13B" and 90 < relative(large) < 95


@pytest.mark.parametrize("name, known", [
    ("llava-1.5-7b-hf", True), ("llava-v1.5-7b", True), ("llava-hf/llava-1.5-7b-hf", True), ("LLaVA_1.5_7B", True),
    ("llava-1.5-13b-hf", False), ("digits-llava", False), ("llava-v1.6-vicuna-7b-hf", False), ("vip-llava-7b", False)])
def test_only_the_published_model_has_references(name, known):
    assert is_published_model(name) is known
    assert bool(references("gqa:testdev", name)) is known


def test_references_are_of_their_own_task_and_score():
    pope = references("pope:coco_pope_popular", "llava-1.5-7b-hf")
    assert {point["metric"] for point in pope} == {"f1"}
    assert {(p["method"], p["tokens"], round(p["score"], 4)) for p in pope} == {
        ("LLaVA-1.5", 576, 0.859), ("PruMerge+", 144, 0.84), ("FastV", 288, 0.825), ("PruMerge", 36, 0.763),
        ("PruMerge", 36, 0.707)}
    assert all(p["said"][0] == "published, not measured here" for p in pope)
    assert [p["said"][-1].endswith("(third party)") for p in pope if p["score"] < 0.75] == [True]
    text = references("textvqa:TextVQA_0.5.1_val,suffix=x", "llava-1.5-7b-hf")
    assert {point["metric"] for point in text} == {None} and "with OCR tokens" in text[0]["said"][2]
    counted = references("lmms:pope", "llava-1.5-7b-hf")
    assert {point["metric"] for point in counted} == {"pope_f1_score"} and len(counted) == len(pope)
    assert {p["score"] for p in references("lmms:vqav2", "llava-1.5-7b-hf")} > {0.785, 0.72}
    assert references("digits", "llava-1.5-7b-hf") == [] == references("shapes", "llava-1.5-7b-hf")


def test_methods_that_skip_layers_are_no_points_over_tokens():
    for task in ("pope:a", "textvqa:a", "scienceqa:a", "gqa:a"):
        assert not [p for p in references(task, "llava-1.5-7b") if "AdaLLaVA" in p["method"]]
        assert not [p for p in references(task, "llava-1.5-7b") if "SmartVL" in p["method"]]
    for row in published()["scores"]:
        assert row.get("skips_layers", False) == ("AdaLLaVA" in row["method"] or row["method"] == "SmartVL")


def test_smartvl_is_restated_at_second_hand_with_what_its_paper_says_of_adallava(run_dir):
    own, theirs, merged = rows("smartvl", model="LLaVA-1.5-7B")
    assert own["scores"] == {"VQAv2": 74.4, "TextVQA": 54.4, "VizWiz": 55.1, "MMB": 62.0} and not own["third_party"]
    assert theirs["scores"] == {"VQAv2": 67.9, "TextVQA": 29.8, "VizWiz": 34.3, "MMB": 63.3} and theirs["third_party"]
    assert merged["method"] == "AdaLLaVA-PruMerge" and merged["scores"] == {"VQAv2": 74.5}
    large = rows("smartvl", model="LLaVA-1.5-13B")
    assert [figure in row["detail"] for figure, row in zip(("7.25 T", "8.27 T"), large, strict=True)] == [True, True]
    assert [(row["method"], row["scores"]) for row in large] == [("SmartVL", {"VQAv2": 75.45}),
                                                                 ("AdaLLaVA", {"VQAv2": 72.27})]
    shown = [row for row in report(run_dir()).rows("published") if "SmartVL" in row[5]]
    assert len(shown) == 5 and all("at second hand" in row[5] and row[3] == "\u2013" for row in shown)
    assert [row[4] for row in shown] == ["its authors", "third party", "third party", "its authors", "third party"]


def test_every_panel_is_of_one_source_and_says_that_it_is_published(run_dir):
    page = report(run_dir())
    figures = [e for e in page.all("figure") if e["parent"].get("class") == "panels"]
    sources = [key for key in SOURCES if any(row["source"] == key for row in published()["relative"])]
    assert len(figures) == len(sources) + 1 and {"T1", "T2", "T3", "T4", "T5"} <= set(sources)
    for figure in figures:
        assert "published, not measured here" in [e["text"] for e in page.all("p", class_="stamp") if inside(e, figure)]
        tips = [e["data-tip"].split("\n") for e in page.elements if "data-tip" in e and inside(e, figure)]
        assert tips and len({source_of(tip) for tip in tips}) == 1
    for key, figure in zip(sources, figures):
        drawn = [e for e in page.elements if "data-tip" in e and inside(e, figure)]
        assert len(drawn) == sum(row["source"] == key for row in published()["relative"])


def source_of(tip):
    return next(source["title"] for source in SOURCES.values() if source["title"] in tip)


def test_no_chart_of_a_run_has_a_published_point_that_is_not_of_its_task(run_dir):
    page = report(run_dir([*RECORDS, cell("fastv", 128, 150, 9, task="gqa:x", model="llava-1.5-7b")]))
    for group in page.all("div", class_="group"):
        assert not [e for e in page.elements if "published" in e.get("class", "") and inside(e, group)]


def test_all_rows_are_in_the_table_with_their_source(run_dir):
    table = report(run_dir()).rows("published")
    assert len(table) == 1 + len(published()["relative"]) + len(published()["scores"])
    assert all(len(row) == 6 for row in table)
    assert ["T2" not in row[5] and "SIEVE paper" in row[5] for row in table if row[0] == "SCOPE"] == [True] * 3
    single, = (row for row in table if row[0].startswith("PruMerge") and "training-free" in row[0] and "70.7" in row[2])
    assert single[3:5] == ["\u2013", "third party"] and "at second hand" in single[5]


def test_labels_keep_apart_and_close_to_their_lines():
    places = apart({"a": 50, "b": 51, "c": 52, "d": 200}, 0, 205)
    assert places == {"a": 50, "b": 63, "c": 76, "d": 200}
    low = apart({"a": 99, "b": 98, "c": 97}, 0, 100)
    assert [low[name] for name in "cba"] == [74, 87, 100]
    tight = apart({name: 5 for name in "abcdef"}, 0, 20)
    assert sorted(tight.values()) == pytest.approx([0, 4, 8, 12, 16, 20])


def test_fewer_tokens_stand_further_right_in_a_panel():
    svg = panel({"m": [(192, 98.0, "t"), (64, 90.0, "t")]}, "title", "fewer tokens")
    places = [tuple(map(float, at)) for at in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)]
    assert places[0][0] < places[1][0] and places[0][1] < places[1][1]
