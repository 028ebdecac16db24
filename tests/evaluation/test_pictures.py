"""Pictures show what was kept, and refuse what they cannot show."""

import base64
import io
import json
import re
from types import SimpleNamespace

import pytest
from PIL import Image
from sample_run import inside, picture, png, report

from budgetprune.evaluation import write_report
from budgetprune.evaluation.overlays import note, packed
from budgetprune.evaluation.pictures import LARGEST, crops, data_uri, dim_path, middle_of
from budgetprune.selectors import available


def test_pictures_show_kept_patches_question_answer_and_verdict(run_dir):
    shots = [picture(), picture("random", 4, (2, 3, 8, 9), prediction="1"), picture(keep=12, kept=range(12)),
             picture("random", 4, (2, 3), question="blue digit ?", answer="3")]
    page = report(run_dir(pictures=shots))
    cards = page.all("figure", class_="card")
    assert len(cards) == 2
    # The headline's cell, learnt at 12, is shown first; the second question has no such picture yet.
    assert "hidden" not in cards[0] and "hidden" in cards[1]
    assert cards[0]["text"] == "red digit ?✓ right says 7, answer 7"
    assert [e["d"] for e in page.all("path", class_="dim") if inside(e, cards[0])] == ["M0 3h4v1h-4z"]
    image = next(e for e in page.all("img") if inside(e, cards[0]))
    assert image["src"].startswith("data:image/png;base64,") and "12 of 16 patches kept by learnt" in image["alt"]
    data = json.loads(page.all("script")[0]["text"])["pictures"]
    assert [m["name"] for m in data["methods"]] == ["learnt", "random"] and data["wanted"] == [0, 12]
    assert [len(s["shots"]) for s in data["scenes"]] == [3, 1]
    assert [s["right"] for s in data["scenes"][0]["shots"]] == [True, False, True]
    assert all(e.get("alt") for e in page.all("img"))


def test_the_mask_covers_exactly_the_dropped_patches():
    assert dim_path((2, 3), [0, 1, 2, 3, 4, 5]) == ""
    assert dim_path((2, 3), []) == "M0 0h3v1h-3zM0 1h3v1h-3z"
    for kept in ([0, 4], [5], [1, 2, 3]):
        runs = re.findall(r"M(\d+) (\d+)h(\d+)v1h-(\d+)z", dim_path((2, 3), kept))
        covered = [int(y) * 3 + int(x) + i for x, y, n, back in runs for i in range(int(n)) if n == back]
        assert sorted(covered) == [i for i in range(6) if i not in kept]


@pytest.mark.parametrize(("change", "words"), [
    ({"image": "../secret.png"}, "image must lie within"),
    ({"image": "/etc/passwd"}, "image must lie within"),
    ({"image": "images/none.png"}, "cannot be read: No such file"),
    ({"image": "records.jsonl"}, "must be a PNG file"),
    ({"kept": [0, 16]}, r"line 1: kept must be distinct positions in \[0, 16\)"),
    ({"kept": [1, 1]}, "line 1: kept must be distinct"),
    ({"kept": [-1]}, "line 1: kept must be distinct"),
    ({"grid": [4]}, r"line 1: grid must be \[rows, columns\], got \[4\]"),
    ({"keep": "4"}, "line 1: keep must be an int, got '4'"),
    ({"right": "yes"}, "line 1: right must be true or false, got 'yes'"),
])
def test_unusable_pictures_are_named(run_dir, change, words):
    with pytest.raises(ValueError, match=words):
        write_report(run_dir(pictures=[picture(**change), picture()]))


def test_without_pictures_their_section_is_hidden(run_dir):
    page = report(run_dir())
    assert "hidden" in next(e for e in page.all("section") if e["id"] == "pictures")
    assert not page.all("figure", class_="card") and not page.all("figure", class_="hero")


def test_positions_are_packed_one_bit_a_patch():
    for cells, kept in ((9, [0, 8]), (576, range(0, 576, 7)), (1, []), (64, range(64))):
        raw = base64.b64decode(packed(cells, kept))
        assert len(raw) == -(-cells // 8)
        assert [i for i in range(cells) if raw[i // 8] >> i % 8 & 1] == list(kept)


def test_every_method_says_what_its_patches_mean():
    notes = {method: note(method) for method in available()}
    assert all(notes.values()) and note("a method of another package") == ""
    assert "first layers read every patch" in notes["fastv"] and "depends on the question" in notes["fastv"]
    assert "Merges" in notes["tome"] and "Merges" not in notes["divprune"]
    assert "merges part of what it drops" in notes["sparsevlm"] and "does not depend" in notes["visionzip"]


def test_a_picture_larger_than_any_page_is_made_smaller_and_a_small_one_stays_as_it_is(tmp_path):
    (tmp_path / "small.png").write_bytes(png(16, 12))
    (tmp_path / "large.png").write_bytes(png(2 * LARGEST, LARGEST))

    def embedded(name):
        return base64.b64decode(data_uri(tmp_path, name).partition(",")[2])
    assert embedded("small.png") == png(16, 12)
    assert Image.open(io.BytesIO(embedded("large.png"))).size == (LARGEST, LARGEST // 2)


@pytest.mark.parametrize("size, grid, box", [
    ((60, 40), (4, 4), (10, 0, 50, 40)), ((40, 60), (4, 4), (0, 10, 40, 50)), ((60, 40), (4, 6), (0, 0, 60, 40)),
    ((61, 40), (2, 1), (20, 0, 40, 40))])
def test_where_the_model_sees_the_middle_of_an_image_the_picture_is_that_middle(size, grid, box):
    image = Image.new("RGB", size)
    image.paste("red", box)
    seen = middle_of(image, grid)
    assert seen.size == (box[2] - box[0], box[3] - box[1])
    assert seen.getcolors() == [(seen.width * seen.height, (255, 0, 0))]


def test_only_a_processor_that_crops_does():
    for value in (True, False, None):
        assert crops(SimpleNamespace(image_processor=SimpleNamespace(do_center_crop=value))) is bool(value)
    assert not crops(SimpleNamespace(tokenizer=None))


def test_no_more_than_eight_scenes_of_a_task_are_shown(run_dir):
    shots = [picture(question=f"{task} {i}", task=task) for i in range(10) for task in ("a", "b")]
    data = json.loads(report(run_dir(pictures=shots)).all("script")[0]["text"])["pictures"]
    assert [scene["task"] for scene in data["scenes"]] == ["a", "b"] * 8
