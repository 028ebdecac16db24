"""What a task is: named questions about images, drawn from a seed, and a rule that says which answers are right."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np

_TASKS: dict[str, type["Task"]] = {}


@dataclass(frozen=True)
class ImageFile:
    """An image on disk, opened only when it is asked for: thousands of them do not fit into memory."""

    path: Path

    def open(self):
        """The PIL image in mode RGB. ValueError: it cannot be read as an image."""
        from PIL import Image

        try:
            with Image.open(self.path) as image:
                return image.convert("RGB")
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{self.path} cannot be read as an image: {error}") from None


@dataclass(frozen=True, eq=False)
class Sample:
    """One question about one image.

    Args:
        image: uint8 array [H, W, 3], a PIL image in mode RGB, or an ImageFile.
        question: the text asked, without placeholders or chat markup.
        answer: the text expected.
        relevant: positions (row-major, patches of the task's `patch_size`) that hold the answer, None if not known.
        image_id: samples with equal ids show the same image.
        foreground: positions of everything that could be asked about in this image, None if not known.
        sample_id: the question's own name in its data set, "" if it has none.
        about: what else the task needs to score it.
    """

    image: Any
    question: str
    answer: str
    relevant: tuple[int, ...] | None
    image_id: str
    foreground: tuple[int, ...] | None = None
    sample_id: str = ""
    about: Mapping = field(default_factory=dict)

    def __post_init__(self):
        if isinstance(self.image, ImageFile):
            return
        array = isinstance(self.image, np.ndarray)
        if array and not (self.image.dtype == np.uint8 and self.image.ndim == 3 and self.image.shape[2] == 3):
            raise ValueError(f"image must be uint8 [H, W, 3], got {self.image.dtype} {list(self.image.shape)}")
        if not array and getattr(self.image, "mode", None) != "RGB":
            came = type(self.image).__name__
            raise TypeError(f"image must be a uint8 array [H, W, 3] or a PIL RGB image, got {came}")

    def picture(self):
        """The image itself, read from disk where it lies there."""
        return self.image.open() if isinstance(self.image, ImageFile) else self.image


class Task(ABC):
    """A source of samples; a subclass with a `name` is in the registry, its dataclass fields are its options.

    new_tokens: tokens an answer may have. batch: prompts at a time, unless the evaluation says otherwise.
    places: options that say where the data lies, and nothing of what is asked. budgets: counts that are worth asking
    for, unless the evaluation says otherwise.
    """

    name: ClassVar[str]
    splits: ClassVar[tuple[str, ...]] = ("train", "test")
    patch_size: ClassVar[int | None] = None
    new_tokens: ClassVar[int] = 2
    batch: ClassVar[int] = 128
    places: ClassVar[frozenset[str]] = frozenset()
    budgets: ClassVar[tuple[int, ...]] = (64, 128, 192)

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
        """`count` samples of `split`, or all where there are fewer; the same arguments give the same samples, a smaller
        count a prefix of them."""

    @abstractmethod
    def score(self, prediction: str, sample: Sample) -> bool | float:
        """Whether the generated text `prediction` answers `sample` rightly, or in [0, 1] how far it does."""

    def summary(self, predictions: Sequence[str], samples: Sequence[Sample]) -> dict[str, float]:
        """What the task reports of all answers together, beside their mean score: {name: value}."""
        return {}

    @property
    def size(self) -> int | None:
        """How many samples the test split has; None: as many as are asked for."""
        return None

    @property
    def label(self) -> str:
        """What records call the task: its name, and whichever options are not as they come."""
        given = [(f.name, getattr(self, f.name)) for f in options_of(type(self))
                 if f.name not in self.places and getattr(self, f.name) != f.default]
        return self.name + "".join(f",{name}={v.stem if isinstance(v, Path) else v}" for name, v in given)

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


def options_of(task: type[Task]) -> tuple[Field, ...]:
    """The options of a task, as dataclass fields."""
    return fields(task) if is_dataclass(task) else ()


def build(name: str, **options) -> Task:
    """The task called `name`, with its options.

    Raises:
        ValueError: no task has this name, or an option has a wrong value.
        TypeError: the task has no such option, or needs one that is not given.
        FileNotFoundError: an option names a file that is not there.
    """
    task = find(name)
    known = options_of(task)
    names = [f.name for f in known]
    if unknown := [option for option in options if option not in names]:
        raise TypeError(f"task {name} has no option {unknown[0]}; its options: {', '.join(names) or 'none'}")
    if missing := [f.name for f in known if f.name not in options and f.default is f.default_factory is MISSING]:
        raise TypeError(f"task {name} needs the option {missing[0]}; its options: {', '.join(names)}")
    return task(**options)


def parse_options(name: str, texts: Sequence[str]) -> dict[str, Any]:
    """What build(name, ...) takes, of "key=value" as a command line has them.

    ValueError: another form, a key twice, or a value of the wrong kind; unknown keys are left to `build`.
    """
    known, found = {f.name: f for f in options_of(find(name))}, {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key:
            names = ", ".join(known) or "none"
            raise ValueError(f"task-option must be key=value with a key out of {names}, got {text!r}")
        if key in found:
            raise ValueError(f"task-option {key} must be given once, got it twice")
        found[key] = _converted(known[key], value) if key in known else value
    return found


def _converted(option, text):
    kinds = get_args(option.type) or (option.type,)
    for kind, what in ((float, "a number"), (int, "a whole number")):
        if kind in kinds:
            try:
                return kind(text)
            except ValueError:
                raise ValueError(f"task-option {option.name} must be {what}, got {text!r}") from None
    return Path(text) if Path in kinds else text


def find(name: str) -> type[Task]:
    """The class of a task. ValueError: there is none of this name."""
    if name not in _TASKS:
        raise ValueError(f"task must be one of {', '.join(available())}, got {name!r}")
    return _TASKS[name]
