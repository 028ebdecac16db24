"""POPE: is an object in the image, yes or no. Half of the objects asked about are not there."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from .base import Task
from .files import SHORT, FromFiles, Question, field_of, folder, load


@dataclass(frozen=True)
class Pope(FromFiles, Task):
    """Polling for hallucinated objects: yes or no, scored as the authors' evaluate.py does.

    Args:
        annotations: coco_pope_random.json, coco_pope_popular.json or coco_pope_adversarial.json: one JSON object per
            line, with question_id, image, text and label.
        images: COCO's val2014.
        suffix: what stands behind each question, on a line of its own.

    Data: Li et al., Evaluating Object Hallucination in Large Vision-Language Models, EMNLP 2023.
    """

    annotations: Path
    images: Path
    suffix: str = SHORT

    name: ClassVar[str] = "pope"

    def read(self) -> Iterator[Question]:
        text = load("annotations", self.annotations, "a file such as coco_pope_popular.json")
        images = folder("images", self.images, "the folder of COCO's val2014 images")
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            where = f"annotations {self.annotations}, line {number}"
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{where} must be one JSON object: {error}") from None
            label = field_of(entry, "label", str, where)
            if label not in ("yes", "no"):
                raise ValueError(f"{where}: 'label' must be yes or no, got {label!r}")
            yield Question(str(field_of(entry, "question_id", (int, str), where)),
                           images / field_of(entry, "image", str, where), field_of(entry, "text", str, where), label)

    def score(self, prediction, sample) -> bool:
        return says(prediction) == sample.answer

    def summary(self, predictions, samples) -> dict[str, float]:
        """Precision, recall and F1 of "yes", 0 where nothing counts towards them, and the share of yes."""
        said = [says(prediction) == "yes" for prediction in predictions]
        there = [sample.answer == "yes" for sample in samples]
        right = sum(a and b for a, b in zip(said, there, strict=True))
        precision = right / sum(said) if any(said) else 0.0
        recall = right / sum(there) if any(there) else 0.0
        both = precision + recall
        return {"precision": precision, "recall": recall, "f1": 2 * precision * recall / both if both else 0.0,
                "yes_ratio": sum(said) / len(said)}


def says(prediction: str) -> str:
    """"no" if the first sentence has No, no or not as a word of its own, else "yes": NO and silence are yes."""
    words = prediction.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"
