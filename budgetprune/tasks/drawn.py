"""What tasks that draw their images share: what every patch shows is known, so a small LLaVA can be trained for one.

Dimensions: B images, N patches of one image, Q questions about it, W words of the longest question.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from .base import Task, available, build, find

# What the image processor makes of a byte: 1/255 in double, then (x - 0.5) / 0.5 in single precision.
NORMALISED = ((np.arange(256) * (1 / 255)).astype(np.float32) - np.float32(0.5)) / np.float32(0.5)


class Drawings(ABC):
    """A batch of drawn images with all that is known about them.

    words: all words of questions and answers. classes: {what a patch shows: how many kinds of it there are}, what is
    hardest to see first.
    """

    words: ClassVar[tuple[str, ...]]
    classes: ClassVar[dict[str, int]]
    images: np.ndarray  # uint8 [B, side, side, 3]

    def pixel_values(self) -> np.ndarray:
        """What the image processor returns for these images, bit for bit: float32 [B, 3, side, side] in -1..1."""
        return NORMALISED[np.ascontiguousarray(self.images.transpose(0, 3, 1, 2))]

    @abstractmethod
    def question(self, number: np.ndarray) -> "Drawings":
        """The same images with one question each: number [B] of those they have."""

    @abstractmethod
    def turns(self) -> tuple[np.ndarray, np.ndarray]:
        """Questions [B, Q, W] and answers [B, Q, A] as positions in `words`, -1 behind a text shorter than others."""

    @abstractmethod
    def patch_labels(self) -> dict[str, np.ndarray]:
        """{what: its kind + 1 on every patch, 0 on the background, int64 [B, N]}, in the order of `classes`."""


class Drawn:
    """Half a task: images that it draws itself, several questions about each. Beside it stands Task.

    side: of an image in pixels. questions: Q. drawings: what `draw` returns. base_steps: what its LLaVA trains by
    default, steps of the vision tower and of the whole.
    """

    side: ClassVar[int]
    patch_size: ClassVar[int]
    questions: ClassVar[int]
    drawings: ClassVar[type[Drawings]]
    base_steps: ClassVar[tuple[int, int]]
    budgets: ClassVar[tuple[int, ...]] = (4, 8, 12, 16, 24, 32, 64)

    @abstractmethod
    def draw(self, split: str, count: int, seed: int, *, start: int = 0) -> Drawings:
        """Images start .. start + count of the endless stream that `split` and `seed` name; any two calls agree on
        the images they share."""

    @property
    def tokens(self) -> int:
        """N."""
        return (self.side // self.patch_size) ** 2


def drawn(task: str | Task) -> Task:
    """The task itself, by name as well, if it draws its images, so that a small LLaVA can be trained for it.

    ValueError: it reads them from files, or no task has this name.
    """
    if isinstance(task, Drawn) or (isinstance(task, str) and issubclass(find(task), Drawn)):
        return build(task) if isinstance(task, str) else task
    known = ", ".join(name for name in available() if issubclass(find(name), Drawn))
    raise ValueError(f"task must be one that draws its own images ({known}), got {getattr(task, 'name', task)}")
