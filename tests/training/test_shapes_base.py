"""The small LLaVA of the shapes task, and that base training, its data and its loading serve any task that draws."""

import ast
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import budgetprune
from budgetprune.tasks import build
from budgetprune.tasks.drawn import drawn
from budgetprune.training import (
    base_model,
    base_training,
    batch_inputs,
    build_base,
    find_base,
    held_out,
    load_base,
    train_base,
)
from budgetprune.training.data import TaskStream

TASK = build("shapes")
BUNDLED = base_model.CHECKPOINTS / "shapes-llava"


@pytest.fixture(scope="module")
def untrained():
    return build_base("shapes")


@pytest.fixture(scope="module")
def bundled():
    return load_base(BUNDLED)


# ---- batches


def with_short_ones(scenes):
    """The same scenes, but every second one's first question has lost its last word and every fourth one's two."""
    asked = scenes.asked.copy()
    asked[::2, 0, -1] = asked[::4, 0, -2] = -1
    return replace(scenes, asked=asked)


def spoken(scenes, image, turns):
    """The first `turns` questions about an image with their answers, as a user would write them."""
    words = scenes.words
    for number in range(turns):
        asked = scenes.asked[image, number]
        yield " ".join([*(words[w] for w in asked[asked >= 0]), words[scenes.said[image, number]], "</s>"])


def test_batch_ids_are_those_of_the_tokenized_text_and_padding_stands_behind(untrained):
    scenes, processor = with_short_ones(TASK.draw("train", 40, 2)), untrained[1]
    inputs = batch_inputs(scenes, processor)
    lengths = inputs["attention_mask"].sum(1)
    assert len(set(lengths.tolist())) > 1 and inputs["input_ids"].shape[1] == lengths.max()
    for image, length in enumerate(lengths.tolist()):
        text = " ".join(["<image>", *spoken(scenes, image, 3)])
        theirs = processor(text=text, images=scenes.images[image], return_tensors="pt")
        assert torch.equal(inputs["input_ids"][image, :length], theirs["input_ids"][0])
        assert torch.equal(inputs["pixel_values"][image], theirs["pixel_values"][0])
        assert (inputs["input_ids"][image, length:] == processor.tokenizer.pad_token_id).all()
        assert inputs["attention_mask"][image, :length].all()


@pytest.mark.parametrize("learn_end", [False, True])
def test_labels_are_the_answers_and_if_wanted_their_ends(untrained, learn_end):
    scenes, processor = TASK.draw("train", 10, 3), untrained[1]
    inputs = batch_inputs(scenes, processor, learn_end=learn_end)
    learnt = inputs["labels"] != -100
    assert torch.equal(inputs["labels"][learnt], inputs["input_ids"][learnt])
    words = processor.tokenizer.convert_ids_to_tokens(inputs["labels"][learnt].tolist())
    end = ["</s>"] if learn_end else []
    assert words == [word for said in scenes.said.ravel() for word in [scenes.words[said], *end]]


def test_padding_behind_a_sequence_changes_nothing_of_its_loss(untrained):
    model, processor = untrained
    inputs = batch_inputs(with_short_ones(TASK.draw("train", 40, 4)), processor)
    lengths = inputs["attention_mask"].sum(1)
    short = int(lengths.argmin())
    assert lengths[short] < lengths.max()
    row = {name: value[short:short + 1] for name, value in inputs.items()}
    bare = {name: value if name == "pixel_values" else value[:, :lengths[short]] for name, value in row.items()}
    with torch.no_grad():
        torch.testing.assert_close(model(**row).loss, model(**bare).loss)


def test_padding_behind_a_sequence_changes_nothing_of_a_pruned_loss_either(untrained):
    model, processor = untrained
    inputs = batch_inputs(with_short_ones(TASK.draw("train", 40, 4)), processor)
    lengths = inputs["attention_mask"].sum(1)
    short = int(lengths.argmin())
    row = {name: value[short:short + 1] for name, value in inputs.items()}
    bare = {name: value if name == "pixel_values" else value[:, :lengths[short]] for name, value in row.items()}
    for method, training in (("uniform", False), ("adaptive", False), ("adaptive", True)):
        torch.manual_seed(0)
        with budgetprune.prune(model, method, keep=9, **({"train_keep": (9, 9)} if method == "adaptive" else {})):
            model.train(training)
            if training:
                model.budget_pruner.set_noise(False)
            with torch.no_grad():
                torch.testing.assert_close(model(**row).loss, model(**bare).loss, msg=f"{method}, {training}")
            model.eval()


def test_every_word_of_the_task_is_one_token(untrained):
    tokenizer = untrained[1].tokenizer
    assert len(set(TASK.drawings.words)) == len(TASK.drawings.words) == len(tokenizer) - 5
    for sample in TASK.samples("test", 60, 5):
        ids = tokenizer(f"{sample.question} {sample.answer}")["input_ids"]
        assert tokenizer.unk_token_id not in ids and len(ids) == len(sample.question.split()) + 2


def test_a_stream_of_one_question_each_asks_them_in_turn(untrained):
    processor = untrained[1]
    whole, one = (TaskStream(TASK, processor, 9, 3, one_question=one).__getitems__([4, 5, 6]) for one in (False, True))
    assert torch.equal(whole["pixel_values"], one["pixel_values"])
    assert ((whole["labels"] != -100).sum(1) == 3).all() and ((one["labels"] != -100).sum(1) == 1).all()
    scenes = TASK.draw("train", 3, 3, start=4)
    for row, index in enumerate([4, 5, 6]):
        said = list(spoken(scenes, row, 3))[index % 3]
        words = processor.tokenizer.decode(one["input_ids"][row, 65:][one["attention_mask"][row, 65:].bool()])
        assert words == said


