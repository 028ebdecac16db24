"""Pictures of a run: which patches of an image a method kept, and what the model then said."""

import base64
import io
import json
from dataclasses import dataclass, fields
from pathlib import Path

from .record import append_lines, read_lines

FILE_NAME = "pictures.jsonl"
LARGEST, COARSE = 768, 160  # pixels of the longer side
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Picture:
    """What one method kept of one image under one question. `method`: as Record.spares has it. `image` is a PNG's path
    within the run folder; `grid` is [rows, columns] of patches; `kept` are positions in raster order; `right`: the
    task's own verdict."""

    image: str
    task: str
    method: str
    keep: int
    grid: tuple[int, int]
    kept: tuple[int, ...]
    question: str
    answer: str
    prediction: str
    right: bool

    @classmethod
    def from_json(cls, line):
        values = json.loads(line)
        if not isinstance(values, dict):
            raise ValueError(f"a picture must be a JSON object, got {type(values).__name__}")
        names = [f.name for f in fields(cls)]
        if missing := sorted(set(names) - values.keys()):
            raise ValueError(f"missing {', '.join(missing)}")
        grid, kept = values["grid"], values["kept"]
        if not _ints(grid) or len(grid) != 2 or min(grid) < 1:
            raise ValueError(f"grid must be [rows, columns], got {grid!r}")
        cells = grid[0] * grid[1]
        if not _ints(kept) or any(not 0 <= k < cells for k in kept) or len(set(kept)) < len(kept):
            raise ValueError(f"kept must be distinct positions in [0, {cells}), got {kept!r}")
        if not _ints([values["keep"]]):
            raise ValueError(f"keep must be an int, got {values['keep']!r}")
        if not isinstance(values["right"], bool):
            raise ValueError(f"right must be true or false, got {values['right']!r}")
        texts = {name: str(values[name]) for name in names if name not in ("grid", "kept", "keep", "right")}
        return cls(**texts, keep=values["keep"], right=values["right"], grid=tuple(grid), kept=tuple(sorted(kept)))


def _ints(values):
    return isinstance(values, list) and all(isinstance(v, int) and not isinstance(v, bool) for v in values)


def read(run_dir) -> list[Picture]:
    """The pictures of a run, in order; an absent file is an empty list."""
    return read_lines(Path(run_dir) / FILE_NAME, Picture.from_json)


def data_uri(run_dir, name):
    """The PNG as a data URI, made smaller where it is larger than any page shows it.

    ValueError: outside the run folder, or not a PNG.
    """
    root = Path(run_dir).resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise ValueError(f"image must lie within {root}, got {name!r}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"image {name!r} of {FILE_NAME} cannot be read: {error.strerror}") from None
    if not content.startswith(_PNG):
        raise ValueError(f"image {name!r} must be a PNG file")
    if max(_size(content)) > LARGEST:
        from PIL import Image

        with Image.open(io.BytesIO(content)) as picture:
            picture.thumbnail((LARGEST, LARGEST))
            picture.save(smaller := io.BytesIO(), "PNG", optimize=True)
        content = smaller.getvalue()
    return "data:image/png;base64," + base64.b64encode(content).decode()


def _size(png):
    """[width, height], from the header that every PNG begins with."""
    return [int.from_bytes(png[at:at + 4], "big") for at in (16, 20)]


def is_coarse(uri: str) -> bool:
    """Whether an image of data_uri has so few pixels that each should be seen."""
    return max(_size(base64.b64decode(uri.partition(",")[2][:32]))) < COARSE


def dim_path(grid, kept):
    """SVG path over the dropped patches, one unit per patch; runs within a row are joined."""
    rows, columns = grid
    kept, parts = set(kept), []
    for row in range(rows):
        start = None
        for column in range(columns + 1):
            dropped = column < columns and row * columns + column not in kept
            if dropped and start is None:
                start = column
            elif not dropped and start is not None:
                parts.append(f"M{start} {row}h{column - start}v1h{start - column}z")
                start = None
    return "".join(parts)


def crops(processor) -> bool:
    """Whether a processor of one crop an image (CLIP's, as LLaVA-1.5 has it) cuts off what is beside the middle."""
    return bool(getattr(getattr(processor, "image_processor", None), "do_center_crop", False))


def middle_of(image, grid):
    """The largest middle part of an image with the shape of a grid of square patches."""
    rows, columns = grid
    width, height = image.size
    wide, high = min(width, round(height * columns / rows)), min(height, round(width * rows / columns))
    left, top = (width - wide) // 2, (height - high) // 2
    return image.crop((left, top, left + wide, top + high))


def draw(run_dir, samples, replies, scores, kept, grids, cell, most: int, *, cropped: bool = False) -> None:
    """Appends what a method kept of the first images: one line per image, with the image's first question.

    An image whose tokens form no grid has no line. cell: the Record that they belong to. cropped: the model sees the
    middle of an image only, in the grid's shape (`crops`), and so do we.
    """
    from PIL import Image

    chosen = {}
    for number, sample in enumerate(samples):
        if grids[number] is not None:
            chosen.setdefault(sample.image_id, number)
    lines = []
    for index in list(chosen.values())[:most]:
        sample = samples[index]
        name = f"images/{sample.image_id}.png"
        target = Path(run_dir) / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            picture = sample.picture()
            image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
            if cropped:
                image = middle_of(image, grids[index])
            aside = target.with_suffix(".part")
            image.save(aside, "PNG")
            aside.replace(target)
        lines.append(json.dumps({"image": name, "task": cell.task, "method": cell.spares, "keep": cell.keep,
                                 "grid": list(grids[index]), "kept": kept[index], "question": sample.question,
                                 "answer": sample.answer, "prediction": replies[index],
                                 "right": bool(scores[index] >= 0.5)}))
    append_lines(Path(run_dir) / FILE_NAME, lines, Picture.from_json)
