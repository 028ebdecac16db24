"""Which sample comes when, what takes the place of one that cannot be read, and that both are functions of the seed."""

import json
import pickle

import numpy as np
import pytest
from conversation_files import digits_rows

from budgetprune.training.base_model import build_base
from budgetprune.training.chat import Chat
from budgetprune.training.order import Order
from budgetprune.training.records import open_records
from budgetprune.training.stream import ConversationStream, Items

IMAGES, TEXTS = np.arange(100, 123), np.arange(7)


def first(order, positions):
    return [next(order.tries(p)) for p in positions]


def test_every_epoch_is_another_order_of_all_items():
    order = Order(IMAGES, TEXTS[:0], 4, seed=3)
    epochs = [first(order, range(e * 23, (e + 1) * 23)) for e in range(3)]
    assert all(sorted(epoch) == IMAGES.tolist() for epoch in epochs) and order.epoch_length == 23
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != IMAGES.tolist()
    assert first(Order(IMAGES, TEXTS[:0], 4, seed=4), range(23)) != epochs[0]


def test_the_order_is_a_function_of_seed_and_position_alone():
    order, positions = Order(IMAGES, TEXTS, 4, seed=3), list(range(130))
    expected = first(order, positions)
    assert [first(Order(IMAGES, TEXTS, 4, seed=3), [p])[0] for p in reversed(positions)] == expected[::-1]
    assert first(pickle.loads(pickle.dumps(order)), positions) == expected


def test_a_step_is_of_one_kind_and_nothing_is_left_out():
    order = Order(IMAGES, TEXTS, 4, seed=3)
    assert order.epoch_length == 4 * (6 + 2)  # 23 images in six blocks, 7 texts in two
    for epoch in range(3):
        items = np.array(first(order, range(epoch * 32, (epoch + 1) * 32))).reshape(-1, 4)
        kinds = items >= 100
        assert (kinds.all(1) | ~kinds.any(1)).all() and kinds.all(1).sum() == 6
        assert set(items.flatten().tolist()) == {*IMAGES.tolist(), *TEXTS.tolist()}


def test_what_takes_a_place_is_of_the_same_kind_and_is_every_other_item_in_turn():
    order = Order(IMAGES, TEXTS, 4, seed=3)
    for position in range(32):
        tries = list(order.tries(position))
        kind = IMAGES if tries[0] >= 100 else TEXTS
        assert sorted(tries) == kind.tolist()


def test_an_order_of_nothing_is_refused():
    with pytest.raises(ValueError, match="data must hold items to train on, got none"):
        Order(IMAGES[:0], TEXTS[:0], 4, seed=0)


@pytest.fixture
def files(tmp_path):
    return tmp_path, digits_rows(tmp_path, broken=(5,))


def stream_of(folder, positions=40, one_question=False, with_text=True, max_length=128, name="data.json"):
    model, processor = build_base()
    records = open_records(folder / name)
    items = Items(records, one_question=one_question, with_text=with_text)
    order = Order(items.images, items.texts, 2, seed=1)
    chat = Chat(processor, [model.config.image_token_id], max_length)
    return ConversationStream(records, items, order, chat, folder / "images", positions)


