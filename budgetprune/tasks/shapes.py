"""Up to six coloured shapes, small and large, on a cluttered ground: how many are red, is there a blue circle, which
shape is leftmost. Needs no download.

Where `digits` asks for one object, most answers here need several, and a "no" or a count needs them all. A small shape
lies in one patch and a large one in 2 x 2, so which patches an answer needs is known.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from .base import Sample, Task
from .drawn import Drawings, Drawn
from .shapes_scene import (
    COLOURS,
    FOOTPRINT,
    GRID,
    KINDS,
    PATCH,
    QUESTIONS,
    SHAPES,
    SIDE,
    SIZES,
    TOKENS,
    WORDS,
    compose,
    covered,
    covered_parts,
)

OUTLINES, TRAIN_OUTLINES = 200, 150  # of each shape in each size
CHUNK = 64  # images are drawn in chunks with a generator each, so a stream can start anywhere
STRIPES = 3
ANSWERS = frozenset({"yes", "no", *"0123456789", *SHAPES, *COLOURS})


@lru_cache
def outlines() -> np.ndarray:
    """How much of each pixel a shape covers, in 0..1: float32 [size, shape, OUTLINES, 16, 16], small ones in the first
    8 x 8. Each outline is turned, stretched and shifted its own way; by plain arithmetic, alike on every machine."""
    rng = np.random.default_rng(0)
    result = np.zeros((len(SIZES), len(SHAPES), OUTLINES, 2 * PATCH, 2 * PATCH), np.float32)
    for size, (box, least, most) in enumerate(((PATCH, 3.0, 3.9), (2 * PATCH, 5.5, 7.6))):
        at = (np.arange(4 * box) + 0.5) / 4 - box / 2  # four by four points in a pixel
        for number, shape in enumerate(SHAPES):
            radius, turn, stretch, down, right = rng.random((5, OUTLINES, 1, 1))
            radius, stretch, turn = least + (most - least) * radius, 0.9 + 0.2 * stretch, 0.26 * turn - 0.13
            y = at[:, None] - (2 * down - 1) * (box / 2 - radius)
            x = at[None, :] - (2 * right - 1) * (box / 2 - radius)
            cosine, sine = (1 - turn**2) / (1 + turn**2), 2 * turn / (1 + turn**2)  # turn: tangent of half the angle
            u, v = (x * cosine + y * sine) / radius * stretch, (y * cosine - x * sine) / radius / stretch
            points = _inside(shape, u, v).reshape(OUTLINES, box, 4, box, 4)
            result[size, number, :, :box, :box] = points.mean((2, 4))
    return result


def _inside(shape, u, v):
    a, b = np.abs(u), np.abs(v)
    if shape == "circle":
        return u * u + v * v <= 1
    if shape == "square":
        return np.maximum(a, b) <= 0.86
    if shape == "triangle":
        return (v <= 0.85) & (2 * a <= v + 1)
    return (np.minimum(a, b) <= 0.3) & (np.maximum(a, b) <= 1)


@dataclass(frozen=True, eq=False)
class Scenes(Drawings):
    """A batch of drawn images with all that is known about them; entries of shapes that are not there mean nothing.

    Args:
        images: uint8 [B, 64, 64, 3].
        there: which of its shapes an image has, bool [B, MOST].
        kind: index into SHAPES, COLOURS and SIZES of each, int64 [B, MOST, 3].
        corner: its top left patch, int64 [B, MOST].
        asked, said: questions and answers as positions in WORDS: int64 [B, Q, LONGEST], -1 behind the last word, and
            [B, Q].
        asks: index into KINDS of each question, int64 [B, Q]: one of each, in any order.
        needed: whether its answer needs a patch, bool [B, Q, N].
    """

    images: np.ndarray
    there: np.ndarray
    kind: np.ndarray
    corner: np.ndarray
    asked: np.ndarray
    said: np.ndarray
    asks: np.ndarray
    needed: np.ndarray

    words: ClassVar[tuple[str, ...]] = WORDS
    classes: ClassVar[dict[str, int]] = {"shape": len(SHAPES), "colour": len(COLOURS), "part": 5, "row": GRID,
                                         "column": GRID}

    def question(self, number):
        row = np.arange(len(number))
        one = (x[row, number][:, None] for x in (self.asked, self.said, self.asks, self.needed))
        return Scenes(self.images, self.there, self.kind, self.corner, *one)

    def turns(self):
        return self.asked, self.said[..., None]

    def patch_labels(self):
        """`part`: a small shape, or one of the quarters of a large one; so every shape has one first part. `row` and
        `column` are the patch's own: where a shape lies is asked, too."""
        image, number, part = covered_parts(self.there, self.kind[..., 2])
        where, labels = self.corner[image, number] + FOOTPRINT[part], {}
        shape, colour, size = self.kind[image, number].T
        shown = (shape, colour, size + part, *np.divmod(where, GRID))
        for name, values in zip(self.classes, shown):
            labels[name] = np.zeros((len(self.there), TOKENS), np.int64)
            labels[name][image, where] = values + 1
        return labels

    def foreground(self) -> np.ndarray:
        """Patches with a shape, bool [B, N]."""
        return covered(self.there, self.kind[..., 2], self.corner)


