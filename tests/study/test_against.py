"""Trained methods against the best rival: hand answers, over questions and over seeds."""

import math

import pytest

from budgetprune.evaluation import Record, answers, append
from budgetprune.evaluation.paired import paired
from budgetprune.study import Trial
from budgetprune.study.against import against_best
from budgetprune.training.config import TrainConfig

N = 40


def cell(folder, method, right, names=None, **options):
    """A record and its answers: the first `right` of N questions."""
    record = Record(
        task="digits", model="m", method=method, method_options=options, keep=4, kept_mean=4.0, accuracy=right / N,
        ci95=(0.0, 1.0), samples=N, kept_recall=None, prefill_flops=1, prefill_ms=None, decode_ms_per_token=None,
        peak_bytes=None, seed=0, commit="c", torch="t", device="d", time="2026-11-21T00:00:00+00:00")
    append(folder / "records.jsonl", record)
    answers.write(folder, [answers.Answer(record.key(), name, "", i < right, f"image {name}")
                           for i, name in enumerate(names or map(str, range(N)))])


def trained(tmp_path, *rights, names=None):
    trials = [Trial("adaptive", TrainConfig(seed=seed, steps=1), (4,), samples=N) for seed in range(len(rights))]
    for trial, right in zip(trials, rights):
        cell(trial.folder(tmp_path / "trials"), "adaptive", right, names)
    return trials


def test_one_training_has_the_interval_of_the_paired_test(tmp_path):
    cell(tmp_path / "page", "uniform", 20)
    found, = against_best(trained(tmp_path, 30), tmp_path / "trials", tmp_path / "page", ["uniform"])
    alone = paired([i < 20 for i in range(N)], [i < 30 for i in range(N)])
    assert (found.task, found.method, found.keep, found.best, found.seeds) == ("digits", "adaptive", 4, "uniform", 1)
    assert found.value == pytest.approx(0.25) and (found.low, found.high) == pytest.approx(alone.ci95)


def test_of_several_the_spread_of_the_seeds_is_added(tmp_path):
    cell(tmp_path / "page", "uniform", 20)
    found, = against_best(trained(tmp_path, 30, 32, 34), tmp_path / "trials", tmp_path / "page", ["uniform"])
    mean = [(i < 30) / 3 + (i < 32) / 3 + (i < 34) / 3 for i in range(N)]
    questions = paired([i < 20 for i in range(N)], mean)
    seeds = 4.302653 * 0.05 / math.sqrt(3)  # t of 2 degrees, from a table; accuracies .75, .8, .85
    assert found.value == pytest.approx(0.3) and found.seeds == 3
    low, high = (math.hypot(questions.difference - end, seeds) for end in questions.ci95)
    assert found.value - found.low == pytest.approx(low, rel=1e-5)
    assert found.high - found.value == pytest.approx(high, rel=1e-5)


def test_the_rival_is_the_best_of_those_named_with_a_count_that_was_asked_for(tmp_path):
    for method, right, options in (("uniform", 20, {}), ("tome", 25, {}), ("fastv", 40, {}),
                                   ("divprune", 39, {"count": "own"})):
        cell(tmp_path / "page", method, right, **options)
    rivals = ["uniform", "tome", "divprune"]
    found, = against_best(trained(tmp_path, 25), tmp_path / "trials", tmp_path / "page", rivals)
    assert found.best == "tome" and found.value == 0 and found.low < 0 < found.high


def test_without_a_rival_there_is_nothing_to_compare(tmp_path):
    cell(tmp_path / "page", "fastv", 40)
    assert against_best(trained(tmp_path, 25), tmp_path / "trials", tmp_path / "page", ["uniform"]) == []


def test_other_questions_are_refused(tmp_path):
    cell(tmp_path / "page", "uniform", 20)
    with pytest.raises(ValueError, match="must have been asked the same questions as uniform at 4 on digits"):
        against_best(trained(tmp_path, 25, names=[f"other {i}" for i in range(N)]), tmp_path / "trials",
                     tmp_path / "page", ["uniform"])