def test_items_are_rows_or_questions(files):
    folder, rows = files
    whole = Items(open_records(folder / "data.json"), one_question=False, with_text=True)
    assert whole.images.tolist() == [i for i in range(12) if i not in (3, 8)] and whole.texts.tolist() == [3, 8]
    single = Items(open_records(folder / "data.json"), one_question=True, with_text=False)
    asked = [(i, q) for i, row in enumerate(rows) for q in range(len(row["conversations"]) // 2)]
    assert list(zip(single.rows.tolist(), single.answers.tolist())) == asked
    assert [asked[item][0] in (3, 8) for item in single.images] == [False] * len(single.images)
    assert len(single.texts) == 0 and single.left_out == sum(i in (3, 8) for i, _ in asked)


def test_one_question_at_a_time_asks_each_with_its_image(files):
    stream = stream_of(files[0], one_question=True)
    words = stream.chat.processor.tokenizer
    asked = set()
    for position in range(stream.order.epoch_length):
        row = stream[position]["inputs"]
        text = words.decode(row["input_ids"][0]).replace("<image> ", "")
        assert text.count("which digit is") == 1 and int((row["labels"] != -100).sum()) == 2
        asked.add((text, "pixel_values" in row))
    assert len({has for _, has in asked}) == 2


def test_a_broken_sample_is_replaced_by_the_next_and_named(files):
    stream, met = stream_of(files[0]), 0
    for position in range(40):
        sample = stream[position]
        tried = [int(stream.items.rows[item]) for item, _ in zip(stream.order.tries(position), range(2))]
        if tried[0] == 5:
            met += 1
            (entry,) = sample["skipped"]
            assert entry["position"] == position and entry["id"] == "canvas-5" and entry["row"] == 5
            assert "5.png cannot be read" in entry["reason"]
            sample, expected = sample["inputs"], stream._read(int(list(stream.order.tries(position))[1]))[0]
            assert all(sample[name].equal(value) for name, value in expected.items())
        else:
            assert sample["skipped"] == [] and sample["position"] == position
    assert met >= 3


@pytest.mark.parametrize("spoil, reason", [
    (lambda row: row.update(image="gone.png"), "no image"),
    (lambda row: row.update(image=["0.png", "1.png"]), "1 images are mentioned, and 2 are there"),
    (lambda row: row.pop("conversations"), "must have conversations"),
    (lambda row: row["conversations"].pop(), "an answer be the last"),
    (lambda row: row["conversations"][0].update(value="<image>\n" + "which " * 80), "too long"),
    (lambda row: row["conversations"][0].update(value="<image>\n<image>\nwhich digit is red") or row.update(
        image=["0.png", "1.png"]), "too long: 12[0-9] tokens up to the end of its 128 image tokens"),
])
def test_wrong_rows_are_named_with_their_reason(files, spoil, reason):
    folder, rows = files
    spoil(rows[2])
    (folder / "data.json").write_text(json.dumps(rows))
    stream = stream_of(folder, max_length=100)
    position = next(p for p in range(40) if stream.items.rows[next(stream.order.tries(p))] == 2)
    entry = stream[position]["skipped"][0]
    assert entry["id"] == "canvas-2" and reason.split("[")[0].split(": 12")[0] in entry["reason"]


def test_a_broken_line_is_skipped_too(files):
    folder, rows = files
    lines = [json.dumps(row) for row in rows]
    (folder / "data.jsonl").write_text("\n".join([*lines[:2], "{broken", *lines[3:]]))
    stream = stream_of(folder, name="data.jsonl")
    position = next(p for p in range(40) if stream.items.rows[next(stream.order.tries(p))] == 2)
    entry = stream[position]["skipped"][0]
    assert entry["id"] == "2" and entry["reason"].startswith(
        "the row cannot be read: JSONDecodeError: Expecting property name")


def test_a_template_that_refuses_a_row_skips_the_row(files):
    folder, rows = files
    rows[2]["conversations"].insert(0, {"from": "system", "value": "be brief"})
    (folder / "data.json").write_text(json.dumps(rows))
    stream = stream_of(folder)
    stream.chat.processor.chat_template = ("{% if messages[0]['role'] == 'system' %}{{ raise_exception('no systems') }}"
                                           "{% endif %}" + stream.chat.processor.chat_template)
    position = next(p for p in range(40) if stream.items.rows[next(stream.order.tries(p))] == 2)
    entry = stream[position]["skipped"][0]
    assert (entry["id"], entry["reason"]) == ("canvas-2", "the row cannot be read: TemplateError: no systems")


def test_a_file_that_cannot_be_read_at_one_place_skips_the_row(files, monkeypatch):
    stream = stream_of(files[0])
    read = type(stream.records).__getitem__

    def broken(records, number):
        if number == 2:
            raise OSError(5, "Input/output error")
        return read(records, number)

    monkeypatch.setattr(type(stream.records), "__getitem__", broken)
    position = next(p for p in range(40) if stream.items.rows[next(stream.order.tries(p))] == 2)
    entry = stream[position]["skipped"][0]
    assert entry["id"] == "2" and entry["reason"].endswith("OSError: [Errno 5] Input/output error")


def test_a_folder_without_any_of_the_images_ends_at_once(files):
    folder, _ = files
    for path in (folder / "images").iterdir():
        path.unlink()
    stream = stream_of(folder, with_text=False)
    with pytest.raises(ValueError, match="data must hold samples that can be read, got 10 in a row that cannot; the "
                                         "last, canvas-.*: no image"):
        stream[0]


def test_a_batch_says_which_images_are_whose(files):
    stream = stream_of(files[0])
    samples = [stream[p] for p in range(20)]
    batch = stream.collate(samples)
    assert batch["samples"] == [[p, 0] for p, sample in enumerate(samples) if sample["images"]]
    assert len(batch["samples"]) == len(batch["pixel_values"]) < 20 == len(batch["input_ids"])
    assert [entry["id"] for entry in batch["skipped"]] == ["canvas-5"] * len(batch["skipped"]) != []
