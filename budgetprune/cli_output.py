"""What the commands share: progress, lists of the command line, options that several of them take."""

import json
import re
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True)
BETWEEN, ENTRY = re.compile(r"[\s,]*"), re.compile(r"[^\s,]+")

Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")]
Base = Annotated[Path | None, typer.Option("--model", help="Folder of another small LLaVA, from train-base --out.")]
Resume = Annotated[bool, typer.Option(help="Go on with what an earlier run left in the folder.")]


@contextmanager
def progress(what: str, total: int | None = None):
    """A bar on a terminal, a line now and then elsewhere; yields tell(done, text)."""
    if console.is_terminal:
        count = TextColumn("{task.completed}/{task.total} {task.fields[note]}")
        columns = (TextColumn("{task.description}"), BarColumn(), count, TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(what, total=total, note="")

            def tell(done, note="", total=total):
                bar.update(task, completed=done, total=total, note=note)

            yield tell
        return
    seen = [-1]

    def tell(done, note="", total=total):
        part = done * 10 // total if total else done
        if part != seen[0]:
            seen[0] = part
            console.print(f"{what}: {done}/{total} {note}".rstrip(), highlight=False)

    yield tell


def listed(name: str, text: str) -> list[str]:
    """The entries of a list of the command line, at least one, apart by commas or spaces. Those within a JSON list,
    object or string belong to it."""
    found, at = [], BETWEEN.match(text).end()
    while at < len(text):
        stop = ENTRY.match(text, at).end()
        if text[at] in '[{"':
            try:
                stop = json.JSONDecoder().raw_decode(text, at)[1]
            except json.JSONDecodeError as error:
                raise ValueError(f"{name} must be JSON where it has brackets or quotes, got {text[at:]!r}: {error.msg}"
                                 ) from None
            if ENTRY.match(text, stop):
                raise ValueError(f"{name} must have a comma between its entries, got {text[at:]!r}")
        found.append(text[at:stop])
        at = BETWEEN.match(text, stop).end()
    if not found:
        raise ValueError(f"{name} must name at least one, got {text!r}")
    return found


def whole(name: str, text: str) -> int:
    """A count out of a list of the command line."""
    if not text.isdecimal():
        raise ValueError(f"{name} must hold whole numbers, got {text!r}")
    return int(text)


def budget(text: str) -> int | float | None:
    """A count, a fraction of the image's tokens, or None for the method's own count."""
    if text == "own":
        return None
    if re.fullmatch(r"[01]?\.[0-9]+", text):
        return float(text)
    if not text.isdecimal():
        raise ValueError(f"budgets must hold whole numbers, fractions such as 0.25, or own; got {text!r}")
    return int(text)


def value(text: str):
    """A number, truth value, None or list, as JSON or Python write it; anything else is a word, without quotes."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {"True": True, "False": False, "None": None}.get(text, text)


def roofline_note(on) -> str:
    """What roofline milliseconds of a cost.Device are, under a table that has them."""
    return (f"roofline ms, not measured: {on.name}, {on.dtype}, {on.flops_per_s / 1e12:.4g} TFLOP/s and "
            f"{on.bytes_per_s / 1e9:.4g} GB/s ({on.source}); each operator at the slower of its operations and its "
            "bytes")


def _loss(values: dict) -> str:
    return f"loss {float(values['loss']):.3f}" if "loss" in values else ""


@contextmanager
def training(steps: int | None, method: str):
    """Yields report(step, values); without `steps` the first values say how many there are."""
    with progress(f"training {method}", steps) as tell:
        seen = {"note": "", "steps": steps}

        def report(step, values):
            seen["note"] = _loss(values) or seen["note"]
            seen["steps"] = values.get("steps", seen["steps"])
            tell(step, seen["note"], seen["steps"])

        yield report


@contextmanager
def evaluating(task: str = ""):
    with progress(f"evaluating {task}".rstrip()) as tell:
        yield lambda cell, done, total: tell(done, cell, total)
