"""Several pruners of one method in one run: named on the command line, told apart everywhere after it."""

import json
import re

import pytest

import budgetprune
from budgetprune.evaluation import record
from budgetprune.evaluation.config import EvalConfig, rounds_of
from budgetprune.evaluation.summary import group_records, option_labels
from budgetprune.training.base_model import build_base


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Option A and Option B, as they begin, and a compressor."""
    made, (model, _) = {}, build_base()
    for name, method, options in (("inside", "adaptive", {"fusion": "encoder"}), ("behind", "adaptive", {}),
                                  ("pooled", "pooling_projector", {})):
        made[name] = tmp_path_factory.mktemp("pruners") / name
        with budgetprune.prune(model, method, keep=16, **options) as pruning:
            pruning.save_pretrained(made[name])
    return made


def test_two_pruners_of_one_method_stand_in_one_run_and_are_told_apart(words, folders, tmp_path):
    out = tmp_path / "run"
    pruners = ("--pruner", f"A={folders['inside']}", "--pruner", f"B={folders['behind']}")
    arguments = ("eval", "-m", "none,adaptive", "-k", "8", "--samples", 4, "--latency-batch", 0, "--out", out)
    code, said = words(*arguments, *pruners)
    assert code == 0 and "adaptive (label=A) │ 8" in said and "adaptive (label=B) │ 8" in said, said
    found = record.read(out / "records.jsonl")
    assert [(r.method, r.method_options.get("label"), r.method_options.get("fusion")) for r in found] == [
        ("none", None, None), ("adaptive", "A", "encoder"), ("adaptive", "B", "post")]
    before = (out / "records.jsonl").read_bytes()
    assert words(*arguments, *pruners)[0] == 0
    assert (out / "records.jsonl").read_bytes() == before, "the same call has nothing left to do"
    assert words(*arguments, *pruners, "--pruner", f"C={folders['behind']}")[0] == 0
    assert [r.method_options.get("label") for r in record.read(out / "records.jsonl")] == [None, "A", "B", "C"]

    code, said = words("compare", out, "--a", "adaptive(label=A)@8", "--b", "adaptive(label=B)@8")
    assert code == 0 and "adaptive(label=A)@8 │ adaptive(label=B)@8" in said, said
    code, said = words("compare", out, out, "--method", "adaptive")
    assert code == 0 and said.count("adaptive(label=B)@8") == 2
    assert words("report", out)[0] == 0
    page = (out / "report.html").read_text()
    for label in "ABC":
        assert re.search(rf'<th scope="row"><i class="c\d"></i>adaptive \(label={label}\)</th>', page)
    shown = [json.loads(line)["method"] for line in (out / "pictures.jsonl").read_text().splitlines()]
    assert set(shown) == {"none", *(f"adaptive (label={label})" for label in "ABC")}


def test_beginning_anew_keeps_what_the_same_run_has_measured(words, folders, tmp_path):
    for _ in range(2):
        code, said = words("eval", "-m", "adaptive", "-k", "8", "--samples", 2, "--latency-batch", 0, "--out", tmp_path,
                           "--pruner", f"digits=A={folders['inside']}", "--pruner", folders["behind"], "--no-resume")
        assert code == 0, said
    assert [r.method_options.get("label") for r in record.read(tmp_path / "records.jsonl")] == ["A", None]


def test_the_first_round_has_one_pruner_of_each_method_and_later_ones_the_rest(folders):
    inside, behind, pooled = folders.values()
    assert rounds_of([]) == [({}, {})]
    assert rounds_of([inside, pooled]) == [({"adaptive": inside, "pooling_projector": pooled}, {})]
    assert rounds_of([f"A={inside}", f"A={pooled}", f"B={behind}"]) == [
        ({"adaptive": inside, "pooling_projector": pooled}, {"adaptive": "A", "pooling_projector": "A"}),
        ({"adaptive": behind}, {"adaptive": "B"})]


def test_a_folder_whose_name_has_a_sign_is_no_label(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=3").symlink_to(folders["behind"])
    (rounds,) = rounds_of(["lr=3"])
    assert [str(folder) for folder in rounds[0].values()] == ["lr=3"] and not rounds[1]


def test_pruners_that_nothing_tells_apart_are_refused(words, folders, tmp_path):
    inside, behind, _ = folders.values()
    for given in ((inside, behind), (f"A={inside}", f"A={behind}")):
        pruners = [part for one in given for part in ("--pruner", one)]
        code, said = words("eval", "-m", "adaptive", "-k", "8", *pruners, "--out", tmp_path)
        assert code == 2 and "pruners must be of different methods or have names" in said, said
    code, said = words("eval", "-m", "uniform", "-k", "8", "--pruner", f"A={inside}", "--out", tmp_path)
    assert code == 2 and "which is of adaptive" in said
    code, said = words("eval", "-m", "adaptive", "-k", "8", "--pruner", "A=nowhere", "--out", tmp_path)
    assert code == 2 and "no budgetprune_config.json in nowhere" in said


def test_without_a_label_a_record_is_what_it_was(folders):
    plain = EvalConfig(["adaptive"], [8], {"adaptive": folders["behind"]}).options_of("adaptive")
    named = EvalConfig(["adaptive"], [8], {"adaptive": folders["behind"]}, labels={"adaptive": "B"})
    assert "label" not in plain and named.options_of("adaptive") == {**plain, "label": "B"}


def made(keep, **options):
    return record.Record("digits", "m", "adaptive", keep, 0.5, (0.4, 0.6), 9, 0, method_options=options)


def test_curves_have_the_label_in_place_of_what_goes_with_it():
    records = [made(keep, label=label, weights=label * 3, fusion=fusion) for keep in (4, 8)
               for label, fusion in (("A", "encoder"), ("B", "post"))]
    (group,) = group_records(records)
    assert [curve.label for curve in group.curves] == ["adaptive (label=A)", "adaptive (label=B)"]
    assert [len(curve.points) for curve in group.curves] == [2, 2]
    older = made(4, label="A", weights="older", fusion="encoder")  # the pruner called A was trained anew
    assert set(option_labels([*records, older]).values()) == {
        "adaptive (label=A, weights=AAA)", "adaptive (label=B, weights=BBB)", "adaptive (label=A, weights=older)"}
    without = made(4, weights="x", fusion="post")
    assert option_labels([*records, without])[without.key()] == "adaptive"