@lru_cache(maxsize=4)  # a batch may begin in the middle of one
def _chunk(split, seed, number, clutter):
    rng = np.random.default_rng([seed, Shapes.splits.index(split), number])
    layout, asked = compose(rng, CHUNK)
    order = rng.permuted(np.tile(np.arange(QUESTIONS), (CHUNK, 1)), axis=1)
    row = np.arange(CHUNK)[:, None]
    words, answers, needs = (np.stack([getattr(one, name) for one in asked], 1)[row, order]
                             for name in ("words", "answer", "needs"))
    needed = np.stack([covered(needs[:, q], layout.kind[..., 2], layout.corner) for q in range(QUESTIONS)], 1)
    first, last = (0, TRAIN_OUTLINES) if split == "train" else (TRAIN_OUTLINES, OUTLINES)
    chosen = rng.integers(first, last, layout.there.shape)
    # what is drawn comes last: another ground leaves the scene as it is
    return _paint(rng, layout, chosen, clutter), layout.there, layout.kind, layout.corner, words, answers, order, needed


def _paint(rng, layout, chosen, clutter):
    """The images: first the ground, then each shape in a shade and a grain of its own."""
    paint = np.array(list(COLOURS.values()), np.float32)[layout.kind[..., 1]]
    paint *= 0.7 + 0.3 * rng.random((*chosen.shape, 1), np.float32)
    patches = _patches(_ground(rng) * np.float32(255 * clutter))
    image, number, part = covered_parts(layout.there, layout.kind[..., 2])
    where = layout.corner[image, number] + FOOTPRINT[part]
    shape, _, size = layout.kind[image, number].T
    ink = outlines()[size, shape, chosen[image, number]].reshape(-1, 2, PATCH, 2, PATCH).swapaxes(2, 3)
    ink = ink.reshape(-1, 4, PATCH, PATCH)[np.arange(len(part)), part][..., None]
    grain = 1 - 0.2 * rng.random((len(part), PATCH, PATCH, 1), np.float32)
    under = patches[image, where]
    patches[image, where] = under + ink * (paint[image, number][:, None, None] * grain - under)
    whole = patches.reshape(CHUNK, GRID, GRID, PATCH, PATCH, 3).swapaxes(2, 3).reshape(CHUNK, SIDE, SIDE, 3)
    return (whole + 0.5).astype(np.uint8)


