"""ScienceQA: LLaVA's prompt, the letter that its script reads, and which problems a subset has."""

import pytest
from task_files import PROBLEMS, images, scienceqa

from budgetprune.tasks import build
from budgetprune.tasks.scienceqa import letter_of


def by_id(task):
    return {sample.sample_id: sample for sample in task.samples("test", task.size, 0)}


@pytest.mark.parametrize("prediction, letter", [
    ("B", "B"), (" B ", "B"), ("B. mushroom", "B"), ("B\nbecause", "B"), ("The answer is B.", "B"),
    ("The answer is B", "B"), ("I think. The answer is C.", "C"), ("The answer is A or the answer is B.", "A"),
    ("The answer is A, no. The answer is C.", "C"),  # one with a full stop behind it goes first
    ("B.", None), ("b", None), ("(B)", None), ("B mushroom", None), ("mushroom", None), ("", None),
    ("the answer is B.", None), ("The answer is (B)", None), ("F", None), ("Answer: B", None), ("B.mushroom", None),
    (" B\n", None),  # what a model says comes without spaces around it
])
def test_the_letter_is_the_one_that_llavas_script_reads(prediction, letter):
    assert letter_of(prediction) == letter


def test_prompts_are_those_of_llavas_evaluation(tmp_path):
    samples = by_id(build("scienceqa", **scienceqa(tmp_path)))
    assert samples["5"].question == ("Context: A food web.\nWhich is it?\nA. iron\nB. mushroom\n"
                                     "Answer with the option's letter from the given choices directly.")
    assert samples["11"].question.startswith("What is the capital of Wyoming?\nA. Phoenix\nB. Baton Rouge\n")


def test_only_problems_with_an_image_are_asked_and_those_of_the_subset(tmp_path):
    options = scienceqa(tmp_path)
    assert set(by_id(build("scienceqa", **options))) == {"5", "11"}
    for subset in ("val", "minival"):  # both lie in images/val
        assert set(by_id(build("scienceqa", **options, subset=subset))) == {"12"}
    with pytest.raises(ValueError, match="subset must be one of test, val, minival, the lists of .*; got 'tets'"):
        build("scienceqa", **options, subset="tets").samples("test", 1, 0)


def test_files_may_lie_elsewhere(tmp_path):
    options = scienceqa(tmp_path)
    moved = (tmp_path / "pid_splits.json").rename(tmp_path / "lists.json")
    with pytest.raises(FileNotFoundError, match="pid_splits must be ScienceQA's pid_splits.json, got"):
        build("scienceqa", **options).samples("test", 1, 0)
    other = images(tmp_path / "other", "5/image.png", "11/image.png")
    task = build("scienceqa", **options, pid_splits=moved, images=other)
    assert by_id(task)["5"].image.path == other / "5/image.png" and task.label == "scienceqa:problems"


def test_a_letter_beyond_the_choices_is_wrong_and_subjects_are_counted_apart(tmp_path):
    task = build("scienceqa", **scienceqa(tmp_path))
    samples = by_id(task)
    assert task.score("B", samples["5"]) is True and task.score("The answer is D.", samples["11"]) is True
    assert task.score("D", samples["5"]) is False and task.score("", samples["5"]) is False
    both = [samples["5"], samples["11"]]
    assert task.summary(["B", "A"], both) == {"accuracy_natural_science": 1.0, "accuracy_social_science": 0.0}


def test_a_file_without_subjects_and_hints_will_do(tmp_path):
    bare = {key: {name: value for name, value in problem.items() if name not in ("subject", "hint")}
            for key, problem in PROBLEMS.items()}
    task = build("scienceqa", **scienceqa(tmp_path, bare))
    samples = task.samples("test", 2, 0)
    assert task.summary(["A", "B"], samples) == {} and not any("Context" in sample.question for sample in samples)
