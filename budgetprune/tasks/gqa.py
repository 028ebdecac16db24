"""GQA: compositional questions about real images, one right answer each."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from .base import Task
from .files import SHORT, FromFiles, Question, field_of, folder, load_json, shares


@dataclass(frozen=True)
class Gqa(FromFiles, Task):
    """Questions about scene graphs, answered in a word or two: exact match as GQA's eval.py counts it.

    Args:
        annotations: testdev_balanced_questions.json: one JSON object, question id to question, imageId, answer.
        images: GQA's folder of images, named by imageId.
        suffix: what stands behind each question, on a line of its own.

    Data: Hudson and Manning, GQA, CVPR 2019.
    """

    annotations: Path
    images: Path
    suffix: str = SHORT

    name: ClassVar[str] = "gqa"

    def read(self) -> Iterator[Question]:
        entries = load_json("annotations", self.annotations, "a file such as testdev_balanced_questions.json")
        images = folder("images", self.images, "the folder of GQA's images")
        if not isinstance(entries, dict):
            raise ValueError(f"annotations must be one JSON object of questions by their ids, got a "
                             f"{type(entries).__name__} in {self.annotations}")
        for key, entry in entries.items():
            where = f"annotations {self.annotations}, question {key}"
            if isinstance(entry, dict) and entry.get("isBalanced") is False:
                continue  # eval.py counts the balanced ones only
            types = entry.get("types") if isinstance(entry, dict) else None
            structural = types.get("structural") if isinstance(types, dict) else None
            yield Question(key, images / f"{field_of(entry, 'imageId', str, where)}.jpg",
                           field_of(entry, "question", str, where), field_of(entry, "answer", str, where),
                           {} if structural is None else {"kind": "open" if structural == "query" else "binary"})

    def score(self, prediction, sample) -> bool:
        """Equal to the answer, once full stops at its end are gone and it is in lower case."""
        return prediction.rstrip(".").lower() == sample.answer

    def summary(self, predictions, samples) -> dict[str, float]:
        """The accuracy of yes-or-no and either-or questions, and of open ones, where the file tells them apart."""
        kinds = [(f"accuracy_{sample.about['kind']}", self.score(prediction, sample))
                 for prediction, sample in zip(predictions, samples, strict=True) if "kind" in sample.about]
        return shares(kinds)
