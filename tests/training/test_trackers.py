"""Curves of a run in TensorBoard and in W&B, where these are installed: written, and read back."""

import json
import time
from pathlib import Path

import pytest
import run_ranks
from conversation_files import digits_rows

LOGGED = {"train/loss", "train/learning_rate", "train/grad_norm"}
BLOCK = 32768


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    digits_rows(tmp_path / "data")
    return tmp_path / "data"


def test_tensorboard_gets_every_step_of_a_run(data):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_ranks.train(data, Path("before"), "pruner", report_to="tensorboard")  # its events stay with it
    _, rows, _, _ = run_ranks.train(data, Path("run"), "pruner", report_to="tensorboard")
    assert len(list(Path("before/tensorboard").rglob("events*"))) == len(list(Path("run/tensorboard").rglob("events*")))
    board = EventAccumulator("run/tensorboard").Reload()
    assert LOGGED <= set(board.Tags()["scalars"])
    losses = board.Scalars("train/loss")
    assert [event.step for event in losses] == [1, 2, 3, 4]
    assert [event.value for event in losses] == pytest.approx([row["loss"] for row in rows])


def test_wandb_gets_every_step_of_a_run_without_a_connection(data, monkeypatch):
    wandb = pytest.importorskip("wandb")
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_DIR", "."), ("WANDB_SILENT", "true")):
        monkeypatch.setenv(name, value)
    _, rows, _, _ = run_ranks.train(data, Path("run"), "pruner", report_to="wandb")
    wandb.finish()
    (written,) = Path("wandb").glob("offline-run-*/*.wandb")
    history, until = [], time.monotonic() + 60
    while len(history) < len(rows) and time.monotonic() < until:  # its service writes when it comes to it
        history = [row for row in map(logged, entries(written.read_bytes())) if "train/loss" in row]
        time.sleep(0.1)
    assert [row["train/global_step"] for row in history] == [1, 2, 3, 4] and LOGGED <= history[0].keys()
    assert [row["train/loss"] for row in history] == pytest.approx([row["loss"] for row in rows])


def logged(entry) -> dict:
    """What an entry of W&B's file says was logged; {} of one of another kind."""
    from wandb.proto.wandb_internal_pb2 import Record

    record = Record()
    record.ParseFromString(entry)
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}


def entries(content):
    """The entries of a file in the form of LevelDB's logs, behind W&B's own seven bytes: blocks, and in them pieces of
    a checksum (4), a length (2), and a kind (1): whole, first, middle or last of an entry."""
    at, entry = 7, b""
    while at + 7 <= len(content):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(content[at + 4:at + 6], "little"), content[at + 6]
        entry, at = entry + content[at + 7:at + 7 + length], at + 7 + length
        if kind in (1, 4):
            yield entry
            entry = b""
