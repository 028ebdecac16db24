"""What is in a scene of the shapes task and what is asked about it, before a pixel is drawn.

Dimensions: B scenes, MOST shapes of one, N patches, Q questions, LONGEST words of one. Of each question the answer is
drawn first, every answer as likely as any other, and the scene or the question is made to fit it.
"""

from dataclasses import dataclass

import numpy as np

SIDE, PATCH, QUESTIONS, MOST = 64, 8, 3, 6
GRID = SIDE // PATCH
TOKENS = GRID * GRID
SHAPES = ("circle", "square", "triangle", "cross")
PLURALS = ("circles", "squares", "triangles", "crosses")
COLOURS = {"red": (255, 38, 38), "green": (38, 230, 38), "blue": (64, 89, 255), "yellow": (255, 242, 38)}
SIZES = ("small", "large")
ENDS = ("leftmost", "rightmost", "highest", "lowest")
NUMBERS = tuple("01234")
KINDS = ("yesno", "count", "position")
WORDS = (*SHAPES, *PLURALS, *COLOURS, *ENDS, *NUMBERS, "yes", "no", "how", "many", "shapes", "shape", "colour",
         "is", "there", "a", "which")
LONGEST = 5  # words of "is there a red circle"
FOOTPRINT = np.array([0, 1, GRID, GRID + 1])  # the patches of a large shape, from its top left one
CLEAR = 3  # half patches from the centre of the outermost shape to that of any other, at least
_ID = {word: number for number, word in enumerate(WORDS)}
_SHAPE, _PLURAL, _COLOUR, _END, _NUMBER = (
    np.array([_ID[word] for word in words]) for words in (SHAPES, PLURALS, COLOURS, ENDS, NUMBERS))


@dataclass(frozen=True, eq=False)
class Layout:
    """The shapes of B scenes: `there` bool [B, MOST]; kind [B, MOST, 3] of shape, colour, size; corner [B, MOST]."""

    there: np.ndarray
    kind: np.ndarray
    corner: np.ndarray

    def centre(self) -> np.ndarray:
        """Column and row of each shape's centre in half patches, int64 [B, MOST, 2]."""
        row, column = np.divmod(self.corner, GRID)
        return 2 * np.stack([column, row], -1) + self.kind[..., 2:]

    def has(self, attribute: int, value: np.ndarray) -> np.ndarray:
        """Which shapes have the `value` [B] of an attribute, bool [B, MOST]."""
        return self.there & (self.kind[..., attribute] == value[:, None])


@dataclass(frozen=True, eq=False)
class Asked:
    """One question about each scene: words int64 [B, LONGEST], -1 behind the last; answer, a position in WORDS, [B];
    needs: the shapes that it takes to answer, bool [B, MOST]."""

    words: np.ndarray
    answer: np.ndarray
    needs: np.ndarray


def covered_parts(there: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, ...]:
    """(scene, shape, quarter) of every patch that a shape covers; a small one has the first quarter only."""
    return np.nonzero(there[..., None] & ((sizes == 1)[..., None] | (np.arange(4) == 0)))


