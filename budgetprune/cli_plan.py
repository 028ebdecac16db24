"""The command `budgetprune plan`: how large a model, and how many image tokens, for a budget of FLOPs."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

LETTERS = {"a": "a", "alpha": "alpha", "beta": "beta", "d": "D", "ratio": "alpha / beta"}


def figures(name: str, text: str) -> list[float]:
    """The numbers of a list of the command line, at least one, with commas or spaces; ValueError names the list."""
    try:
        found = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        found = []
    if not found:
        raise ValueError(f"{name} must hold numbers such as 0.5,1.8,4, got {text!r}")
    return found


def sizes_of(pairs) -> dict[str, float]:
    """{model: billions} of entries MODEL=BILLIONS; ValueError: an entry that is none, or a model named twice."""
    found = {}
    for pair in pairs:
        name, _, size = pair.rpartition("=")
        if not name or name in found:
            raise ValueError(f"model-size must be MODEL=BILLIONS, once for each model, got {pair!r}")
        found[name] = figures("model-size", size)[0]
    return found


def plan(flops: Annotated[float, typer.Option(help="Of one prefill, 2 x parameters x tokens.")] = 2e12,
         text_tokens: Annotated[int, typer.Option(help="Of the prompt; 0: their cache is reused.")] = 50,
         sizes: Annotated[str, typer.Option(help="The only models there are, in billions; default: any size.")] = "",
         most: Annotated[int | None, typer.Option(help="Most image tokens; default: of the points.")] = None,
         task: Annotated[str | None, typer.Option(help="visual-reasoning or ocr; with records, one of theirs.")] = None,
         records: Annotated[list[Path] | None, typer.Option(help="Fit to your own runs instead; repeatable.")] = None,
         model_size: Annotated[list[str] | None, typer.Option(help="MODEL=BILLIONS of the records.")] = None,
         method: Annotated[str | None, typer.Option(help="Of the records, where they hold several.")] = None,
         out: Annotated[Path | None, typer.Option("--out", "-o", help="The curve as an SVG file.")] = None):
    """How large a model, and how many image tokens, for a budget of FLOPs: by a fitted scaling law."""
    from .cost import fit_scaling, hold_out, plan_budget, published_notes, published_points
    from .cost.scaling import PUBLISHED

    choices = figures("sizes", sizes) if sizes.strip() else None
    notes, published = [], {}
    if records:
        from .evaluation import scaling_points

        points = scaling_points(records, sizes_of(model_size or []), task=task, method=method)
        title = "your records"
    else:
        if model_size or method:
            raise ValueError(f"{'model-size' if model_size else 'method'} must come with records, got no records")
        task = task or "visual-reasoning"
        points, notes, title = published_points(task), published_notes(task), f"{task}, published points"
        published = PUBLISHED if task == "visual-reasoning" else {}
    fit = fit_scaling(points)
    found = plan_budget(fit, flops, text_tokens, sizes=choices, most=most)
    shown = Console()
    shown.print(f"error = a N^-alpha V^-beta + D, {title}: n = {fit.n}, SSE {fit.sse:.3g}", highlight=False)
    shown.print(_fitted(fit, published))
    for note in notes:
        shown.print(note, highlight=False)
    if len({p.size for p in points}) > 2:  # the rest must have two sizes
        held = hold_out(points)
        shown.print(f"Without its {held.size:g} B points the fit predicts them to {held.mean:.2%} of their error in "
                    f"the mean, {held.most:.2%} at most.", highlight=False)
    shown.print(_answers(found))
    shown.print(found.caution, highlight=False)
    if out:
        from .evaluation import write_plan_svg

        shown.print(f"chart: {write_plan_svg(found, fit, points, out)}", highlight=False, soft_wrap=True)


def _fitted(fit, published):
    table = Table("", "fitted", "95 % interval", *(["published"] if published else []))
    ratio = {"ratio": published["alpha"] / published["beta"]} if published else {}
    for name, letter in LETTERS.items():
        interval = "too few points" if fit.intervals is None else "{:.4f} to {:.4f}".format(*fit.intervals[name])
        known = (published | ratio).get(name)
        last = ["" if known is None else f"{known:.4g}"] if published else []
        table.add_row(letter, f"{getattr(fit, name):.4f}", interval, *last)
    return table


def _answers(found):
    table = Table("", "billions", "image tokens", "FLOPs", "error", "95 % interval",
                  title=f"predicted for {found.flops:.3g} FLOPs, {found.text_tokens} text tokens")
    for choice in found.choices:
        interval = "" if choice.interval is None else "{:.3f} to {:.3f}".format(*choice.interval)
        table.add_row("best" if choice is found.best else "", f"{choice.size:.3g}", str(choice.tokens),
                      f"{choice.flops:.3g}", f"{choice.error:.4f}", interval)
    for size in found.too_large:
        table.add_row("", f"{size:.3g}", "none", "", "too large", "")
    return table
