"""Pictures show what was kept, and refuse what they cannot show."""

import json
import re

import pytest
from sample_run import inside, picture, report

from budgetprune.evaluation import write_report
from budgetprune.evaluation.pictures import dim_path


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
