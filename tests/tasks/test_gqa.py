"""GQA: exact match as its eval.py counts it, after what LLaVA does to an answer."""

import pytest
from task_files import GQA, gqa

from budgetprune.tasks import build


def by_id(task):
    return {sample.sample_id: sample for sample in task.samples("test", task.size, 0)}


@pytest.mark.parametrize("prediction, right", [
    ("woman", True), ("Woman", True), ("WOMAN.", True), ("woman..", True), ("The woman", False), ("women", False),
    ("woman ", False), ("", False), (".woman", False), ("woman!", False),
])
def test_the_answer_must_be_the_same_but_for_case_and_full_stops_behind(prediction, right, tmp_path):
    task = build("gqa", **gqa(tmp_path))
    assert task.score(prediction, by_id(task)["201640614"]) is right


def test_only_balanced_questions_are_asked(tmp_path):
    task = build("gqa", **gqa(tmp_path))
    samples = by_id(task)
    assert set(samples) == {"201307251", "201640614"}
    assert samples["201307251"].question == "Is it overcast?\nAnswer the question using a single word or phrase."
    assert samples["201307251"].image.path.name == "n161313.jpg" and samples["201307251"].answer == "no"


def test_open_and_binary_questions_are_counted_apart_where_the_file_has_their_types(tmp_path):
    task = build("gqa", **gqa(tmp_path))
    samples = by_id(task)
    pair = [samples["201307251"], samples["201640614"]]
    assert task.summary(["No", "man"], pair) == {"accuracy_binary": 1.0, "accuracy_open": 0.0}
    bare = {key: {name: entry[name] for name in ("question", "imageId", "answer")} for key, entry in GQA.items()}
    task = build("gqa", **gqa(tmp_path, bare))
    assert task.size == 3 and task.summary(["no"] * 3, task.samples("test", 3, 0)) == {}
