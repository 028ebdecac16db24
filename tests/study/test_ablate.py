"""What `budgetprune ablate` varies: lists, fixed counts, methods, and every axis of the experiment."""

import json
import re
import shlex
from pathlib import Path

import pytest

from budgetprune.cli_output import listed
from budgetprune.cli_study import varied
from budgetprune.study import one_at_a_time, trials_of
from budgetprune.study.trials import with_setting
from budgetprune.training.config import TrainConfig

PAGE = (Path(__file__).parents[2] / "docs" / "experiment.md").read_text()
SMALL = ("--seeds", 1, "--steps", 1, "--set", "batch_size=2", "--samples", 6, "--workers", 1)


@pytest.mark.parametrize("text, entries", [
    ("a,b c", ["a", "b", "c"]), ("[4,8]", ["[4,8]"]), ("8, [4, [16, 2]],24", ["8", "[4, [16, 2]]", "24"]),
    ('"a,b","c]"', ['"a,b"', '"c]"']), ('{"a": [1,2]} x', ['{"a": [1,2]}', "x"]), (",4,,8,", ["4", "8"])])
def test_commas_inside_brackets_and_quotes_belong_to_the_entry(text, entries):
    assert listed("vary k", text) == entries


@pytest.mark.parametrize("text, match", [
    ("[4,8", r"vary k must be JSON where it has brackets or quotes, got '\[4,8'"), ('"a', "must be JSON where"),
    ("8,['a']", "must be JSON where"), ("[4][8]", r"vary k must have a comma between its entries, got '\[4\]\[8\]'"),
    (" , ", "vary k must name at least one")])
def test_a_list_that_is_none_is_refused(text, match):
    with pytest.raises(ValueError, match=match):
        listed("vary k", text)


AXES = [  # of issue and paper: what is varied, and what the training then is
    ("conditioning=none", {"options": {"conditioning": "none"}}),
    ("conditioning=dot", {"options": {"conditioning": "dot"}}),
    ("conditioning=concat", {"options": {"conditioning": "concat"}}),
    ("use-cls=true", {"options": {"use_cls": True}}),
    ("tau=0.5", {"options": {"tau": 0.5}}),
    ("estimator=softmax", {"options": {"estimator": "softmax"}}),
    ("gate=features", {"options": {"gate": "features"}}),
    ("gate=noise", {"options": {"gate": "noise"}}),
    ("fusion=encoder", {"options": {"fusion": "encoder"}}),
    ("k=8", {"k_min": 8, "k_max": 8}),
    ("k=[4,8]", {"k_sampling": "list", "k_counts": (4, 8), "k_min": 4, "k_max": 8}),
    ("k_counts=[4,16]", {"k_sampling": "list", "k_counts": (4, 16), "k_min": 4, "k_max": 16}),
    ("k_sampling=log_uniform", {"k_sampling": "log_uniform", "k_min": 2, "k_max": 24}),
    ("k_per_sample=true", {"k_per_sample": True}),
    ("method=adaptive_query", {"method": "adaptive_query"}),
    ("noise=1", {"noise": 1}),
]


@pytest.mark.parametrize("entry, training", AXES, ids=[entry for entry, _ in AXES])
def test_every_axis_of_the_experiment_is_a_setting(entry, training):
    baseline, other = trials_of(one_at_a_time(varied([entry])), TrainConfig(steps=1), 1, [4, 8])
    assert other.config == TrainConfig(**{"steps": 1, **training}) != baseline.config == TrainConfig(steps=1)
    assert other.variant == entry.replace("-", "_") and other.budgets == (4, 8)


def test_lists_and_methods_train_and_are_measured(words, tmp_path):
    given = ["k=[4,8]", "method=adaptive_query"]
    code, said = words("ablate", *[part for entry in given for part in ("--vary", entry)], "-k", "4", *SMALL, "--out",
                       tmp_path)
    assert code == 0, said
    names = ["baseline", *one_at_a_time(varied(given))]
    for name in names:
        (record,) = map(json.loads, (tmp_path / "digits" / name / "seed0" / "records.jsonl").read_text().splitlines())
        assert record["keep"] == 4 and f" {name} " in said
        assert record["method"] == ("adaptive_query" if name == "method=adaptive_query" else "adaptive")
    drawn = json.loads((tmp_path / "digits" / "k=[4,8]" / "seed0" / "pruner" / "train_config.json").read_text())
    assert (drawn["k_sampling"], drawn["k_counts"]) == ("list", [4, 8])