def covered(there: np.ndarray, sizes: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Whether any shape of those `there` [B, MOST] covers a patch, bool [B, N]."""
    scene, number, part = covered_parts(there, sizes)
    result = np.zeros((len(there), TOKENS), bool)
    result[scene, corners[scene, number] + FOOTPRINT[part]] = True
    return result


def compose(rng: np.random.Generator, scenes: int) -> tuple[Layout, list[Asked]]:
    """Scenes and their questions: yes or no, a count, a position, in this order.

    A scene of which two shapes lie about as far out as each other on the side that is asked about is drawn again. What
    shall be counted and how many of it there are stays, so no count is rarer for being harder to draw.
    """
    by_colour, value = rng.random(scenes) < 0.5, rng.integers(0, len(SHAPES), scenes)
    count, end = rng.integers(0, len(NUMBERS), scenes), rng.integers(0, len(ENDS), scenes)
    layout = _layout(rng, by_colour, value, count)
    while (unclear := (outermost := _outermost(layout, end)) < 0).any():
        again = _layout(rng, by_colour, value, count)
        layout = Layout(*(np.where(unclear.reshape(-1, *[1] * (old.ndim - 1)), new, old) for old, new in
                          zip((layout.there, layout.kind, layout.corner), (again.there, again.kind, again.corner))))
    return layout, [_ask_whether(rng, layout), _ask_how_many(layout, by_colour, value, count),
                    _ask_which(rng, layout, outermost, end)]


def _layout(rng, by_colour, value, count):
    """`count` shapes of the colour or the form `value`, and others, two to MOST together, none over another."""
    scenes = len(count)
    there = np.arange(MOST) < (count + rng.integers(np.maximum(2 - count, 0), MOST - count + 1))[:, None]
    kind = rng.integers(0, (len(SHAPES), len(COLOURS), len(SIZES)), (scenes, MOST, 3))
    others = (value[:, None] + 1 + rng.integers(0, len(SHAPES) - 1, (scenes, MOST))) % len(SHAPES)
    kind[np.arange(scenes), :, by_colour * 1] = np.where(np.arange(MOST) < count[:, None], value[:, None], others)
    taken = np.zeros((scenes, GRID + 1, GRID + 1), bool)
    taken[:, GRID] = taken[:, :, GRID] = True
    corner, row = np.zeros((scenes, MOST), np.int64), np.arange(scenes)
    for number in range(MOST):  # five large ones leave at least four places to the sixth
        large = kind[:, number, 2] == 1
        free, room = ~taken[:, :GRID, :GRID], ~(taken[:, 1:, :GRID] | taken[:, :GRID, 1:] | taken[:, 1:, 1:])
        fits = (free & (room | ~large[:, None, None])).reshape(scenes, -1)
        corner[:, number] = (rng.random((scenes, TOKENS)) * fits).argmax(1)
        y, x = np.divmod(corner[:, number], GRID)
        for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
            own = there[:, number] & (large | (down + right == 0))
            taken[row[own], y[own] + down, x[own] + right] = True
    return Layout(there, kind, corner)


def _outermost(layout, end):
    """The shape that lies clearly further out than all others on the side asked about, -1 if none does, int64 [B]."""
    along = np.where(end % 2 == 0, -1, 1)[:, None] * layout.centre()[np.arange(len(end)), :, end // 2]
    others = layout.there[:, None] & ~np.eye(MOST, dtype=bool)
    clear = layout.there & ((along[:, :, None] - along[:, None] >= CLEAR) | ~others).all(2)
    return np.where(clear.any(1), clear.argmax(1), -1)


def _ask_whether(rng, layout):
    """"is there a red circle", or where a colour or a form is missing "is there a red shape" or "is there a circle";
    half of each with yes."""
    there, scenes = layout.there, len(layout.there)
    yes, simple, by_colour = rng.random((3, scenes)) < 0.5
    table = np.zeros((scenes, len(SHAPES), len(COLOURS)), bool)
    scene, number = np.nonzero(there)
    table[scene, layout.kind[scene, number, 0], layout.kind[scene, number, 1]] = True
    shape, colour = np.divmod(_any(rng, (table == yes[:, None, None]).reshape(scenes, -1)), len(COLOURS))
    both = Asked(_words("is there a", _COLOUR[colour], _SHAPE[shape]), np.where(yes, _ID["yes"], _ID["no"]),
                 np.where(yes[:, None], layout.has(0, shape) & layout.has(1, colour), there))
    seen = np.where(by_colour[:, None], table.any(1), table.any(2))
    value = _any(rng, seen == yes[:, None])
    words = np.where(by_colour[:, None], _words("is there a", _COLOUR[value], "shape"),
                     _words("is there a", _SHAPE[value]))
    has = np.where(by_colour[:, None], layout.has(1, value), layout.has(0, value))
    one = Asked(words, both.answer, np.where(yes[:, None], has, there))
    return _either(simple & ~seen.all(1), one, both)


def _any(rng, allowed):
    """One place of those allowed in each row."""
    return (rng.random(allowed.shape) * allowed).argmax(1)


def _ask_how_many(layout, by_colour, value, count):
    """"how many red shapes", "how many circles"; to find none, all have to be seen."""
    words = np.where(by_colour[:, None], _words("how many", _COLOUR[value], "shapes"),
                     _words("how many", _PLURAL[value]))
    has = np.where(by_colour[:, None], layout.has(1, value), layout.has(0, value))
    return Asked(words, _NUMBER[count], np.where((count == 0)[:, None], layout.there, has))


def _ask_which(rng, layout, outermost, end):
    """"which shape is leftmost", "which colour is highest"; to know it, all have to be seen."""
    shape, colour, _ = layout.kind[np.arange(len(end)), outermost].T
    return _either(rng.random(len(end)) < 0.5,
                   Asked(_words("which shape is", _END[end]), _SHAPE[shape], layout.there),
                   Asked(_words("which colour is", _END[end]), _COLOUR[colour], layout.there))


def _either(which, one, other):
    return Asked(np.where(which[:, None], one.words, other.words), np.where(which, one.answer, other.answer),
                 np.where(which[:, None], one.needs, other.needs))


def _words(*parts):
    """A question out of words, which are alike in all scenes, and positions in WORDS, [B]: int64 [B, LONGEST]."""
    columns = [column for part in parts for column in
               ([_ID[word] for word in part.split()] if isinstance(part, str) else [part])]
    scenes = max(len(column) for column in columns if isinstance(column, np.ndarray))
    result = np.full((scenes, LONGEST), -1)
    for number, column in enumerate(columns):
        result[:, number] = column
    return result
