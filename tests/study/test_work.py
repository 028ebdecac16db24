"""Seconds of work over several calls in one folder, and that the calls are of one run."""

import json

import pytest

from budgetprune.study import work as module
from budgetprune.study.work import Work


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_seconds_add_up_over_calls_whether_interrupted_or_not(tmp_path, clock):
    with pytest.raises(KeyboardInterrupt), Work(tmp_path, {"steps": 1}):
        clock[0] += 30
        raise KeyboardInterrupt
    clock[0] += 1000  # between two calls nothing is worked
    with Work(tmp_path, {"steps": 1}) as work:
        clock[0] += 12
    assert work.seconds == 42 and json.loads((tmp_path / "work.json").read_text())["seconds"] == 42


def test_a_kill_loses_no_more_than_the_last_seconds(tmp_path, clock):
    work = Work(tmp_path, {}).__enter__()
    clock[0] += 25
    work.tick()
    clock[0] += 5
    work.tick()  # too early to save again
    assert Work(tmp_path, {}).seconds == 25


def test_another_run_is_refused_by_the_name_of_what_differs(tmp_path):
    with Work(tmp_path, {"steps": 1, "tasks": ("digits", "shapes")}):
        pass
    Work(tmp_path, {"steps": 1, "tasks": ["digits", "shapes"]})  # as JSON has it
    with pytest.raises(ValueError, match="tasks must be digits,shapes, which the run in .* has, got digits"):
        Work(tmp_path, {"steps": 1, "tasks": ("digits",)})
