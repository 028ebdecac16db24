"""Three coloured handwritten digits on a noisy canvas: "which digit is red" has the answer "7". Needs no download.

A digit covers exactly 2 x 2 patches, so which patches an answer needs is known, and token selection can be judged by
what it keeps, not only by what the model then says.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import ClassVar

import numpy as np

from .base import Sample, Task
from .drawn import Drawings, Drawn

SIZE, PATCH, QUESTIONS = 64, 8, 3
GRID = SIZE // PATCH
TOKENS = GRID * GRID
COLOURS = {"red": (255, 26, 26), "green": (26, 255, 26), "blue": (51, 77, 255),
           "yellow": (255, 255, 26), "magenta": (255, 51, 255), "cyan": (26, 255, 255)}
TRAIN_GLYPHS = 1400  # of 1797
CHUNK = 64  # images are drawn in chunks with a generator each, so a stream can start anywhere
FOOTPRINT = np.array([0, 1, GRID, GRID + 1])  # the patches of a digit, from its top left patch
WORDS = (*COLOURS, "which", "digit", "is", *"0123456789")


@lru_cache
def glyphs() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits at twice their size: ink in 0..1 as float32 [1797, 16, 16], labels int64 [1797]."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return (data.images / 16).repeat(2, 1).repeat(2, 2).astype(np.float32), data.target.astype(np.int64)


@lru_cache
def glyphs_of(split: str) -> np.ndarray:
    """Rows of `glyphs` that `split` may draw. The digits themselves are divided, so no test digit was ever seen."""
    order = np.random.default_rng(0).permutation(len(glyphs()[1]))
    return order[:TRAIN_GLYPHS] if split == "train" else order[TRAIN_GLYPHS:]


@lru_cache
def placements() -> np.ndarray:
    """Every way to put the digits on patch boundaries without overlap: top left patches, int64 [P, Q]."""
    corners = np.array([(row, col) for row in range(GRID - 1) for col in range(GRID - 1)])
    sets = np.array(list(combinations(range(len(corners)), QUESTIONS)))
    apart = np.ones(len(sets), bool)
    for a, b in combinations(range(QUESTIONS), 2):
        apart &= np.abs(corners[sets[:, a]] - corners[sets[:, b]]).max(1) >= 2
    return (corners @ [GRID, 1])[sets[apart]]


@dataclass(frozen=True, eq=False)
class Canvases(Drawings):
    """A batch of drawn images with all that is known about them.

    Args:
        images: uint8 [B, 64, 64, 3].
        colours: index into COLOURS of each question's digit, int64 [B, Q]; distinct within an image.
        answers: its value 0..9, int64 [B, Q].
        corners: its top left patch, int64 [B, Q].
    """

    images: np.ndarray
    colours: np.ndarray
    answers: np.ndarray
    corners: np.ndarray

    words: ClassVar[tuple[str, ...]] = WORDS
    classes: ClassVar[dict[str, int]] = {"digit": 10, "colour": len(COLOURS)}

    def question(self, number):
        row = np.arange(len(number))
        return Canvases(self.images, *(x[row, number][:, None] for x in (self.colours, self.answers, self.corners)))

    def turns(self):
        asked = np.empty((*self.colours.shape, 4), np.int64)
        asked[..., :3] = [WORDS.index(word) for word in ("which", "digit", "is")]
        asked[..., 3] = self.colours  # the first words
        return asked, (self.answers + WORDS.index("0"))[..., None]

    def patch_labels(self):
        return {"digit": self.on_patches(self.answers), "colour": self.on_patches(self.colours)}

    def relevant(self) -> np.ndarray:
        """Patches of each question's digit, int64 [B, Q, 4], ascending."""
        return self.corners[..., None] + FOOTPRINT

    def on_patches(self, values: np.ndarray) -> np.ndarray:
        """`values` [B, Q] + 1 at the patches of each digit, 0 at the background: int64 [B, N]."""
        labels = np.zeros((len(values), TOKENS), np.int64)
        np.put_along_axis(labels, self.relevant().reshape(len(values), -1), (values + 1).repeat(4, 1), 1)
        return labels