def _ground(rng):
    """Clouds, stripes and grain of faint colours, in 0..1: float32 [CHUNK, 64, 64, 3]."""
    coarse = rng.random((CHUNK, GRID + 1, GRID + 1, 3), np.float32)
    weight = (np.arange(PATCH, dtype=np.float32) / PATCH)[:, None]
    rows = coarse[:, :-1, None] * (1 - weight[..., None]) + coarse[:, 1:, None] * weight[..., None]
    rows = rows.reshape(CHUNK, SIDE, GRID + 1, 3)
    ground = (rows[:, :, :-1, None] * (1 - weight) + rows[:, :, 1:, None] * weight).reshape(CHUNK, SIDE, SIDE, 3)
    at = np.arange(SIDE, dtype=np.float32) - SIDE / 2 + 0.5
    across, down, shift, width = rng.random((4, CHUNK, STRIPES, 1, 1), np.float32)
    across, down = 2 * across - 1, 2 * down - 1
    distance = np.abs((across * at + down * at[:, None]) / np.maximum(abs(across), abs(down)) - SIDE * (shift - 0.5))
    colours = rng.random((CHUNK, STRIPES, 3), np.float32)
    image, stripe, y, x = np.nonzero(distance < 0.5 + 2 * width)
    for number in range(STRIPES):  # a later one lies over an earlier one
        own = stripe == number
        spot = image[own], y[own], x[own]
        ground[spot] += np.float32(0.7) * (colours[image[own], number] - ground[spot])
    return np.float32(0.8) * ground + np.float32(0.2) * rng.random(ground.shape, np.float32)


def _patches(images):
    split = images.reshape(CHUNK, GRID, PATCH, GRID, PATCH, -1).swapaxes(2, 3)
    return split.reshape(CHUNK, TOKENS, PATCH, PATCH, -1)


@dataclass(frozen=True)
class Shapes(Drawn, Task):
    """Yes or no, how many, and where, about up to six shapes on an 8 x 8 grid of patches.

    Args:
        clutter: how bright the ground may be, in 0..1. The bundled model learnt 0.4.
    """

    clutter: float = 0.4

    name: ClassVar[str] = "shapes"
    side: ClassVar[int] = SIDE
    patch_size: ClassVar[int] = PATCH
    questions: ClassVar[int] = QUESTIONS
    drawings: ClassVar[type[Drawings]] = Scenes
    base_steps: ClassVar[tuple[int, int]] = (1200, 2500)

    def __post_init__(self):
        if not 0 <= self.clutter <= 1:
            raise ValueError(f"clutter must be in [0, 1], got {self.clutter}")

    def draw(self, split: str, count: int, seed: int, *, start: int = 0) -> Scenes:
        self.check(split, count, seed)
        self.check(split, start, seed)
        last = max(-(-(start + count) // CHUNK), start // CHUNK + 1)
        parts = [_chunk(split, seed, number, self.clutter) for number in range(start // CHUNK, last)]
        skipped = start % CHUNK
        return Scenes(*(np.concatenate(field)[skipped:skipped + count] for field in zip(*parts)))

    def samples(self, split: str, count: int, seed: int) -> list[Sample]:
        """`count` questions, three in a row about each image; see Task.samples."""
        self.check(split, count, seed)
        scenes = self.draw(split, -(-count // QUESTIONS), seed)
        foreground, result = scenes.foreground(), []
        for image, question in (divmod(index, QUESTIONS) for index in range(count)):
            words = scenes.asked[image, question]
            result.append(Sample(
                image=scenes.images[image],
                question=" ".join(WORDS[word] for word in words[words >= 0]),
                answer=WORDS[scenes.said[image, question]],
                relevant=_positions(scenes.needed[image, question]),
                image_id=f"{split}-{seed}-{image}",
                foreground=_positions(foreground[image]),
                about={"kind": KINDS[scenes.asks[image, question]]},
            ))
        return result

    def score(self, prediction: str, sample: Sample) -> bool:
        """Right if of all words that are an answer to something the text has the expected one and no other."""
        said = prediction.lower().replace(".", " ").replace(",", " ").split()
        return [word for word in said if word in ANSWERS] == [sample.answer]

    def summary(self, predictions: Sequence[str], samples: Sequence[Sample]) -> dict[str, float]:
        """The accuracy of each kind of question."""
        right = [(sample.about["kind"], self.score(text, sample)) for text, sample in zip(predictions, samples)]
        kinds = {kind: [score for other, score in right if other == kind] for kind in KINDS}
        return {kind: sum(scores) / len(scores) for kind, scores in kinds.items() if scores}


def _positions(patches):
    return tuple(np.flatnonzero(patches).tolist())
