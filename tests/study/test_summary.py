"""Means over seeds and differences seed by seed, against hand answers."""

import math

import pytest

from budgetprune.evaluation import Record, append
from budgetprune.study import Trial, differences, summarise
from budgetprune.training.config import TrainConfig


def trial(tmp_path, variant, seed, accuracies, recall=0.5):
    one = Trial(variant, TrainConfig(seed=seed, steps=1), tuple(accuracies), samples=10)
    for keep, accuracy in accuracies.items():
        append(one.folder(tmp_path) / "records.jsonl", Record(
            task="digits", model="m", method="adaptive", method_options={}, keep=keep, kept_mean=float(keep),
            accuracy=accuracy, ci95=(0.0, 1.0), samples=10, kept_recall=recall, prefill_flops=1, prefill_ms=None,
            decode_ms_per_token=None, peak_bytes=None, seed=0, commit="c", torch="t", device="d",
            time="2026-11-21T00:00:00+00:00"))
    return one


def test_a_cell_is_the_mean_over_seeds_with_students_interval(tmp_path):
    trials = [trial(tmp_path, "a", seed, {4: value}) for seed, value in enumerate((0.5, 0.6, 0.7))]
    cell, = summarise(trials, tmp_path)
    assert (cell.task, cell.variant, cell.keep, cell.seeds) == ("digits", "a", 4, 3)
    assert cell.value == pytest.approx(0.6) and cell.recall == pytest.approx(0.5)
    assert cell.half == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-5)  # t of 2 degrees, from a table


def test_one_seed_has_no_interval_and_an_unknown_recall_is_no_number(tmp_path):
    cell, = summarise([trial(tmp_path, "a", 0, {4: 0.5}, recall=None)], tmp_path)
    assert cell.half is None and cell.recall is None


def test_differences_are_paired_by_seed(tmp_path):
    trials = [trial(tmp_path, "baseline", seed, {4: value}) for seed, value in enumerate((0.5, 0.7, 0.9))]
    trials += [trial(tmp_path, "b", seed, {4: value}) for seed, value in enumerate((0.4, 0.6, 0.8))]
    cell, = differences(trials, tmp_path, "baseline")
    assert cell.variant == "b" and cell.value == pytest.approx(-0.1)
    assert cell.half == pytest.approx(0, abs=1e-9)  # the seeds differ, the settings differ alike


def test_a_seed_that_only_one_of_them_has_does_not_count(tmp_path):
    trials = [trial(tmp_path, "baseline", 0, {4: 0.5}), trial(tmp_path, "b", 0, {4: 0.75}),
              trial(tmp_path, "b", 1, {4: 0.0})]
    cell, = differences(trials, tmp_path, "baseline")
    assert (cell.value, cell.seeds, cell.half) == (0.25, 1, None)


def test_an_unknown_baseline_is_refused(tmp_path):
    with pytest.raises(ValueError, match="baseline must be one of a, got b"):
        differences([trial(tmp_path, "a", 0, {4: 0.5})], tmp_path, "b")
