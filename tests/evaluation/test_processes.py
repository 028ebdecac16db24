"""Two processes evaluate as one does, fail together, and do not wait for one that is gone."""

import json
import subprocess
import sys
from pathlib import Path

import eval_ranks
import pytest
import task_files
import torch
import torch.distributed as dist

from budgetprune.evaluation import answers, record
from budgetprune.evaluation.processes import Processes
from budgetprune.evaluation.prompts import Prompts
from budgetprune.evaluation.run import in_turn
from budgetprune.training.base_model import CHECKPOINTS

if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("torch without gloo", allow_module_level=True)
MEASURED = {"prefill_ms", "decode_ms_per_token", "peak_bytes", "time"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the options of a sweep in it."""
    folder = tmp_path_factory.mktemp("evaluated")
    pope = [f"pope.{name}={path}" for name, path in task_files.pope(folder).items()]
    sweep = ["--tasks", "digits,pope", "--task-option", pope[0], "--task-option", pope[1], "-m", "none,random", "-k",
             "8", "--samples", "10", "--batch", "3", "--latency-batch", "0", "--new-tokens", "2", "--model",
             CHECKPOINTS / "digits-llava"]
    (folder / "options").write_text("\n".join(map(str, sweep)))
    return folder


@pytest.fixture(scope="module")
def seen(folder):
    torch.multiprocessing.spawn(eval_ranks.work, (str(folder),), nprocs=eval_ranks.RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(eval_ranks.RANKS)]


@pytest.fixture(scope="module")
def alone(folder):
    eval_ranks.evaluate_all(folder, "alone")
    return folder / "alone"


def lines(path, without=frozenset()):
    return [{k: v for k, v in json.loads(line).items() if k not in without} for line in path.read_text().splitlines()]


def test_two_processes_leave_the_files_of_one(seen, alone, folder):
    both = folder / "whole"
    assert (both / "answers.jsonl").read_bytes() == (alone / "answers.jsonl").read_bytes()
    assert (both / "pictures.jsonl").read_bytes() == (alone / "pictures.jsonl").read_bytes()
    assert lines(both / "records.jsonl", MEASURED) == lines(alone / "records.jsonl", MEASURED)
    assert len(lines(both / "answers.jsonl")) == 3 * 18
    assert all(line[name] for line in lines(both / "records.jsonl") for name in MEASURED - {"decode_ms_per_token"})


def test_every_process_gets_all_records(seen, folder):
    written = [r.to_json() for r in record.read(folder / "whole" / "records.jsonl")]
    assert [one["records"] for one in seen] == [written, written]
    assert [one["gathered"] for one in seen] == [[0, 1], None] and [one["shared"] for one in seen] == ["of 0", "of 0"]


def test_an_error_in_one_process_ends_all_and_the_same_call_goes_on(seen, alone, folder):
    raised = "an image of the second process cannot be read"
    assert seen[1]["told"] == [f"ValueError: {raised}", "over", "over"]
    assert seen[0]["told"] == [f"ProcessLost: process 1 of 2 failed, ValueError: {raised}", "over", "over"]
    assert lines(folder / "broken" / "records.jsonl", MEASURED) == lines(alone / "records.jsonl", MEASURED)
    assert (folder / "broken" / "answers.jsonl").read_bytes() == (alone / "answers.jsonl").read_bytes()
    assert [one["main fails"] for one in seen] == ["OSError: no space left",
                                                   "ProcessLost: process 0 of 2 failed, OSError: no space left"]


def test_two_processes_sweep_as_one_does(seen, folder, capfd):
    assert [one["swept"] for one in seen] == [0, 0] == [eval_ranks.sweep(folder, "swept alone")] * 2
    said = [(folder / f"said-{rank}").read_text() for rank in range(2)]
    assert "digits, digits-llava, 10" in said[0] and "pope:coco_pope_popular, digits-llava, 4" in said[0]
    assert not said[1]
    one, two = (lines(folder / name / "records.jsonl", {"time"}) for name in ("swept alone", "swept"))
    assert one == two and len(two) == 4
    assert answers.read(folder / "swept alone") == answers.read(folder / "swept")


@pytest.mark.parametrize("how", ["killed", "interrupted"])
def test_nobody_waits_for_a_process_that_is_gone(tmp_path, how):
    both = [subprocess.Popen([sys.executable, Path(eval_ranks.__file__), str(rank), tmp_path, how],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for rank in range(2)]
    said = [process.communicate(timeout=200) for process in both]
    assert both[0].returncode == 3, said
    assert "another of the 2 processes ended or did not answer" in said[0][0]
    assert float(said[0][0].split()[2]) < 25 and both[1].returncode != 0


def test_one_process_is_alone_without_a_launcher(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    one = Processes.launched()
    assert (one.rank, one.count, one.main, one.device("here")) == (0, 1, True, "here")
    assert one.gather(max, 2, 3) == [3] and one.share(max, 2, 3) == 3
    with pytest.raises(ZeroDivisionError):
        one.share(lambda: 1 / 0)
    one.leave()


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_the_batches_of_all_processes_are_those_of_one(count, monkeypatch):
    monkeypatch.setattr("budgetprune.evaluation.prompts.prepare", lambda processor, samples, model: samples)
    samples = [type("Any", (), {"image": None, "number": number}) for number in range(18)]
    shares = [list(Prompts(None, samples, None, 4, (rank, count))) for rank in range(count)]
    assert list(in_turn(shares)) == [samples[start:start + 4] for start in range(0, 18, 4)]
