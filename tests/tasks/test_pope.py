"""POPE as its authors' script scores it: which words are a no, and precision, recall, F1 of yes."""

import pytest
from task_files import POPE, pope

from budgetprune.tasks import build
from budgetprune.tasks.pope import says


@pytest.fixture
def task(tmp_path):
    return build("pope", **pope(tmp_path))


def by_id(task):
    return sorted(task.samples("test", 4, 0), key=lambda sample: int(sample.sample_id))


@pytest.mark.parametrize("prediction, said", [
    ("Yes", "yes"), ("yes.", "yes"), ("No", "no"), ("no, there is none", "no"), ("No.", "no"),
    ("There is not a dog in the image.", "no"),
    ("There is no dog. Yes, a cat.", "no"),
    ("Yes. There is no doubt.", "yes"),  # the first sentence alone
    ("Yes, no", "no"),  # any word of it
    ("NO", "yes"), ("Nope", "yes"), ("nothing", "yes"), ("", "yes"), ("Not there", "yes"),  # as the script has it
    ("No\nthere is none", "yes"), ("no-one", "yes"),  # words end at spaces only
])
def test_an_answer_is_no_where_the_official_script_says_so(prediction, said):
    assert says(prediction) == said


def test_questions_are_read_as_published(task):
    first, second, *_ = by_id(task)
    assert first.question == "Is there a dog in the image?\nAnswer the question using a single word or phrase."
    assert (first.sample_id, first.answer, second.answer) == ("1", "yes", "no")
    assert first.image.path.name == POPE[0]["image"] and first.image_id == "pope-COCO_val2014_000000000001"
    assert (task.score("Yes", first), task.score("No", first), task.score("No.", second)) == (True, False, True)


def test_metrics_are_those_of_the_official_script(task):
    samples = by_id(task)  # yes, no, yes, no
    # Three yes of which two are right: precision 2/3, recall 2/2, F1 = 2 (2/3) / (5/3) = 4/5.
    assert task.summary(["Yes", "Yes", "Yes", "No"], samples) == pytest.approx(
        {"precision": 2 / 3, "recall": 1.0, "f1": 0.8, "yes_ratio": 0.75})
    # One yes, which is right, of two that should be: 1, 1/2, 2/3.
    assert task.summary(["No", "No", "Yes, a cup", "no"], samples) == pytest.approx(
        {"precision": 1.0, "recall": 0.5, "f1": 2 / 3, "yes_ratio": 0.25})
    # Where the script divides by zero.
    assert task.summary(["No"] * 4, samples) == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "yes_ratio": 0.0}
    assert task.summary(["Yes"], samples[1:2]) == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "yes_ratio": 1.0}


def test_blank_lines_are_no_questions(tmp_path):
    options = pope(tmp_path)
    options["annotations"].write_text("\n" + options["annotations"].read_text() + "\n\n")
    assert build("pope", **options).size == 4
