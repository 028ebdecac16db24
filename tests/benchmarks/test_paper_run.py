"""The small experiment from its first training to the page: interrupted, taken up again, refused, rendered."""

import json

import paper
import paper_words
import pytest
import readme

from budgetprune.evaluation import Record
from budgetprune.study.paper import run_paper

SMALL = {"tasks": ["digits", "shapes"],
         "methods": ["adaptive", "adaptive_query", "fastv", "pooling_projector", "uniform"],
         "settings": ["baseline", "estimator=fermi", "gate=features", "gate=noise"], "seeds": 1, "steps": 1,
         "samples": 6, "workers": 0}
TRAININGS = 4 + 2 + 3 + 2 * 2  # ablations, the question, one compressor at three counts, two methods on two tasks


def files(out, pattern):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob(pattern) if path.is_file()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, {call: what was told}, what stood there when the first call was interrupted, seconds then)."""
    out, told = tmp_path_factory.mktemp("paper"), {"first": [], "second": []}

    def until_the_second(*seen):
        told["first"].append(seen)
        if seen[:2] == ("trainings", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_paper(out, **SMALL, tell=until_the_second)
    before = files(out, "*.safetensors") | files(out, "records.jsonl")
    seconds = json.loads((out / "work.json").read_text())["seconds"]
    run_paper(out, **SMALL, tell=lambda *seen: told["second"].append(seen))
    return out, told, before, seconds


def test_what_was_done_before_the_interruption_is_not_done_again(run):
    out, told, before, _ = run
    assert len(before) == 4 and told["first"][0][:3] == ("trainings", 0, TRAININGS)
    assert told["second"][0][:3] == ("trainings", 2, TRAININGS)
    assert before.items() <= (files(out, "*.safetensors") | files(out, "records.jsonl")).items()
    assert (out / "methods" / "shapes" / "report.html").is_file()


def test_its_seconds_are_those_of_both_calls(run):
    out, _, _, seconds = run
    result = json.loads((out / "paper.json").read_text())
    assert 0 < seconds < result["seconds"] <= json.loads((out / "work.json").read_text())["seconds"]


def test_the_result_holds_every_part(run):
    result = json.loads((run[0] / "paper.json").read_text())
    assert {"command", "seeds", "steps", "samples", "seconds", "commit", "torch", "device", "time"} < result.keys()
    cells = {name: {(c.get("task"), c.get("variant") or c["method"], c["keep"]) for c in result[name]}
             for name in ("ablations", "against baseline", "against gate=features", "against estimator=fermi", "floor",
                          "question", "compressors", "trained", "against training-free")}
    assert cells["ablations"] == {("digits", name, k) for name in SMALL["settings"] for k in (2, 4, 8, 12)}
    assert cells["against baseline"] == {cell for cell in cells["ablations"] if cell[1] != "baseline"}
    assert {name for _, name, _ in cells["against gate=features"]} == set(SMALL["settings"]) - {"gate=features"}
    assert cells["floor"] == {("digits", "random", k) for k in (2, 4, 8, 12)}
    assert cells["question"] == {("digits", name, k) for name in ("the image alone", "the question too")
                                 for k in (1, 2, 4, 8, 16)}
    assert cells["compressors"] == {("digits", "pooling_projector", k) for k in (1, 4, 16)}
    assert cells["trained"] == cells["against training-free"] == {
        (task, name, k) for task in SMALL["tasks"] for name in ("adaptive", "adaptive_query")
        for k in (4, 8, 12, 16, 24, 32)}
    assert {c["best"] for c in result["against training-free"]} == {"uniform"}  # fastv acts inside, the rest is trained
    for task in SMALL["tasks"]:
        page = [Record(**row) for row in result["methods"][task]]
        assert {r.method for r in page} == {"none", "adaptive", "adaptive_query", "fastv", "uniform"}
        trained = {(c["variant"], c["keep"]): c["value"] for c in result["trained"] if c["task"] == task}
        own = {(r.method, r.keep): r.accuracy for r in page if not r.method_options.get("count")}
        assert all(own[cell] == value for cell, value in trained.items())  # of the one seed, asked the same twice


def test_the_command_takes_a_finished_run_over_and_says_how_long_it_took(run, words):
    out = run[0]
    before = files(out, "*.safetensors") | files(out, "records.jsonl") | files(out, "answers.jsonl")
    code, said = words("paper", "--out", out, *options())
    assert code == 0 and "minutes of work" in said, said
    assert before == files(out, "*.safetensors") | files(out, "records.jsonl") | files(out, "answers.jsonl")


@pytest.mark.parametrize("other, refused", [
    ({"steps": 2}, "steps must be 1, which the run in"), ({"samples": 8}, "samples must be 6"),
    ({"seeds": 2}, "seeds must be 1"), ({"tasks": "digits"}, "tasks must be digits,shapes"),
    ({"settings": "gate=features"}, "settings must hold baseline"), ({"settings": "x"}, "settings must be one of"),
    ({"methods": "fastvv"}, "fastvv")])
def test_another_run_in_the_same_folder_is_refused_before_anything_is_touched(run, words, other, refused):
    before = files(run[0], "*")
    code, said = words("paper", "--out", run[0], *options(**other))
    assert code == 2 and refused in said, said
    assert before == files(run[0], "*")


def options(**other):
    """SMALL as the command line has it."""
    texts = {name: ",".join(value) if isinstance(value, list) else value for name, value in SMALL.items()} | other
    return [word for name, value in texts.items() for word in (f"--{name}", value)]


def test_every_block_of_the_page_can_be_made_of_it(run, monkeypatch):
    monkeypatch.setattr(paper, "RESULTS", run[0] / "paper.json")
    page = readme.render_experiment((readme.ROOT / "docs" / "experiment.md").read_text())
    for name in paper.BLOCKS | paper_words.BLOCKS:
        block = page.split(f"<!-- generated: {name} -->\n")[1].split("<!-- end -->")[0]
        assert block.strip() and "nan" not in block, name
    assert "All of it took" in page and "`pooling_projector`" in page and "### `shapes`" in page


@pytest.mark.parametrize("cells, said", [
    ([(4, 0.2, 0.1, 0.3), (8, 0.1, 0.0, 0.2)], "ahead at K = 4, by 0.200; not to be told from it at K = 8"),
    ([(4, -0.2, -0.3, -0.1), (8, -0.25, -0.3, -0.2)], "behind at K = 4 and 8, by up to 0.250"),
    ([(4, 0.2, -0.1, 0.3)], "not to be told from it at K = 4")])
def test_words_follow_the_intervals(cells, said):
    assert paper_words.standing([dict(zip(("keep", "value", "low", "high"), cell)) for cell in cells]) == said


@pytest.mark.parametrize("half, said", [(0.1, "ahead at K = 4, by 0.200"),
                                        (0.2, "not to be told from it at K = 4"),
                                        (None, "not to be told from it at K = 4")])
def test_one_training_is_no_evidence_and_an_interval_that_touches_zero_neither(half, said):
    assert paper_words.standing([{"keep": 4, "value": 0.2, "half": half}]) == said
