"""What a model said to each question of a cell, so that two cells can be compared question by question.

A cell's lines are written together, before its record. Should the run be cut off between the two, the cell runs again
and writes all of them again; of a question that stands there twice the later line counts.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from sys import intern

from . import record

FILE_NAME = "answers.jsonl"
_FIELDS = {"cell", "sample", "prediction", "score"}
_LATER = ("image", "question", "answer")  # files of earlier versions lack them


@dataclass(frozen=True, slots=True)
class Answer:
    """cell: the key of its record. sample: the question's id in its data set, or its place in the run.

    image: the id of the image it is about; questions of one image are not independent. question: as asked. answer: the
    one expected. All three are None in files of earlier versions.
    """

    cell: tuple
    sample: str
    prediction: str
    score: bool | float
    image: str | None = None
    question: str | None = None
    answer: str | None = None

    def to_json(self) -> str:
        later = {name: getattr(self, name) for name in _LATER if getattr(self, name) is not None}
        return json.dumps({"cell": list(self.cell), "sample": self.sample, "prediction": self.prediction,
                           "score": self.score, **later}, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str):
        """The inverse of to_json. ValueError names what is wrong."""
        values = json.loads(line)
        if not isinstance(values, dict) or not _FIELDS <= values.keys() <= _FIELDS | set(_LATER):
            raise ValueError(f"an answer must be a JSON object of {', '.join(sorted(_FIELDS))}")
        if not isinstance(values["cell"], list):
            raise ValueError(f"cell must be a list, got {values['cell']!r}")
        texts = {name: intern(values[name]) for name in _LATER if isinstance(values.get(name), str)}
        return cls(tuple(values["cell"]), values["sample"], values["prediction"], values["score"], **texts)


def append(out: Path, cell: record.Record, samples: Sequence, predictions: Sequence[str], scores: Sequence) -> None:
    """Adds the lines of a whole cell."""
    key = cell.key()
    write(out, [Answer(key, sample.sample_id or str(number), prediction, score, sample.image_id, sample.question,
                       sample.answer)
                for number, (sample, prediction, score) in enumerate(zip(samples, predictions, scores, strict=True))])


def write(out: Path, said: Sequence[Answer]) -> None:
    """Adds these lines, forced to disk together."""
    record.append_lines(Path(out) / FILE_NAME, [one.to_json() for one in said], Answer.from_json)


def read(run_dir, cells: Collection[tuple] | None = None) -> dict[tuple, dict[str, Answer]]:
    """{key of a cell: {sample: its answer}} of a run, or of some of its cells; an absent file is an empty dict."""
    found: dict[tuple, dict[str, Answer]] = {}

    def parse(line):
        one = Answer.from_json(line)
        if cells is None or one.cell in cells:
            found.setdefault(one.cell, {})[one.sample] = one

    record.read_lines(Path(run_dir) / FILE_NAME, parse)
    return found
