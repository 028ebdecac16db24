"""Training the digits LLaVA: its loss, its schedule, and that breaking a run off changes nothing."""

import json
import signal
import sys
import threading

import numpy as np
import pytest
import torch

from budgetprune.tasks import build
from budgetprune.tasks.digits import draw
from budgetprune.training import (
    base_training,
    batch_inputs,
    build_base,
    find_base,
    load_base,
    terminal,
    train_base,
)

SMALL = {"vision_steps": 3, "steps": 4, "batch": 4, "seed": 5, "progress": False, "log_every": 100, "save_every": 2}


@pytest.fixture(scope="module")
def untrained():
    return build_base(seed=0)


@pytest.fixture
def quick_end(monkeypatch):
    monkeypatch.setattr(base_training, "FINAL_IMAGES", 4)
    monkeypatch.setattr(base_training._Run, "note", lambda run, loss: run.row("note", loss=loss))


# ---- the loss


class NothingHidden:
    """In place of numpy's generator: every image keeps all its patches."""

    def random(self, shape):
        return np.full(shape, 0.5)


def test_training_loss_is_the_model_s_own_where_no_patch_is_hidden(untrained):
    model, processor = untrained
    canvases = draw("train", 4, 5)
    inputs = batch_inputs(canvases, processor, learn_end=True)
    loss = base_training.llava_loss(model, canvases, processor, NothingHidden())
    torch.testing.assert_close(loss, model(**inputs).loss)


def test_half_of_the_images_have_patches_hidden_and_questions_never(untrained):
    inputs = batch_inputs(draw("train", 256, 5), untrained[1])
    hidden = base_training.without_patches(inputs, 64, np.random.default_rng(0))
    assert torch.equal(hidden["position_ids"][3], torch.arange(83)) and bool(inputs["attention_mask"].all())
    mask = hidden["attention_mask"]
    assert bool(mask[:, 0].all()) and bool(mask[:, 65:].all())
    share = mask[:, 1:65].float().mean(1)
    whole = (share == 1).float().mean()
    assert 0.4 < whole < 0.6
    assert 0.4 < share[share < 1].mean() < 0.6 and share.min() < 0.1


def test_a_hidden_patch_is_as_good_as_absent(untrained):
    """The loss does not change when hidden patches show something else."""
    model, processor = untrained
    inputs = batch_inputs(draw("train", 4, 8), processor)
    inputs = base_training.without_patches(inputs, 64, np.random.default_rng(1))
    before, seen = model(**inputs).loss, []

    def scramble(module, args):
        seen.append(args)
        return (torch.where(inputs["attention_mask"][:, 1:65, None].bool(), args[0], torch.randn_like(args[0])),)

    handle = model.model.multi_modal_projector.register_forward_pre_hook(scramble)
    after = model(**inputs).loss
    handle.remove()
    assert seen
    torch.testing.assert_close(after, before)


def test_every_parameter_but_the_tower_s_learns_in_the_second_stage(untrained):
    model, processor = untrained
    model.zero_grad()
    base_training.llava_loss(model, draw("train", 4, 6), processor, np.random.default_rng(0)).backward()
    learning = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    model.zero_grad()
    assert learning == {name for name, _ in model.named_parameters() if "vision_tower" not in name}


def test_perfect_heads_have_no_loss():
    canvases, heads = draw("train", 3, 7), base_training.TowerHeads(64, {"digit": 10, "colour": 6})
    digit, colour = heads.patch_labels(canvases, "cpu")
    one_hot = torch.nn.functional.one_hot
    states = torch.zeros(3, 65, 64)
    states[:, 1:, :18] = 50.0 * torch.cat([one_hot(digit, 11), one_hot(colour, 7)], -1)
    present = torch.full((3, 64), -50.0)
    for image in range(3):
        present[image, canvases.answers[image]] = 50.0
        present[image, 10 + canvases.colours[image]] = 50.0
    with torch.no_grad():
        for head in (heads.patch, heads.present):
            head.weight.copy_(torch.eye(*head.weight.shape))
            head.bias.zero_()

    class Tower:
        hidden_states, pooler_output = [None, states, None], present

    assert heads(Tower, canvases).item() < 1e-6
    Tower.pooler_output = -present
    assert heads(Tower, canvases).item() > 10


# ---- a run


def test_one_cycle_rises_to_its_peak_at_a_tenth_and_falls_to_zero():
    rates = [base_training.one_cycle(step, 1000, 2.0) for step in range(1000)]
    assert rates[0] == pytest.approx(2 / 25, rel=0.01) and max(rates) == pytest.approx(2, rel=1e-3)
    assert rates.index(max(rates)) in (99, 100) and rates[-1] < 1e-5
    assert rates[:100] == sorted(rates[:100]) and rates[100:] == sorted(rates[100:], reverse=True)
    assert 0 < base_training.one_cycle(0, 1, 2.0) <= 2


