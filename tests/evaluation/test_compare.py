"""Which cells are compared, with what they answered, and what is refused."""

import json

import pytest
from sample_run import HOSTILE, Page, cell

from budgetprune.evaluation import answers, record
from budgetprune.evaluation.answers import Answer
from budgetprune.evaluation.compare import compare
from budgetprune.evaluation.paired import paired

FULL = [True, True, True, True, True, False]
RANDOM = [True, False, False, False, False, True]
LEARNT = [True, True, True, True, False, True]


def put(folder, method, keep, scores, **more):
    """A cell with its answers: two questions an image, named q0, q1, ..."""
    names = more.pop("names", [f"q{n}" for n in range(len(scores))])
    images, asked = more.pop("images", True), more.pop("asked", "what is {}?")
    r = cell(method, keep, sum(scores), samples=len(scores), **more)
    answers.write(folder, [Answer(r.key(), name, "right" if s else "wrong", s, f"image {n // 2}" if images else None,
                                  asked.format(name), "right") for n, (name, s) in enumerate(zip(names, scores))])
    record.append(folder / "records.jsonl", r)
    return r


@pytest.fixture
def run(tmp_path):
    put(tmp_path / "run", "none", 64, FULL)
    put(tmp_path / "run", "random", 8, RANDOM)
    put(tmp_path / "run", "learnt", 8, LEARNT, method_options={"fraction": 0.125})
    return tmp_path / "run"


def labels(found):
    return [(c.a.task, c.a.method, c.a.keep, c.b.method, c.b.keep) for c in found]


