"""ScienceQA: school questions with two to five choices; those with an image."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from .base import Task
from .files import FromFiles, Question, field_of, folder, load_json, shares

LETTERS = ("A", "B", "C", "D", "E")
SUFFIX = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class ScienceQa(FromFiles, Task):
    """The questions of ScienceQA that have an image (SQA-IMG): the letter that LLaVA's script reads must be right.

    Args:
        annotations: problems.json: one JSON object, problem id to question, choices, answer, hint, image, subject.
        pid_splits: the file that says which problems a subset has; None: pid_splits.json beside `annotations`.
        images: folder that holds <problem id>/<image>; None: images/<split of the problem> beside `annotations`.
        subset: name of a list in `pid_splits`, such as test or val.
        suffix: what stands behind each question, on a line of its own.

    Data: Lu et al., Learn to Explain, NeurIPS 2022.
    """

    annotations: Path
    pid_splits: Path | None = None
    images: Path | None = None
    subset: str = "test"
    suffix: str = SUFFIX

    name: ClassVar[str] = "scienceqa"
    new_tokens: ClassVar[int] = 1024  # LLaVA's own: an answer may reason before it says its letter

    def read(self) -> Iterator[Question]:
        problems = load_json("annotations", self.annotations, "ScienceQA's problems.json")
        path = self.annotations.parent / "pid_splits.json" if self.pid_splits is None else self.pid_splits
        subsets = load_json("pid_splits", path, "ScienceQA's pid_splits.json")
        for option, value, file in (("annotations", problems, self.annotations), ("pid_splits", subsets, path)):
            if not isinstance(value, dict):
                raise ValueError(f"{option} must be one JSON object, got a {type(value).__name__} in {file}")
        if self.subset not in subsets:
            raise ValueError(f"subset must be one of {', '.join(subsets)}, the lists of {path}; got {self.subset!r}")
        if self.images is not None:
            folder("images", self.images, "the folder of ScienceQA's images, one folder per problem")
        for key in field_of(subsets, self.subset, list, f"pid_splits {path}"):
            if key not in problems:
                raise ValueError(f"annotations must have all problems of {path}, got no {key!r} in {self.annotations}")
            problem, where = problems[key], f"annotations {self.annotations}, problem {key}"
            if isinstance(problem, dict) and not problem.get("image"):
                continue
            yield self._question(key, problem, where)

    def _question(self, key, problem, where):
        image, choices = field_of(problem, "image", str, where), field_of(problem, "choices", list, where)
        answer = field_of(problem, "answer", int, where)
        if not 2 <= len(choices) <= len(LETTERS):
            raise ValueError(f"{where}: 'choices' must be two to {len(LETTERS)}, got {len(choices)}")
        if not 0 <= answer < len(choices):
            raise ValueError(f"{where}: 'answer' must be the number of a choice, 0 to {len(choices) - 1}, got {answer}")
        if self.images is None:
            images = self.annotations.parent / "images" / field_of(problem, "split", str, where)
        else:
            images = self.images
        hint = problem.get("hint") or ""
        lines = [f"Context: {hint}"] if hint else []
        lines += [field_of(problem, "question", str, where)]
        lines += [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices)]
        about = {"choices": len(choices)} | ({"subject": problem["subject"]} if problem.get("subject") else {})
        return Question(key, images / key / image, "\n".join(lines), LETTERS[answer], about)

    def score(self, prediction, sample) -> bool:
        letter = letter_of(prediction)
        return letter == sample.answer and LETTERS.index(letter) < sample.about["choices"]

    def summary(self, predictions, samples) -> dict[str, float]:
        """The accuracy of each subject, where the file names them."""
        subjects = [(f"accuracy_{sample.about['subject'].replace(' ', '_')}", self.score(prediction, sample))
                    for prediction, sample in zip(predictions, samples, strict=True) if "subject" in sample.about]
        return shares(subjects)


def letter_of(prediction: str) -> str | None:
    """The letter that an answer names, None if none: "B", "B. mushroom" or "... The answer is B."; not "B." or "b"."""
    text = prediction.replace("\n", ". ")
    if text.strip() in LETTERS:
        return text.strip()
    if text[:1] in LETTERS and text[1:3] == ". ":
        return text[0]
    # One with a full stop behind it goes before an earlier one without.
    found = re.search(r"The answer is ([A-E])\.", text) or re.search(r"The answer is ([A-E])", text)
    return found[1] if found else None
