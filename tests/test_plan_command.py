"""`budgetprune plan`: what it answers, from the published points and from records, and every wrong turn."""

import math
from functools import partial
from xml.etree import ElementTree

import pytest

from budgetprune.cost import best_tokens, fit_scaling, plan_budget, published_points
from budgetprune.evaluation import Record, append, scaling_points, write_plan_svg


@pytest.fixture
def plan(words):
    """plan("--task", "ocr") -> (exit code, the words that were printed)."""
    return partial(words, "plan")


def record(model, keep, accuracy, method="pooling", task="digits", **options):
    return Record(task, model, method, keep, accuracy, (accuracy, accuracy), 100, 0, **options)


@pytest.fixture
def runs(tmp_path):
    """Two folders, of a small and of a large model: error = 0.3 N^-0.2 V^-0.1, save for what a second method did."""
    for model, size in (("small", 1), ("large", 10)):
        for keep in (1, 4, 16, 64):
            method = "none" if keep == 64 else "pooling"
            append(tmp_path / model / "records.jsonl",
                   record(model, keep, 1 - 0.3 * size**-0.2 * keep**-0.1, method))
    append(tmp_path / "small" / "records.jsonl", record("small", 4, 0.1, "fastv", layer_mean=19.0))
    return tmp_path


def test_it_says_what_was_fitted_what_is_best_and_how_sure_that_is(plan):
    code, said = plan("--flops", "2e12", "--text-tokens", 50)
    assert code == 0
    for words in ("visual-reasoning, published points: n = 28, SSE 0.000379", "│ alpha │ 0.0709 │", "│ 0.077 │",
                  "│ D │ 0.0000 │", "Without its 7 B points", "0.45%", "predicted for 2e+12 FLOPs, 50 text tokens",
                  "Extrapolated: ", "lie outside the 0.5 to 7 that were measured", "image tokens, which covers noise"):
        assert words in said, words
    found = plan_budget(fit_scaling(published_points()), 2e12, 50)
    assert f"│ best │ {found.best.size:.3g} │ {found.best.tokens} │ 2e+12 │ {found.best.error:.4f} │" in said


def test_it_picks_of_the_sizes_that_exist(plan):
    code, said = plan("--flops", "2e12", "--sizes", "0.5,1.8,4,7,14,72")
    assert code == 0 and "│ best │ 14 │ 21 │" in said and "│ │ 7 │ 92 │" in said and "│ │ 0.5 │ 576 │" in said
    assert "│ │ 72 │ none │ │ too large │" in said and "of the bootstrap fits take the same model" in said
    assert "│ best │ 7 │ 92 │" in plan("--flops", "2e12", "--sizes", "0.5 7")[1]


def test_ocr_takes_as_many_tokens_as_there_are_and_says_what_is_doubtful(plan):
    code, said = plan("--task", "ocr")
    assert code == 0 and "n = 27" in said and "│ 576 │" in said and "published │" not in said.split("n = 27")[1]
    assert "and more tokens than the most allowed would be better still; bootstrap fits take 576 image" in said
    assert "7B with 576 tokens is left out" in said and "4B with 4 tokens is doubtful" in said


def test_your_own_records_are_fitted(plan, runs):
    files = ("--records", runs / "small", "--records", runs / "large" / "records.jsonl", "--method", "pooling",
             "--model-size", "small=1", "--model-size", "large=10")
    code, said = plan(*files, "--flops", "1e12", "--text-tokens", 20)
    assert code == 0 and "your records: n = 8" in said and "│ alpha │ 0.2000 │" in said and "│ beta │ 0.1000 │" in said
    assert "│ best │ 12.5 │ 20 │" in said and "Without" not in said  # V = 0.1 x 20 / (0.2 - 0.1)


def test_points_of_records_are_tokens_over_layers_and_errors(runs):
    sizes = {"small": 1, "large": 10}
    points = scaling_points([runs / "small", runs / "large"], sizes, method="fastv")
    assert [(p.size, p.tokens) for p in points] == [(1, 64), (1, 19), (10, 64)]
    assert points[1].error == pytest.approx(0.9)
    append(runs / "large" / "records.jsonl", record("large", 12, 0.5, "prumerge", kept_mean=11.7))
    assert 11.7 in [p.tokens for p in scaling_points([runs / "large"], {"large": 10}, method="prumerge")]