@pytest.mark.parametrize("stop", [1, 3, 6])
def test_a_run_broken_off_and_gone_on_with_equals_a_whole_one(tmp_path, monkeypatch, quick_end, stop):
    whole = load_base(train_base(tmp_path / "whole", **SMALL))[0].state_dict()
    advance, handler = base_training._Run.advance, signal.getsignal(signal.SIGINT)

    def interrupted(run):
        if run.step == stop - 1:
            signal.raise_signal(signal.SIGINT)
        return advance(run)

    with monkeypatch.context() as patch:
        patch.setattr(base_training._Run, "advance", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_base(tmp_path / "broken", **SMALL)
    assert signal.getsignal(signal.SIGINT) is handler
    assert [file.name for file in (tmp_path / "broken").iterdir()] == ["resume.pt"]
    with pytest.raises(FileNotFoundError, match="no digits LLaVA"):
        load_base(tmp_path / "broken")
    steps = []
    monkeypatch.setattr(base_training._Run, "advance", lambda run: steps.append(run.step) or advance(run))
    resumed = load_base(train_base(tmp_path / "broken", **SMALL))[0].state_dict()
    assert steps == list(range(stop, 7))
    assert all(torch.equal(whole[name], tensor) for name, tensor in resumed.items())


def test_a_second_interrupt_does_not_wait_for_the_step(tmp_path, monkeypatch, quick_end):
    def interrupted_twice(run):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second interrupt was swallowed")

    monkeypatch.setattr(base_training._Run, "advance", interrupted_twice)
    with pytest.raises(KeyboardInterrupt):
        train_base(tmp_path, **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_run_in_another_thread_trains_without_touching_signals(tmp_path, quick_end):
    thread = threading.Thread(target=train_base, args=(tmp_path,), kwargs=SMALL)
    thread.start()
    thread.join()
    assert find_base(tmp_path) == (tmp_path, "given")


def test_a_state_of_other_settings_is_not_gone_on_with(tmp_path, quick_end, capsys):
    settings = {"task": "digits", "vision_steps": 3, "steps": 4, "batch": 4, "seed": 6}
    run = base_training._Run(build("digits"), settings, torch.device("cpu"))
    run.step = 5
    run.save(tmp_path / "resume.pt")
    train_base(tmp_path, **SMALL)
    assert "is of another run" in capsys.readouterr().err
    assert json.loads((tmp_path / "train_log.jsonl").read_text().splitlines()[0])["seed"] == 5


def test_a_run_learns_logs_and_leaves_only_the_finished_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(base_training, "FINAL_IMAGES", 4)
    monkeypatch.setattr(base_training, "held_out", lambda *a, **k: {"accuracy": 0.5})
    assert train_base(tmp_path, vision_steps=40, steps=2, batch=8, log_every=20) == tmp_path
    rows = [json.loads(line) for line in (tmp_path / "train_log.jsonl").read_text().splitlines()]
    assert [(row["event"], row.get("step")) for row in rows] == [
        ("start", None), ("vision", 20), ("vision", 40), ("llava", 42), ("end", 42)]
    assert rows[1]["loss"] > 1.2 * rows[2]["loss"] and rows[0]["torch"] == torch.__version__
    assert rows[3]["accuracy"] == 0.5 and rows[4]["seconds"] >= rows[3]["seconds"] > rows[1]["seconds"] > 0
    assert "event llava, step 42" in capsys.readouterr().err
    names = {file.name for file in tmp_path.iterdir()}
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json"} <= names
    assert all(file.stat().st_mode & 0o777 == 0o644 for file in tmp_path.iterdir())
    assert not any("resume" in name or name.startswith(".") for name in names)


def test_progress_is_a_bar_on_a_terminal_and_silence_if_unwanted(monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    for wanted in (True, False):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        with terminal.progress_display("digits LLaVA", 10, 4, wanted) as show:
            show(10)
            show(10, {"event": "end", "accuracy": 0.25, "seed": 3})
        shown = capsys.readouterr().err
        assert ("100%" in shown and "event end, accuracy 0.25" in shown) if wanted else shown == ""


@pytest.mark.parametrize("name, value", [("vision_steps", -1), ("steps", -1), ("batch", 0), ("save_every", 0)])
def test_impossible_settings_are_named(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name} must be at least .*, got {value}"):
        train_base(tmp_path, **{name: value})