def test_one_run_is_compared_with_its_full_model(run):
    found, notes = compare(run)
    assert labels(found) == [("digits", "none", 64, "random", 8), ("digits", "none", 64, "learnt", 8)] and not notes
    images = [n // 2 for n in range(6)]
    assert [c.result for c in found] == [paired(FULL, RANDOM, images), paired(FULL, LEARNT, images)]
    assert (found[0].result.only_a, found[0].result.only_b, found[0].result.images) == (4, 1, 3)
    # The images' sums of differences are -1, -2, 0: two of four signs are as far as -3; then 0, -1, 1: all are.
    assert [c.result.p for c in found] == [0.5, 1.0] and [c.holm for c in found] == [1.0, 1.0]


def test_examples_are_questions_that_one_answered_better(run):
    (found,), _ = compare(run, a="none", b="random@8", examples=2)
    assert [(e.sample, e.a, e.b, e.question, e.answer, e.image) for e in found.examples] == [
        ("q1", "right", "wrong", "what is q1?", "right", "image 0"),
        ("q2", "right", "wrong", "what is q2?", "right", "image 1"),
        ("q5", "wrong", "right", "what is q5?", "right", "image 2")]
    assert not compare(run, b="random@8", examples=0)[0][0].examples


@pytest.mark.parametrize("options, expected", [
    ({"a": "random@8", "b": "learnt@0.125"}, [("random", "learnt")]),
    ({"a": "random"}, [("random", "none"), ("random", "learnt")]),
    ({"b": "learnt"}, [("none", "learnt")]),
    ({"keep": "0.125"}, [("none", "learnt")]),
    ({"keep": "8"}, [("none", "random")]),
    ({"method": "random", "task": "digits"}, [("none", "random")]),
    ({"b": "learnt(fraction=0.125)"}, [("none", "learnt")]),
])
def test_cells_are_named_as_methods_at_budgets(run, options, expected):
    assert [(c.a.method, c.b.method) for c in compare(run, **options)[0]] == expected


def test_two_runs_are_compared_where_they_share_cells(run, tmp_path):
    other = tmp_path / "other"
    put(other, "random", 8, LEARNT)
    put(other, "learnt", 8, FULL, method_options={"fraction": 0.125, "weights": "later"})
    put(other, "fastv", 8, FULL)
    found, notes = compare(run, other)
    assert labels(found) == [("digits", "random", 8, "random", 8), ("digits", "learnt", 8, "learnt", 8)]
    assert notes == ["none@64 of digits (6 questions of seed 0): only in the first run",
                     "fastv@8 of digits (6 questions of seed 0): only in the second run"]
    assert found[0].result == paired(RANDOM, LEARNT, [0, 0, 1, 1, 2, 2])
    (named,), _ = compare(run, other, a="random@8", b="random@8")  # the same cell of two runs
    assert named.result == found[0].result
    (named,), _ = compare(run, other, a="none", b="fastv@8")
    assert (named.result.a, named.result.b) == (pytest.approx(5 / 6), pytest.approx(5 / 6))


def test_every_task_and_seed_is_compared_with_its_own(run):
    for task, seed in (("pope:popular", 0), ("digits", 1)):
        put(run, "none", 64, FULL, task=task, seed=seed)
        put(run, "random", 8, RANDOM, task=task, seed=seed)
    assert [(c.a.task, c.a.seed, c.b.task, c.b.seed) for c in compare(run, b="random@8")[0]] == [
        ("digits", 0, "digits", 0), ("pope:popular", 0, "pope:popular", 0), ("digits", 1, "digits", 1)]
    assert [c.b.task for c in compare(run, b="random@8", task="pope")[0]] == ["pope:popular"]


def test_scores_in_between_and_answers_of_unknown_images(tmp_path):
    for method, scores in (("none", [0.3, 1.0, 0.0, 0.6]), ("random", [0.0, 1.0, 0.3, 0.3])):
        put(tmp_path, method, 8, scores, images=False)
    (found,), notes = compare(tmp_path)
    assert found.result == paired([0.3, 1.0, 0.0, 0.6], [0.0, 1.0, 0.3, 0.3]) and found.result.images == 4
    assert notes == ["digits: the answers do not name their images, so every question counts by itself"]
    assert [e.sample for e in found.examples] == ["q0", "q3", "q2"]


def refused(folder, match, *arguments, **options):
    with pytest.raises(ValueError, match=match):
        compare(folder, *arguments, **options)


def test_other_questions_are_refused(run, tmp_path):
    put(tmp_path / "seed", "random", 8, RANDOM, seed=1)
    refused(run, r"the runs must share a cell, got digits \(6 questions of seed 0\) against digits \(6 questions of "
            r"seed 1\)", tmp_path / "seed")
    refused(run, r"asked the same questions, got digits \(6 questions of seed 0\) against digits \(6 questions of "
            r"seed 1\)", tmp_path / "seed", a="random", b="random")
    put(tmp_path / "task", "random", 8, RANDOM, task="digits,noise=0.5")
    refused(run, r"against digits,noise=0.5 \(6 questions of seed 0\)", tmp_path / "task")
    put(tmp_path / "names", "random", 8, RANDOM, names=["q0", "q1", "q2", "q3", "q4", "q7"])
    refused(run, "random@8 and random@8 must have answered the same questions of digits, but 2 are in one of them "
            "only, such as 'q5'", tmp_path / "names")
    put(tmp_path / "asked", "random", 8, RANDOM, asked="why {}?")
    refused(run, r"question 'q0' of digits has the question 'what is q0\?' and 'why q0\?'", tmp_path / "asked")


def test_what_cannot_be_named_is_refused(run, tmp_path):
    refused(run, r"a must be one of the cells none@64, random@8, learnt@0.125; got 'random@9'", a="random@9")
    refused(run, r"b must be a cell such as fastv@64, .* got '@@'", b="@@")
    put(run, "learnt", 8, RANDOM, method_options={"fraction": 0.125, "layer": 3})
    refused(run, r"a must name one cell of digits, got learnt\(fraction=0.125\)@0.125 of tiny; "
            r"learnt\(fraction=0.125,layer=3\)@0.125 of tiny", a="learnt")
    refused(run, "b must name one cell of digits", b="learnt@0.125")
    assert compare(run, b="learnt(layer=3)@0.125")[0][0].result.only_b == 1
    refused(tmp_path / "nowhere", "no records in .*records.jsonl: `budgetprune eval` makes them")
    record.append(tmp_path / "bare" / "records.jsonl", cell("none", 64, 5, samples=6))
    record.append(tmp_path / "bare" / "records.jsonl", cell("random", 8, 5, samples=6))
    refused(tmp_path / "bare", "answers.jsonl must hold the answers of none@64, digits, got none")
    refused(run, "a and b must be different cells", a="none", b="none")
    refused(run, "task must be one that the runs have, digits; got 'nosuch'", task="nosuch")
    refused(run, "method must be one that the runs have, none, random, learnt; got 'nosuch'", method="nosuch")
    refused(run, "keep must be one that the runs have, 64, 8, 0.125; got 'nan'", keep="nan")


def test_the_command_shows_a_table_and_writes_json_and_a_page(run, words, tmp_path):
    put(run, "fastv", 8, RANDOM, asked=HOSTILE.replace("{1}", "") + "{}")
    put(run, "fastv", 16, LEARNT, asked=HOSTILE.replace("{1}", "") + "{}")
    code, said = words("compare", run, "--method", "random", "--html", tmp_path / "page.html")
    assert code == 0 and "where they differ" in said
    assert "digits │ none@64 │ random@8 │ 0.8333 │ 0.3333 │ -0.5000 │" in said
    written = json.loads((run / "compare.json").read_text())
    assert written["runs"] == [str(run)] * 2 and written["notes"] == []
    (one,) = written["comparisons"]
    assert (one["difference"], one["only_a"], one["only_b"], one["images"]) == (-0.5, 4, 1, 3)
    assert one["a"]["method"] == "none" and one["holm"] == one["p"] and len(one["examples"]) == 5
    page = Page((tmp_path / "page.html").read_text())
    assert page.rows()[1][:6] == ["digits", "none@64", "random@8", "0.8333", "0.3333", "-0.5000"]
    assert ["q5", "what is q5?", "right", "wrong (0)", "right (1)"] in page.rows("examples")
    code, said = words("compare", run, "--a", "fastv@8", "--b", "fastv@16", "--out", tmp_path / "x" / "c.json",
                      "--html", tmp_path / "hostile.html")
    assert code == 0 and (tmp_path / "x" / "c.json").exists()
    page = Page((tmp_path / "hostile.html").read_text())
    said = [text for row in page.rows("examples") for text in row]
    assert not page.all("script") and any(HOSTILE.replace("{1}", "") in text for text in said)


def test_several_comparisons_show_what_remains_after_all_of_them(run, words):
    code, said = words("compare", run)
    assert code == 0 and "p of all (Holm)" in said and "where they differ" not in said
    code, said = words("compare", run, "--a", "learnt@9")
    assert code == 2 and "got 'learnt@9'" in said
    code, said = words("compare", run, "--examples", "-1")
    assert code == 2 and "examples must be at least 0, got -1" in said


def test_runs_of_earlier_versions_are_read(run, tmp_path):
    line = json.loads((run / "answers.jsonl").read_text().splitlines()[0])
    old = {name: line[name] for name in ("cell", "sample", "prediction", "score")}
    assert Answer.from_json(json.dumps(old)) == Answer(tuple(line["cell"]), "q0", "right", True)
    for wrong in ({**old, "mood": "good"}, {"cell": []}):
        with pytest.raises(ValueError, match="an answer must be a JSON object of cell, prediction, sample, score"):
            Answer.from_json(json.dumps(wrong))