@pytest.mark.parametrize(("arguments", "match"), [
    (("--flops", "0"), "flops must be above 0, got 0"),
    (("--flops", "much"), "'--flops'"),
    (("--text-tokens", "-1"), "text_tokens must be at least 0, got -1"),
    (("--sizes", "small,large"), "sizes must hold numbers such as 0.5,1.8,4, got 'small,large'"),
    (("--sizes", "7,-1"), "sizes must be above 0, got -1"),
    (("--sizes", "72", "--flops", "1e9"), "flops must pay for an image token beside 50 text tokens"),
    (("--most", "0"), "most must be at least 1, got 0"),
    (("--task", "chess"), "task must be one of 'visual-reasoning', 'ocr', got 'chess'"),
    (("--model-size", "a=1"), "model-size must come with records"),
    (("--method", "fastv"), "method must come with records"),
    (("--records", "nowhere.jsonl"), "no records in nowhere.jsonl"),
    (("--records", "small", "--records", "large"), "method must be one of fastv, pooling: the law is of one method"),
    (("--records", "small", "--method", "tome"), "method must be one of fastv, pooling, those of the records"),
    (("--records", "small", "--task", "ocr"), "task must be one of digits, those of the records, got 'ocr'"),
    (("--records", "small", "--method", "pooling"), "model-size must give the billions of small, as in small=7"),
    (("--records", "small", "--method", "pooling", "--model-size", "small"), "must be MODEL=BILLIONS"),
    (("--records", "small", "--method", "pooling", "--model-size", "small=1", "--model-size", "tiny=1"),
     "model-size must be of models in the records (small), got tiny"),
    (("--records", "small", "--method", "pooling", "--model-size", "small=1"), "at least 2 model sizes, got 1"),
    (("--records", "large", "--model-size", "large=none"), "model-size must hold numbers"),
])
def test_wrong_arguments_get_one_clear_line_and_exit_code_two(plan, runs, monkeypatch, arguments, match):
    monkeypatch.chdir(runs)
    code, said = plan(*arguments)
    assert code == 2 and match in said and "Traceback" not in said


def test_a_cell_that_kept_nothing_is_refused(tmp_path):
    append(tmp_path / "records.jsonl", record("m", 0, 0.5))
    with pytest.raises(ValueError, match="at least one image token, m with pooling kept none"):
        scaling_points([tmp_path], {"m": 7})


def test_the_picture_marks_the_minimum_where_the_formula_says(plan, tmp_path):
    path = tmp_path / "deep" / "plan.svg"
    code, said = plan("--flops", "3e12", "--text-tokens", 200, "--out", path)
    assert code == 0 and f"chart: {path}" in said
    root = ElementTree.parse(path).getroot()
    named = {e.get("class"): e for e in root.iter() if e.get("class")}
    fit = fit_scaling(published_points(), draws=0)
    at = best_tokens(fit.alpha, fit.beta, 200, 576)
    assert abs(int(named["callout minimum"].get("data-tokens")) - at) < 1
    ticks = [(math.log(float(e.text)), float(e.get("x"))) for e in root.iter() if e.get("class") == "count"]
    (v0, x0), (v1, x1) = ticks[0], ticks[-1]
    ring = next(e for e in named["callout minimum"] if e.tag.endswith("circle"))
    assert v0 + (float(ring.get("cx")) - x0) / (x1 - x0) * (v1 - v0) == pytest.approx(math.log(at), abs=0.05)
    runs = [e for group in root.iter() if group.get("class") == "curve c0 first" for e in group
            if e.get("class") == "run" and "L" in e.get("d")]
    line = [tuple(map(float, pair.split())) for e in runs for pair in e.get("d")[1:].split("L")]
    assert [bool(e.get("stroke-dasharray")) for e in runs] == [True, False]
    seven = math.log(3e12 / (2e9 * 7) - 200)  # with fewer tokens the model is larger than any that was measured
    end = float(runs[0].get("d").split("L")[-1].split()[0])
    assert v0 + (end - x0) / (x1 - x0) * (v1 - v0) == pytest.approx(seven, abs=0.05)
    assert float(ring.get("cy")) == pytest.approx(max(y for _, y in line), abs=0.02)  # the lowest error of the curve
    grey = [e for group in root.iter() if "measured" in group.get("class", "") for e in group]
    assert sum(e.get("class") == "mark" for e in grey) == 28 and len(grey) == 28 + 4


def test_a_picture_of_few_tokens_and_of_chosen_sizes_is_well_formed(tmp_path):
    points = published_points()
    fit = fit_scaling(points, draws=0)
    for most, sizes in ((1, None), (9, [1, 7]), (2880, [0.5, 14, 400])):
        found = plan_budget(fit, 4e12, 0, sizes=sizes, most=most)
        root = ElementTree.parse(write_plan_svg(found, fit, points, tmp_path / f"{most}.svg")).getroot()
        assert sum("minimum" in e.get("class", "") for e in root.iter()) == 1
        assert root.get("aria-label").startswith("Predicted error over image tokens at 4 TFLOPs, 0 text tokens")
