"""Rows of training sets: the forms they have, what is wrong with them, and where they lie in their files."""

import builtins
import io
import json

import numpy as np
import pytest
from PIL import Image, ImageFile

from budgetprune.training import records as records_of
from budgetprune.training.conversations import BadSample, Conversation, Turn, open_image, read_conversation
from budgetprune.training.records import open_records

ASKED, TOLD = {"from": "human", "value": "<image>\nwhat is this"}, {"from": "gpt", "value": " a cat\n"}
WHOLE = {"image": "a.png", "conversations": [ASKED, TOLD]}
READ = Conversation((Turn("user", (None, "what is this")), Turn("assistant", ("a cat",))), ("a.png",))


@pytest.mark.parametrize("row", [
    WHOLE,
    {"images": ["a.png"], "conversations": [ASKED, TOLD]},
    {"image": "a.png", "conversations": [{"from": "human", "value": "what is this"}, TOLD]},
    {"images": [{"bytes": None, "path": "a.png"}],
     "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is this"}]},
                  {"role": "assistant", "content": "a cat"}]},
    {"images": ["a.png"], "texts": [{"user": "what is this", "assistant": "a cat", "source": "x"}]},
], ids=["llava", "images", "no mark", "messages", "texts"])
def test_every_form_says_the_same(row):
    assert read_conversation(row) == READ


def test_several_images_stay_where_they_are_mentioned():
    row = {"image": ["a", "b", "c"], "conversations": [
        {"from": "system", "value": "be short"}, {"from": "human", "value": "<image> and <image>\nhow many"},
        {"from": "gpt", "value": "two"}, {"from": "human", "value": "now <image>"}, {"from": "gpt", "value": "three"}]}
    read = read_conversation(row)
    assert [turn.parts for turn in read.turns] == [
        ("be short",), (None, "and", None, "how many"), ("two",), ("now", None), ("three",)]
    first, second = read.only(0), read.only(1)
    assert first.images == ("a", "b") and [turn.role for turn in first.turns] == ["system", "user", "assistant"]
    assert second.images == ("a", "b", "c") and second.turns[1].parts == (None, None, "now", None)
    assert second.turns[2].parts == ("three",)
    with pytest.raises(BadSample, match="it has 2 questions with answers, and none of number 2"):
        read.only(2)


def changed(**values):
    return {**WHOLE, **values}


@pytest.mark.parametrize("row, why", [
    (7, "a row must be an object, got int"),
    ({"image": "a.png"}, "must have conversations, messages or texts, got only image"),
    (changed(conversations="hello"), "conversations must be a list of objects"),
    (changed(conversations=[ASKED]), "users and answers must take turns, and an answer be the last, got user"),
    (changed(conversations=[TOLD, ASKED]), "must take turns.*got assistant, user"),
    (changed(conversations=[ASKED, {"from": "cat", "value": "miau"}]), "a turn must be from .*, got 'cat'"),
    (changed(conversations=[ASKED, {"from": "gpt", "value": "  "}]), "an answer must not be empty"),
    (changed(conversations=[ASKED, {"from": "gpt", "value": "see <image>"}]), "must stand in a user's turn"),
    (changed(conversations=[ASKED, {"from": "gpt"}]), "a turn must be a text or a list of parts, got NoneType"),
    (changed(conversations=[ASKED, TOLD, {"from": "system", "value": "x"}]), "a system's turn must be the first"),
    (changed(image=["a", "b"]), "1 images are mentioned, and 2 are there"),
    ({"conversations": [ASKED, TOLD]}, "1 images are mentioned, and 0 are there"),
    (changed(image=7), "an image must be a path, bytes or a picture, got int"),
    (changed(image={"bytes": None, "path": None}), "an image must be a path, bytes or a picture, got NoneType"),
])
def test_what_is_wrong_with_a_row_is_said(row, why):
    with pytest.raises(BadSample, match=why):
        read_conversation(row)


def picture(kind, colour=(200, 30, 90), size=(9, 7)):
    file = io.BytesIO()
    Image.new(kind[1], size, colour[:len(kind[1].strip("PL")) or 1] if kind[1] != "L" else 90).save(file, kind[0])
    return file.getvalue()


def test_images_come_from_paths_and_bytes_as_rgb(tmp_path):
    (tmp_path / "a.png").write_bytes(picture(("PNG", "L")))
    (tmp_path / "b.jpg").write_bytes(picture(("JPEG", "RGB")))
    for image in ("a.png", "b.jpg", (tmp_path / "a.png").read_bytes(), Image.new("RGBA", (9, 7)),
                  str(tmp_path / "a.png")):
        found = open_image(image, tmp_path)
        assert found.mode == "RGB" and found.size == (9, 7)


