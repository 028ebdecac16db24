"""Test images with the kept patches bright and the dropped ones dim, as figures of the report."""

import base64
import json
from dataclasses import dataclass, fields
from html import escape
from pathlib import Path

from .record import append_lines, read_lines

FILE_NAME = "pictures.jsonl"
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Picture:
    """What one method kept of one image under one question. `image` is a PNG's path within the run folder; `grid` is
    [rows, columns] of patches; `kept` are positions in raster order; `right`: the task's own verdict."""

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
    """The PNG as a data URI. ValueError: outside the run folder, or not a PNG."""
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
    return "data:image/png;base64," + base64.b64encode(content).decode()


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


def collect(pictures) -> dict:
    """(task, image, question) -> {(method, keep): Picture}, in order of first appearance; a later line wins."""
    scenes = {}
    for picture in pictures:
        place = scenes.setdefault((picture.task, picture.image, picture.question), {})
        place[picture.method, picture.keep] = picture
    return scenes


def frame(uri, picture):
    """The image, enlarged without smoothing, under its mask."""
    rows, columns = picture.grid
    return (f'<div class="frame" style="aspect-ratio:{columns}/{rows}"><img src="{uri}" alt="{escape(alt(picture))}">'
            f'<svg viewBox="0 0 {columns} {rows}" preserveAspectRatio="none" aria-hidden="true">'
            f'<path class="dim" d="{dim_path(picture.grid, picture.kept)}"/></svg></div>')


def alt(picture):
    rows, columns = picture.grid
    return f"Test image, {len(picture.kept)} of {rows * columns} patches kept by {picture.method}"


def figure(number, uri, picture):
    verdict = "right" if picture.right else "wrong"
    return (f'<figure class="card" data-scene="{number}">{frame(uri, picture)}<figcaption><p class="ask">'
            f'{escape(picture.question)}</p><p class="said {verdict}"><span class="verdict">'
            f'{"✓ right" if picture.right else "✗ wrong"}</span> says <b class="prediction">'
            f'{escape(picture.prediction) or "nothing"}</b>, answer <b>{escape(picture.answer)}</b></p>'
            f'</figcaption></figure>')


def section(run_dir, pictures, wanted=None, most=24) -> tuple[str, str, list]:
    """(figures, hero frame, data for the script) of a run's pictures, at most `most` scenes.

    wanted: (method, keep) shown first; otherwise, or where no scene has it, the first line's. A scene without the
    shown pair is left for the script.
    """
    scenes = list(collect(pictures).items())[:most]
    pairs = {pair for _, shots in scenes for pair in shots}
    wanted = wanted if wanted in pairs else next(iter(scenes[0][1]))
    uris = {image: data_uri(run_dir, image) for (_, image, _), _ in scenes}
    cards, hero, data = [], "", []
    for number, ((_, image, _), shots) in enumerate(scenes):
        shown = shots.get(wanted) or next(iter(shots.values()))
        card = figure(number, uris[image], shown)
        cards.append(card if wanted in shots else card.replace("<figure", "<figure hidden", 1))
        if not hero and wanted in shots and shown.right:
            hero = _hero(uris[image], shown)
        data.append([{"method": p.method, "keep": p.keep, "dim": dim_path(p.grid, p.kept), "says": p.prediction,
                      "right": p.right, "alt": alt(p)} for p in shots.values()])
    hero = hero or _hero(uris[scenes[0][0][1]], scenes[0][1].get(wanted) or next(iter(scenes[0][1].values())))
    return "".join(cards), hero, [list(wanted), data]


def _hero(uri, picture):
    rows, columns = picture.grid
    return (f'<figure class="hero">{frame(uri, picture)}<figcaption>“{escape(picture.question)}” '
            f'{escape(picture.method)} looks at {len(picture.kept)} of {rows * columns} patches and says '
            f'<b>{escape(picture.prediction) or "nothing"}</b>{"" if picture.right else " (wrong)"}.</figcaption>'
            f'</figure>')


def draw(run_dir, samples, replies, scores, kept, grids, cell, most: int) -> None:
    """Appends what a method kept of the first images: one line per image, with the image's first question.

    An image whose tokens form no grid has no line. cell: the Record that they belong to.
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
            aside = target.with_suffix(".part")
            image.save(aside, "PNG")
            aside.replace(target)
        lines.append(json.dumps({"image": name, "task": cell.task, "method": cell.method, "keep": cell.keep,
                                 "grid": list(grids[index]), "kept": kept[index], "question": sample.question,
                                 "answer": sample.answer, "prediction": replies[index],
                                 "right": bool(scores[index] >= 0.5)}))
    append_lines(Path(run_dir) / FILE_NAME, lines, Picture.from_json)
