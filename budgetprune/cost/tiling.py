"""How many crops and image tokens a picture of some size becomes."""

from dataclasses import dataclass
from typing import NamedTuple

from ..checked import integer


class Seen(NamedTuple):
    """What the encoder makes of one picture.

    tokens: N, image tokens in the prompt. crops: how often the tower runs; None where pictures are packed.
    grids: ((frames, rows, columns),) of the patches of a packed picture, else None.
    """

    tokens: int
    crops: int | None
    grids: tuple[tuple[int, int, int], ...] | None


@dataclass(frozen=True)
class Tiling:
    """A picture in crops of one size.

    pinpoints: (height, width) of the canvases that a picture may be put on (LLaVA-NeXT, LLaVA-OneVision): the whole
        picture and the canvas' crops, without the canvas' padding and with one row end after every row of patches.
    most_crops: of pinpoints, the crops' worth of patches above which the picture is shrunk (anyres_max_9), else None;
        without pinpoints, the most tiles (InternVL: as many as suit the picture's form), and the whole picture beside
        them where there are several.
    """

    pinpoints: tuple[tuple[int, int], ...] = ()
    most_crops: int | None = None

    def see(self, height: int, width: int, size: int, side: int, per_crop: int) -> Seen:
        """size: pixels, side: tokens on a side of one crop; per_crop: its tokens."""
        if not self.pinpoints:
            tiles = _tiles(height, width, size, self.most_crops or 1)
            crops = tiles + (tiles > 1)
            return Seen(crops * per_crop, crops, None)
        canvas = _canvas(height, width, self.pinpoints)
        rows, columns = canvas[0] // size, canvas[1] // size
        high, wide = rows * side, columns * side
        if width / height > wide / high:
            high -= 2 * ((high - int(round(height * (wide / width), 7))) // 2)
        else:
            wide -= 2 * ((wide - int(round(width * (high / height), 7))) // 2)
        if self.most_crops:
            ratio = (high * wide / (self.most_crops * side**2)) ** 0.5
            if ratio > 1.1:
                high, wide = int(high // ratio), int(wide // ratio)
        return Seen(high * wide + high + per_crop, rows * columns + 1, None)


def see(shape, height: int, width: int) -> Seen:
    """What the encoder of a VlmShape makes of one picture of so many pixels.

    Packed pictures are rounded to whole tokens; least and most pixels are the processor's, and not applied here.
    """
    height, width = integer("height", height, 1), integer("width", width, 1)
    tower, merge = shape.tower, shape.projector.merge
    if shape.packed:
        step = tower.patch_size * merge
        rows, columns = (max(1, round(pixels / step)) * merge for pixels in (height, width))
        return Seen(rows * columns // merge**2, None, ((1, rows, columns),))
    if shape.tiling is None:
        return Seen(shape.tokens_per_crop, 1, None)
    return shape.tiling.see(height, width, tower.image_size, tower.side // merge, shape.tokens_per_crop)


def _canvas(height, width, pinpoints):
    """The canvas on which most of the picture's pixels stay, and of those the one with the least waste."""
    def rank(canvas):
        scale = min(canvas[1] / width, canvas[0] / height)
        used = min(int(width * scale) * int(height * scale), width * height)
        return used, used - canvas[0] * canvas[1]

    return max(pinpoints, key=rank)


def _tiles(height, width, size, most):
    """Tiles of InternVL's dynamic resolution: the grid whose form is nearest; of equals the larger, while the picture
    fills more than half of it. Grids are asked by their number of tiles, then by their columns."""
    grids = sorted({(c, r) for c in range(1, most + 1) for r in range(1, most + 1) if c * r <= most},
                   key=lambda g: (g[0] * g[1], g))
    best, difference = (1, 1), float("inf")
    for columns, rows in grids:
        new = abs(width / height - columns / rows)
        if new < difference:
            best, difference = (columns, rows), new
        elif new == difference and width * height > 0.5 * size**2 * columns * rows:
            best = (columns, rows)
    return best[0] * best[1]
