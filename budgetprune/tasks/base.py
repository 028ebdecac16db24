"""What a task is: named questions about images, drawn from a seed, and a rule that says which answers are right."""

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

_TASKS: dict[str, type["Task"]] = {}


@dataclass(frozen=True, eq=False)
class Sample:
    """One question about one image.

    Args:
        image: uint8 array [H, W, 3], or a PIL image in mode RGB.
        question: the text asked, without placeholders or chat markup.
        answer: the text expected.
        relevant: positions (row-major, patches of the task's `patch_size`) that hold the answer, None if not known.
        image_id: samples with equal ids show the same image.
        foreground: positions of everything that could be asked about in this image, None if not known.
    """

    image: Any
    question: str
    answer: str
    relevant: tuple[int, ...] | None
    image_id: str
    foreground: tuple[int, ...] | None = None

    def __post_init__(self):
        array = isinstance(self.image, np.ndarray)
        if array and not (self.image.dtype == np.uint8 and self.image.ndim == 3 and self.image.shape[2] == 3):
            raise ValueError(f"image must be uint8 [H, W, 3], got {self.image.dtype} {list(self.image.shape)}")
        if not array and getattr(self.image, "mode", None) != "RGB":
            came = type(self.image).__name__
            raise TypeError(f"image must be a uint8 array [H, W, 3] or a PIL RGB image, got {came}")


class Task(ABC):
    """A source of samples; a subclass with a `name` is in the registry, its dataclass fields are its options."""

    name: ClassVar[str]
    splits: ClassVar[tuple[str, ...]] = ("train", "test")
    patch_size: ClassVar[int | None] = None

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        name = cls.__dict__.get("name")
        if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9_]+", name):
            raise ValueError(f"{cls.__name__}.name must match [a-z0-9_]+, got {name!r}")
        if name in _TASKS:
            raise ValueError(f"{cls.__name__}.name must be new, but {name!r} is {_TASKS[name].__name__}")
        _TASKS[name] = cls

    @abstractmethod
    def samples(self, split: str, count: int, seed: int) -> list[Sample]:
        """`count` samples of `split`; the same arguments give the same samples, a smaller count a prefix of them."""

    @abstractmethod
    def score(self, prediction: str, sample: Sample) -> bool:
        """Whether the generated text `prediction` answers `sample` rightly."""

    def check(self, split: str, count: int, seed: int):
        """Refuses a split the task does not have, and counts and seeds that are not integers >= 0."""
        if split not in self.splits:
            raise ValueError(f"split must be one of {', '.join(self.splits)}, got {split!r}")
        for name, value in (("count", count), ("seed", seed)):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise TypeError(f"{name} must be an int, got {type(value).__name__}")
            if value < 0:
                raise ValueError(f"{name} must be at least 0, got {value}")


def available() -> tuple[str, ...]:
    """Names of all tasks, sorted."""
    return tuple(sorted(_TASKS))


def build(name: str, **options) -> Task:
    """The task called `name`, with its options.

    Raises:
        ValueError: no task has this name.
        TypeError: the task has no such option.
    """
    if name not in _TASKS:
        raise ValueError(f"task must be one of {', '.join(available())}, got {name!r}")
    return _TASKS[name](**options)
