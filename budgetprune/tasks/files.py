"""What tasks of published benchmarks share: questions read from files on disk, images that stay there until needed."""

import json
import re
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np

from .base import ImageFile, Sample

SHORT = "Answer the question using a single word or phrase."


@dataclass(frozen=True)
class Question:
    """One question of a file. image: its file. text: as asked, without the suffix."""

    sample_id: str
    image: Path
    text: str
    answer: str
    about: dict = field(default_factory=dict)


class FromFiles:
    """Half a task: `samples` of the questions that `read` yields. Beside it stands Task.

    A subset is drawn by the seed from the whole file, so that a few hundred questions are not the file's first
    images; all of them are the same whatever the seed.
    """

    splits: ClassVar[tuple[str, ...]] = ("test",)
    new_tokens: ClassVar[int] = 128
    batch: ClassVar[int] = 16
    places: ClassVar[frozenset[str]] = frozenset({"annotations", "images", "pid_splits"})

    def __post_init__(self):
        for option in fields(self):
            value = getattr(self, option.name)
            if isinstance(value, str) and Path in (get_args(option.type) or (option.type,)):
                object.__setattr__(self, option.name, Path(value))  # the dataclass is frozen

    @abstractmethod
    def read(self) -> Iterator[Question]:
        """The questions of the files, in their order."""

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        found = tuple(self.read())
        if not found:
            raise ValueError(f"annotations must hold questions, got none in {self.annotations}")
        if len({question.sample_id for question in found}) < len(found):
            raise ValueError(f"annotations must name every question by an id of its own, not so in {self.annotations}")
        return found

    @property
    def size(self) -> int:
        return len(self.questions)

    @property
    def label(self) -> str:
        """With the name of the file, which tells POPE's three apart."""
        return f"{self.name}:{self.annotations.stem}{super().label.removeprefix(self.name)}"

    def samples(self, split: str, count: int, seed: int) -> list[Sample]:
        """`count` questions, or all where there are fewer; see Task.samples.

        FileNotFoundError: an image is missing; before any of them is opened.
        """
        self.check(split, count, seed)
        order = np.random.default_rng(seed).permutation(self.size)[:count]
        chosen = [self.questions[number] for number in order]
        missing = sorted({question.image for question in chosen if not question.image.is_file()})
        if missing:
            raise FileNotFoundError(f"images must hold what annotations name: {len(missing)} images of {len(chosen)} "
                                    f"questions are missing, the first is {missing[0]}")
        suffix = f"\n{self.suffix}" if self.suffix else ""
        return [Sample(ImageFile(question.image), question.text + suffix, question.answer, None,
                       image_id=_safe(self.name, question.image), sample_id=question.sample_id, about=question.about)
                for question in chosen]


def _safe(task, image):
    """A name that a picture of the report may have as a file: ScienceQA's are all called image.png."""
    name = f"{image.parent.name}-{image.stem}" if image.stem == "image" else image.stem
    return re.sub(r"[^\w.-]", "_", f"{task}-{name}")


def load(option: str, path: Path, expected: str) -> str:
    """The text of a file. FileNotFoundError names the option and what is `expected` of it."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{option} must be {expected}, got {path}, which is no file")
    return Path(path).read_text(encoding="utf-8")


def load_json(option: str, path: Path, expected: str) -> Any:
    try:
        return json.loads(load(option, path, expected))
    except ValueError as error:
        raise ValueError(f"{option} must be {expected}; {path} is not JSON: {error}") from None


def folder(option: str, path: Path, expected: str) -> Path:
    """The folder itself. FileNotFoundError names the option and what is `expected` of it."""
    if not Path(path).is_dir():
        raise FileNotFoundError(f"{option} must be {expected}, got {path}, which is no folder")
    return Path(path)


def field_of(entry: Any, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """entry[name], of one of these kinds. ValueError names the entry and what is wrong with it."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    wanted = " or ".join(k.__name__ for k in kinds)
    if not isinstance(entry, dict):
        raise ValueError(f"{where} must be a JSON object, got {type(entry).__name__}")
    if name not in entry:
        raise ValueError(f"{where} must have {name!r}, got only {', '.join(map(repr, entry)) or 'nothing'}")
    value = entry[name]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise ValueError(f"{where}: {name!r} must be {wanted}, got {value!r}")
    return value


def shares(values: list[tuple[str, bool | float]]) -> dict[str, float]:
    """{name: mean of its scores}, names sorted."""
    names = sorted({name for name, _ in values})
    groups = {name: [score for other, score in values if other == name] for name in names}
    return {name: sum(scores) / len(scores) for name, scores in groups.items()}