@pytest.mark.parametrize("lenient", [False, True])  # as lmms-eval leaves it for the whole process
@pytest.mark.parametrize("broken", [b"", b"no image at all", picture(("PNG", "RGB"), size=(40, 40))[:60],
                                    picture(("JPEG", "RGB"), size=(40, 40))[:200]])
def test_a_broken_image_is_a_bad_sample(tmp_path, monkeypatch, broken, lenient):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    (tmp_path / "a.png").write_bytes(broken)
    with pytest.raises(BadSample, match="a.png cannot be read"):
        open_image("a.png", tmp_path)
    with pytest.raises(BadSample, match=r"no image .*b\.png"):
        open_image("b.png", tmp_path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient


ROWS = [WHOLE, {"conversations": [ASKED, TOLD, ASKED, TOLD], "note": "späť [{\\\"]"}, {"image": "", "texts": []},
        {"image": "b.png", "conversations": [*[ASKED, TOLD] * 3]}, 5]


@pytest.mark.parametrize("written", [
    lambda rows: json.dumps(rows), lambda rows: json.dumps(rows, indent=2, ensure_ascii=False),
    lambda rows: "\n  [" + " ,\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "]\n "])
def test_rows_of_a_json_file_are_read_one_by_one_where_they_lie(tmp_path, written):
    path = tmp_path / "data.json"
    path.write_text(written(ROWS), encoding="utf-8")
    found = open_records(path)
    assert [found[i] for i in range(len(found))] == ROWS
    assert found.has_image.tolist() == [True, False, False, True, True]
    assert found.answers.tolist() == [1, 2, 1, 3, 1]


@pytest.mark.parametrize("role", ["GPT", "Assistant"])
def test_answers_are_counted_however_their_role_is_written(tmp_path, role):
    turns = [{"from": who, "value": str(n)} for n in range(3) for who in ("Human", role)]
    (tmp_path / "data.json").write_text(json.dumps([{"conversations": turns}]))
    found = open_records(tmp_path / "data.json")
    assert found.answers.tolist() == [3]
    assert [turn.parts for turn in read_conversation(found[0]).only(2).turns] == [("2",), ("2",)]


def test_a_jsonl_file_has_its_broken_lines_among_its_rows(tmp_path):
    path = tmp_path / "data.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    path.write_text("\n".join([lines[0], "", "{broken", *lines[1:]]), encoding="utf-8")
    found = open_records(path)
    assert len(found) == 1 + len(ROWS) and found[2] == ROWS[1] and found[5] == ROWS[-1]
    with pytest.raises(ValueError, match="Expecting property name"):
        found[1]


@pytest.mark.parametrize("name, text, why", [
    ("data.json", '{"rows": []}', r"data must be a list of rows, .*data\.json begins with"),
    ("data.json", '[{"a": 1}, {"b": ', r"data must be JSON, .* is not at byte 11"),
    ("data.json", "[]", "data must hold rows, got none"),
    ("data.jsonl", "\n", "data must hold rows, got none"),
])
def test_a_file_without_rows_is_refused(tmp_path, name, text, why):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=why):
        open_records(tmp_path / name)


def test_no_file_and_no_datasets_are_said(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="data must be a file or folder with conversations"):
        open_records(tmp_path / "nowhere.json")
    monkeypatch.setattr(records_of, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="datasets must be installed to read .*: pip install datasets"):
        open_records(tmp_path)


def test_hugging_face_data_sets_are_read_without_decoding_their_images(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    columns = {"image": [{"bytes": picture(("PNG", "RGB")), "path": None}, None, {"bytes": b"broken", "path": None}],
               "conversations": [[ASKED, TOLD], [ASKED, TOLD, ASKED, TOLD], [ASKED, TOLD]]}
    features = datasets.Features({"image": datasets.Image(), "conversations": [
        {"from": datasets.Value("string"), "value": datasets.Value("string")}]})
    made = datasets.Dataset.from_dict(columns, features=features)
    made.save_to_disk(str(tmp_path / "saved"))
    made.to_parquet(str(tmp_path / "data.parquet"))
    for path in (tmp_path / "saved", tmp_path / "data.parquet"):
        found = open_records(path)
        assert found.has_image.tolist() == [True, False, True] and found.answers.tolist() == [1, 2, 1]
        read = read_conversation(found[0])
        assert read.turns == READ.turns and open_image(read.images[0], None).size == (9, 7)
        with pytest.raises(BadSample, match="cannot be read"):
            open_image(read_conversation(found[2]).images[0], None)


def test_a_json_file_needs_no_datasets(tmp_path, monkeypatch):
    (tmp_path / "data.json").write_text(json.dumps([WHOLE]))
    real = builtins.__import__

    def without(name, *rest):
        assert name.split(".")[0] not in ("datasets", "pyarrow")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert np.all(open_records(tmp_path / "data.json").has_image)
