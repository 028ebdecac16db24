"""What a model said to each question of a cell, so that two cells can be compared question by question.

A cell's lines are written together, before its record. Should the run be cut off between the two, the cell runs again
and writes all of them again; of a question that stands there twice the later line counts.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import record

FILE_NAME = "answers.jsonl"
_FIELDS = {"cell", "sample", "prediction", "score"}


@dataclass(frozen=True)
class Answer:
    """cell: the key of its record. sample: the question's id in its data set, or its place in the run."""

    cell: tuple
    sample: str
    prediction: str
    score: bool | float

    def to_json(self) -> str:
        return json.dumps({"cell": list(self.cell), "sample": self.sample, "prediction": self.prediction,
                           "score": self.score}, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str):
        """The inverse of to_json. ValueError names what is wrong."""
        values = json.loads(line)
        if not isinstance(values, dict) or values.keys() != _FIELDS:
            raise ValueError(f"an answer must be a JSON object of {', '.join(sorted(_FIELDS))}")
        if not isinstance(values["cell"], list):
            raise ValueError(f"cell must be a list, got {values['cell']!r}")
        return cls(tuple(values["cell"]), values["sample"], values["prediction"], values["score"])


def append(out: Path, cell: record.Record, samples: Sequence, predictions: Sequence[str], scores: Sequence) -> None:
    """Adds the lines of a whole cell."""
    key = cell.key()
    lines = [Answer(key, sample.sample_id or str(number), prediction, score).to_json()
             for number, (sample, prediction, score) in enumerate(zip(samples, predictions, scores, strict=True))]
    record.append_lines(Path(out) / FILE_NAME, lines, Answer.from_json)


def read(run_dir) -> dict[tuple, dict[str, Answer]]:
    """{key of a cell: {sample: its answer}} of a run; an absent file is an empty dict."""
    found: dict[tuple, dict[str, Answer]] = {}
    for answer in record.read_lines(Path(run_dir) / FILE_NAME, Answer.from_json):
        found.setdefault(answer.cell, {})[answer.sample] = answer
    return found
