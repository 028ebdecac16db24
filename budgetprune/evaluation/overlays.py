"""The report's pictures: images with the dropped patches dimmed, and what of them the script can change."""

import base64
from html import escape

from ..catalog import find
from .pictures import Picture, data_uri, dim_path, is_coarse
from .summary import FULL


def collect(pictures) -> dict:
    """(task, image, question) -> {(method, keep): Picture}, in order of first appearance; a later line wins."""
    scenes = {}
    for picture in pictures:
        place = scenes.setdefault((picture.task, picture.image, picture.question), {})
        place[picture.method, picture.keep] = picture
    return scenes


def section(run_dir, pictures, wanted=None, most=8) -> tuple[str, str, dict]:
    """(figures, hero frame, data for the script) of a run's pictures, at most `most` scenes of each task.

    wanted: (method, keep) shown first; otherwise, or where no scene has it, the first line's. A scene without the
    shown pair is left for the script.
    """
    scenes, counts = [], {}
    for scene in collect(pictures).items():
        task = scene[0][0]
        counts[task] = counts.get(task, 0) + 1
        if counts[task] <= most:
            scenes.append(scene)
    pairs = {pair for _, shots in scenes for pair in shots}
    wanted = wanted if wanted in pairs else next(iter(scenes[0][1]))
    methods = list(dict.fromkeys(method for _, shots in scenes for method, _ in shots))
    uris = {image: data_uri(run_dir, image) for (_, image, _), _ in scenes}
    cards, hero, data = [], "", []
    for number, ((task, image, question), shots) in enumerate(scenes):
        shown = shots.get(wanted) or next(iter(shots.values()))
        card = figure(number, uris[image], shown)
        cards.append(card if wanted in shots else card.replace("<figure", "<figure hidden", 1))
        if not hero and wanted in shots and shown.right:
            hero = _hero(uris[image], shown)
        data.append({"task": task, "question": question, "shots": [_shot(p, methods) for p in shots.values()]})
    hero = hero or _hero(uris[scenes[0][0][1]], scenes[0][1].get(wanted) or next(iter(scenes[0][1].values())))
    notes = [{"name": method, "note": note(method)} for method in methods]
    return "".join(cards), hero, {"wanted": [methods.index(wanted[0]), wanted[1]], "methods": notes, "scenes": data}


def _shot(picture: Picture, methods) -> dict:
    return {"method": methods.index(picture.method), "keep": picture.keep, "grid": picture.grid,
            "kept": packed(picture.grid[0] * picture.grid[1], picture.kept), "says": picture.prediction,
            "answer": picture.answer, "right": picture.right}


def packed(cells: int, kept) -> str:
    """Positions as base64 of one bit a patch, the first the lowest of its byte: shorter than any list of them."""
    bits = bytearray((cells + 7) // 8)
    for position in kept:
        bits[position // 8] |= 1 << position % 8
    return base64.b64encode(bits).decode()


def note(method: str) -> str:
    """What kept and faded patches of a method mean; "" of one that is not known here."""
    if method == FULL:
        return "The full model reads every patch."
    method, layers, _ = method.partition(" in ")
    if layers:
        tokens, _, _ = method.rpartition("+")
        fewer = "The language model runs fewer of its layers."
        return f"{note(tokens)} {fewer}" if tokens else f"Every patch is read. {fewer}"
    try:
        cls = find(method.partition(" (")[0])  # behind it comes a label
    except ValueError:
        return ""
    if cls.fixed_count:
        return "Makes its tokens of all patches; none is kept as it is."
    said = ("Acts inside the language model: its first layers read every patch, those kept are what is left for the "
            "last." if cls.place == "llm" else "The language model reads the kept patches only.")
    if cls.merges:
        said = ("Merges: each kept patch stands for a token that also holds parts of faded ones."
                if cls.place != "llm" else f"{said} It also merges part of what it drops into tokens of their own.")
    asks = "text" in cls.needs or cls.place == "llm"
    return f"{said} The choice {'depends' if asks else 'does not depend'} on the question."


def frame(uri, picture):
    """The image under its mask; one of few pixels is enlarged without smoothing."""
    rows, columns = picture.grid
    coarse = ' class="coarse"' if is_coarse(uri) else ''
    return (f'<div class="frame" style="aspect-ratio:{columns}/{rows}">'
            f'<img{coarse} src="{uri}" alt="{escape(alt(picture))}">'
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


def _hero(uri, picture):
    rows, columns = picture.grid
    return (f'<figure class="hero">{frame(uri, picture)}<figcaption>“{escape(picture.question)}” '
            f'{escape(picture.method)} looks at {len(picture.kept)} of {rows * columns} patches and says '
            f'<b>{escape(picture.prediction) or "nothing"}</b>{"" if picture.right else " (wrong)"}.</figcaption>'
            f'</figure>')