def test_k_replaces_how_counts_were_drawn_before():
    drawn = with_setting(TrainConfig(steps=1), {"k": [4, 8]})
    fixed = with_setting(drawn, {"k": 6})
    assert (fixed.k_sampling, fixed.k_counts, fixed.k_min, fixed.k_max) == ("uniform", (), 6, 6)
    wide = with_setting(drawn, {"k_sampling": "uniform"})
    assert (wide.k_sampling, wide.k_counts, wide.k_min, wide.k_max) == ("uniform", (), 4, 8)
    assert with_setting(fixed, {"k_max": 9}).k_min == 6


@pytest.mark.parametrize("setting, error, match", [
    ({"k": 8, "k_max": 9}, ValueError, "k must come without k_max, which it sets, got both"),
    ({"k": "many"}, TypeError, "k must be an int, got 'many'"), ({"k": 0}, ValueError, "k must be at least 1, got 0"),
    ({"k": []}, ValueError, "k_counts must name the counts"),
    ({"k": [4, 0]}, ValueError, r"counts\[1\] must be at least 1, got 0"),
    ({"k_sampling": "list"}, ValueError, "k_counts must name the counts"),
    ({"k_sampling": "uniform", "k_counts": [4]}, ValueError, "k_counts must name the counts")])
def test_a_count_that_is_none_is_refused_by_name(setting, error, match):
    with pytest.raises(error, match=match):
        with_setting(TrainConfig(steps=1), setting)


def test_a_method_of_one_count_is_measured_at_it_beside_others():
    trials = trials_of(one_at_a_time(varied(["method=pooling_projector"])), TrainConfig(steps=1, k_min=16, k_max=16), 1,
                       [4, 8])
    assert [(t.config.method, t.budgets) for t in trials] == [("adaptive", (4, 8)), ("pooling_projector", (16,))]


def test_what_is_set_for_all_is_one_value(words, tmp_path):
    for given, match in (("k=4,8", "set k must be one value for all settings, got 2; a list has brackets"),
                         ("k=[4,8", "set k must be JSON where it has brackets or quotes"),
                         ("k", "set must be name=value,value, once for each name, got 'k'")):
        code, said = words("ablate", "--vary", "tau=2", "--set", given, "--out", tmp_path)
        assert code == 2 and match in said and not any(tmp_path.iterdir()), said


def lines():
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    found = [shlex.split(line, comments=True) for line in "".join(blocks).splitlines()]
    return [words[1:] for words in found if words[:2] == ["budgetprune", "ablate"]]


@pytest.mark.parametrize("line", lines(), ids=" ".join)
def test_the_lines_of_the_page_on_the_experiment_are_settings_that_there_are(monkeypatch, words, tmp_path, line):
    seen = []
    monkeypatch.setattr("budgetprune.study.run_trials", lambda trials, out, **options: seen.extend(trials))
    monkeypatch.setattr("budgetprune.study.differences", lambda *arguments: [])
    monkeypatch.chdir(tmp_path)
    code, said = words(*line)
    assert code == 0, said
    values = sum(len(listed("", word.partition("=")[2])) for flag, word in zip(line, line[1:]) if flag == "--vary")
    assert len({trial.variant for trial in seen}) == 1 + values


def test_the_page_has_a_line_for_lists_fixed_counts_and_methods():
    said = " ".join(word for line in lines() for word in line)
    for wanted in ("k=4,8,[4,16]", "method=adaptive_query", "conditioning=", "use_cls=", "tau=", "estimator=", "gate=",
                   "k_per_sample=true", "k_sampling=log_uniform"):
        assert wanted in said, wanted