# ---- any task that draws


def test_only_tasks_that_draw_have_a_small_llava():
    assert drawn("shapes").label == "shapes" and drawn(TASK) is TASK
    for other in ("pope", "gqa"):
        with pytest.raises(ValueError, match=rf"one that draws its own images \(digits, shapes\), got {other}"):
            build_base(other)
    with pytest.raises(ValueError, match="task must be one of .*, got 'chess'"):
        train_base(task="chess")


def test_no_code_of_training_and_evaluation_knows_a_task_that_draws_by_its_name():
    found = []
    for room in ("training", "evaluation"):
        for path in sorted((Path(budgetprune.__file__).parent / room).glob("*.py")):
            found += [(path.name, node.value) for node in ast.walk(ast.parse(path.read_text()))
                      if isinstance(node, ast.Constant) and node.value in ("digits", "shapes")]
            assert "tasks.digits" not in path.read_text() and "tasks.shapes" not in path.read_text()
    assert found == [("base_model.py", "digits")]  # the one that is meant where none is named


def test_a_run_on_shapes_learns_and_logs_each_kind_of_question(tmp_path, monkeypatch):
    monkeypatch.setattr(base_training, "FINAL_IMAGES", 4)
    monkeypatch.setattr(base_training, "held_out", lambda *parts: held_out(*parts[:3], images=4))
    arguments = {"vision_steps": 40, "steps": 2, "batch": 8, "log_every": 20, "progress": False, "task": "shapes"}
    train_base(tmp_path, **arguments)
    rows = [json.loads(line) for line in (tmp_path / "train_log.jsonl").read_text().splitlines()]
    assert [row["event"] for row in rows] == ["start", "vision", "vision", "llava", "end"]
    assert rows[0]["task"] == "shapes" and rows[1]["loss"] > 1.05 * rows[2]["loss"]
    assert rows[4]["questions"] == 12 and {"accuracy", "yesno", "count", "position"} <= set(rows[4])
    model, processor = load_base(tmp_path)
    assert model.config.text_config.vocab_size == len(processor.tokenizer) == 5 + len(TASK.drawings.words)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    assert saved["padding"] is None and saved["truncation"] is None


def test_each_task_has_its_own_place(tmp_path, monkeypatch):
    monkeypatch.setattr(base_model, "user_base_dir", lambda task: tmp_path / task)
    assert find_base(task="shapes") == (BUNDLED, "bundled")
    for part in build_base("shapes"):
        part.save_pretrained(tmp_path / "shapes")
    assert find_base(task="shapes") == (tmp_path / "shapes", "cache") and find_base()[1] == "bundled"
    with pytest.raises(FileNotFoundError, match="no pope LLaVA"):
        find_base(task="pope")


def test_a_model_of_another_task_is_refused(bundled):
    with pytest.raises(ValueError, match="trained for shapes, got .*digits-llava, which does not know 'circle'"):
        load_base(base_model.CHECKPOINTS / "digits-llava", "shapes")
    assert len(load_base(BUNDLED)[1].tokenizer) == len(bundled[1].tokenizer)


# ---- the bundled model


def test_bundled_model_answers_every_kind_of_question(bundled):
    found = held_out(*bundled, task="shapes", images=128, seed=123)
    assert found["accuracy"] > 0.85 and found["yesno"] > 0.8 and found["count"] > 0.75 and found["position"] > 0.75


def test_bundled_model_needs_the_image(bundled):
    model, processor = bundled
    samples = TASK.samples("test", 192, 126)
    inputs = processor(text=[f"<image> {s.question}" for s in samples], padding=True, return_tensors="pt",
                       images=[np.zeros_like(s.image) for s in samples])
    said = processor.batch_decode(model.generate(**inputs)[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
    blind = TASK.summary(said, samples)
    assert blind["yesno"] < 0.7 and blind["count"] < 0.4 and blind["position"] < 0.45


def test_bundled_model_stops_after_its_answer(bundled):
    model, processor = bundled
    samples = TASK.samples("test", 24, 124)
    inputs = processor(text=[f"<image> {s.question}" for s in samples], padding=True, return_tensors="pt",
                       images=[s.image for s in samples])
    new = model.generate(**inputs, max_new_tokens=8)[:, inputs["input_ids"].shape[1]:]
    assert new.shape[1] == 2 and (new[:, 1] == processor.tokenizer.eos_token_id).all()


def test_bundled_log_is_that_of_the_bundled_weights(bundled):
    log = [json.loads(line) for line in (BUNDLED / "train_log.jsonl").read_text().splitlines()]
    start, end = log[0], log[-1]
    assert (start["event"], start["task"], end["event"]) == ("start", "shapes", "end")
    assert end["step"] == start["vision_steps"] + start["steps"] == sum(TASK.base_steps)
    again = held_out(*bundled, task="shapes", images=192, seed=base_training.TEST_SEED + 1)
    for name in ("accuracy", "yesno", "count", "position"):
        share, asked = end[name], 192 * (3 if name == "accuracy" else 1)
        assert again[name] == pytest.approx(share, abs=4 * (max(share * (1 - share), 0.02) / asked) ** 0.5), name


def test_bundled_files_are_small():
    assert sum(file.stat().st_size for file in BUNDLED.iterdir()) < 3_000_000
