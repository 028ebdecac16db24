"""Settings of a study, and the trials that run them: several at a time, resumed, interrupted, failing."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from budgetprune.study import Trial, one_at_a_time, run_trials, summarise, trials_of
from budgetprune.study.trials import with_setting
from budgetprune.training.config import TrainConfig

TINY = TrainConfig(steps=2, batch_size=4)


def test_a_setting_is_a_field_of_training_or_an_option_of_the_method():
    config = with_setting(TINY, {"k_max": 9, "estimator": "fermi"})
    assert config.k_max == 9 and config.options == {"estimator": "fermi"} and TINY.options == {}


@pytest.mark.parametrize("setting, match", [
    ({"estimator": "sum"}, "estimator must be one of"), ({"colour": 1}, "takes the options"),
    ({"k_min": 99}, "1 <= k_min <= k_max"), ({"seed": 3}, "seed must not be varied")])
def test_a_setting_that_is_none_is_refused_before_anything_runs(setting, match):
    with pytest.raises(ValueError, match=match):
        trials_of({"baseline": {}, "x": setting}, TINY, 2, [4])


def test_settings_change_one_at_a_time_beside_the_baseline():
    assert one_at_a_time({"tau": [0.5, 2], "gate": ["features"]}) == {
        "baseline": {}, "tau=0.5": {"tau": 0.5}, "tau=2": {"tau": 2}, "gate=features": {"gate": "features"}}


def test_every_setting_runs_with_every_seed():
    trials = trials_of({"baseline": {}, "fixed": {"k_min": 8, "k_max": 8}}, TINY, 3, [4, 8])
    assert [(t.variant, t.config.seed) for t in trials] == [(v, s) for s in range(3) for v in ("baseline", "fixed")]
    assert {t.folder("out").as_posix() for t in trials} >= {"out/digits/baseline/seed2", "out/digits/fixed/seed0"}


def test_trials_run_side_by_side_and_are_taken_over_afterwards(tmp_path):
    trials = trials_of({"baseline": {}, "gate=features": {"gate": "features"}}, TINY, 1, [4], samples=6)
    told = []
    run_trials(trials, tmp_path, workers=2, tell=lambda *seen: told.append(seen))
    assert told[0] == (0, 2, "") and told[-1][:2] == (2, 2)
    written = {path: path.read_bytes() for path in tmp_path.rglob("records.jsonl")}
    assert len(written) == 2 and [c.variant for c in summarise(trials, tmp_path)] == ["baseline", "gate=features"]
    run_trials(trials, tmp_path, tell=lambda *seen: told.append(seen))
    assert told[-1] == (2, 2, "") and all(path.read_bytes() == old for path, old in written.items())


def test_a_folder_of_another_setting_is_refused(tmp_path):
    trial = Trial("baseline", TINY, (4,), samples=6)
    (trial.folder(tmp_path) / "pruner").mkdir(parents=True)
    (trial.folder(tmp_path) / "pruner" / "train_config.json").write_text(TrainConfig(steps=99).to_json())
    with pytest.raises(ValueError, match="train_config.json is of a run with another configuration"):
        run_trials([trial], tmp_path, workers=1)


def test_a_trial_that_fails_says_why(tmp_path):
    trial = Trial("baseline", replace(TINY, k_max=65), (4,), samples=6)
    with pytest.raises(RuntimeError, match="(?s)trial baseline failed:.*k_max must be at most N=64"):
        run_trials([trial], tmp_path, workers=1)


def test_a_count_above_the_models_is_refused_before_a_training(tmp_path):
    with pytest.raises(ValueError, match=r"budgets must be in \[1, N=64\] of the digits model, got 999"):
        run_trials([Trial("baseline", TINY, (4, 999), samples=6)], tmp_path, workers=1)
    assert not list(tmp_path.rglob("pruner"))


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path):
    command = [sys.executable, "-m", "budgetprune", "ablate", "--vary", "gate=features", "--seeds", "1", "--steps",
               "40", "--set", "batch_size=16", "--budgets", "4", "--samples", "6", "--workers", "1", "--out",
               str(tmp_path)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    started = tmp_path / "digits" / "baseline" / "seed0" / "pruner" / "train_config.json"
    until = time.monotonic() + 120
    while not started.exists() and time.monotonic() < until:
        time.sleep(0.1)
    os.kill(running.pid, signal.SIGINT)
    output, _ = running.communicate(timeout=120)
    assert running.returncode == 130 and "the same command goes on" in output, output
    assert json.loads(started.read_text())["steps"] == 40
    assert not (tmp_path / "digits" / "gate=features").exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "gate=features" in done.stdout, done.stderr