def draw(split: str, count: int, seed: int, *, start: int = 0, noise: float = 0.25) -> Canvases:
    """Images start .. start + count of the endless stream that `split` and `seed` name, with no loop over images.

    Args:
        split: "train" or "test": which handwritten digits may appear.
        count: B, images drawn.
        seed: of the stream, >= 0.
        start: position in the stream; any two calls agree on the images they share.
        noise: brightest background in 0..1; each byte is uniform up to it.

    Raises:
        ValueError, TypeError: an unknown split, or a count, seed or start that is not an integer >= 0.
    """
    task = Digits(noise)
    task.check(split, count, seed)
    task.check(split, start, seed)
    ink, labels = glyphs()
    parts = [_chunk(split, seed, number, ink, labels, noise)
             for number in range(start // CHUNK, -(-(start + count) // CHUNK))]
    if not parts:
        parts = [_chunk(split, seed, 0, ink, labels, noise)]
    skipped = start - start // CHUNK * CHUNK
    return Canvases(*(np.concatenate(field)[skipped:skipped + count] for field in zip(*parts)))


def _chunk(split, seed, number, ink, labels, noise):
    rng = np.random.default_rng([seed, Digits.splits.index(split), number])
    chosen = rng.choice(glyphs_of(split), (CHUNK, QUESTIONS))
    corners = rng.permuted(rng.choice(placements(), CHUNK), axis=1)
    colours = rng.random((CHUNK, len(COLOURS))).argsort(1)[:, :QUESTIONS]
    # the noise comes last: another level leaves the scene as it is
    images = rng.integers(0, round(255 * noise) + 1, (CHUNK, SIZE, SIZE, 3), np.uint8)
    paint = np.array(list(COLOURS.values()), np.float32)[colours]
    digits = (ink[chosen][..., None] * paint[:, :, None, None] + 0.5).astype(np.uint8)  # [B, Q, 16, 16, 3]
    digits = digits.reshape(CHUNK, QUESTIONS, 2, PATCH, 2, PATCH, 3).swapaxes(3, 4).reshape(CHUNK, -1, PATCH, PATCH, 3)
    patches = images.reshape(CHUNK, GRID, PATCH, GRID, PATCH, 3).swapaxes(2, 3).reshape(CHUNK, TOKENS, PATCH, PATCH, 3)
    where = np.arange(CHUNK)[:, None], (corners[..., None] + FOOTPRINT).reshape(CHUNK, -1)
    patches[where] = np.maximum(patches[where], digits)
    images = patches.reshape(CHUNK, GRID, GRID, PATCH, PATCH, 3).swapaxes(2, 3).reshape(CHUNK, SIZE, SIZE, 3)
    return images, colours, labels[chosen], corners


@dataclass(frozen=True)
class Digits(Drawn, Task):
    """Name the digit of one colour among three, on an 8 x 8 grid of patches.

    Args:
        noise: brightest background in 0..1. The bundled model learnt 0.25.

    Data: scikit-learn's load_digits (Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI 1998).
    """

    noise: float = 0.25

    name: ClassVar[str] = "digits"
    side: ClassVar[int] = SIZE
    patch_size: ClassVar[int] = PATCH
    questions: ClassVar[int] = QUESTIONS
    drawings: ClassVar[type[Drawings]] = Canvases
    base_steps: ClassVar[tuple[int, int]] = (1500, 1200)

    def __post_init__(self):
        if not 0 <= self.noise <= 1:
            raise ValueError(f"noise must be in [0, 1], got {self.noise}")

    def draw(self, split: str, count: int, seed: int, *, start: int = 0) -> Canvases:
        return draw(split, count, seed, start=start, noise=self.noise)

    def samples(self, split: str, count: int, seed: int) -> list[Sample]:
        """`count` questions, three in a row about each image; see Task.samples."""
        self.check(split, count, seed)
        canvases = draw(split, -(-count // QUESTIONS), seed, noise=self.noise)
        names, relevant, result = list(COLOURS), canvases.relevant(), []
        for image, question in (divmod(index, QUESTIONS) for index in range(count)):
            result.append(Sample(
                image=canvases.images[image],
                question=f"which digit is {names[canvases.colours[image, question]]}",
                answer=str(canvases.answers[image, question]),
                relevant=tuple(relevant[image, question].tolist()),
                image_id=f"{split}-{seed}-{image}",
                foreground=tuple(sorted(relevant[image].ravel().tolist())),
            ))
        return result

    def score(self, prediction: str, sample: Sample) -> bool:
        """Right if the digits in the text, all of them, spell the answer: "7" and "It is 7." but not "7 or 1"."""
        return "".join(character for character in prediction if character in "0123456789") == sample.answer
