"""Comparisons as one HTML page that needs nothing else."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from .compare import Comparison, cell_label

_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #8884; white-space: nowrap; }
th:nth-child(-n+3), td:nth-child(-n+3), .said td { text-align: left; }
.said td { white-space: normal; vertical-align: top; max-width: 26rem; overflow-wrap: anywhere; }
.sure { font-weight: 600; }
"""


def figures(c: Comparison, several: bool) -> list[str]:
    """The cells of a comparison's row, as text; several: whether p is adjusted for others."""
    r = c.result
    return [c.a.task, cell_label(c.a), cell_label(c.b), f"{r.a:.4f}", f"{r.b:.4f}", f"{r.difference:+.4f}",
            "{:+.4f} to {:+.4f}".format(*r.ci95), str(r.only_a), str(r.only_b), chance(r.p),
            *([chance(c.holm)] if several else []), "" if r.mcnemar is None else chance(r.mcnemar)]


def heads(several: bool) -> list[str]:
    return ["task", "A", "B", "A scores", "B scores", "B - A", "95 % interval", "only A", "only B", "p",
            *(["p of all (Holm)"] if several else []), "McNemar"]


def chance(p: float) -> str:
    return "<0.0001" if p < 1e-4 else f"{p:.4f}"


def write_page(comparisons: Sequence[Comparison], notes: Sequence[str], runs, path) -> Path:
    """The table, the notes, and of each comparison the questions that one side answered better."""
    path, several = Path(path), len(comparisons) > 1
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = "".join(f'<tr{" class=sure" if c.holm < 0.05 else ""}>' + _row(figures(c, several)) + "</tr>"
                   for c in comparisons)
    parts = [f"<h1>{escape(' and '.join(dict.fromkeys(str(run) for run in runs)))}</h1>",
             "<p>B against A on the same questions. Intervals and p take the questions of an image together; in bold: "
             "p below 0.05 after all comparisons made.</p>",
             f'<div class="scroll" id="cells"><table><thead><tr>{_row(heads(several), "th")}</tr></thead>'
             f"<tbody>{rows}</tbody></table></div>",
             *(f"<p>{escape(note)}</p>" for note in notes),
             '<section id="examples">', *(_examples(c) for c in comparisons if c.examples), "</section>"]
    aside = path.with_name(f"{path.name}.part")
    aside.write_text('<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
                     f'content="width=device-width"><title>Comparison</title><style>{_STYLE}</style></head><body>'
                     f'{"".join(parts)}</body></html>\n')
    aside.replace(path)
    return path


def _row(values, tag="td"):
    return "".join(f"<{tag}>{escape(value)}</{tag}>" for value in values)


def _examples(c):
    names = [f"A: {cell_label(c.a)}", f"B: {cell_label(c.b)}"]
    rows = "".join(f"<tr>{_row([e.sample, e.question or '', e.answer or '', *_said(e)])}</tr>" for e in c.examples)
    head = escape(f"{c.a.task}, {names[0]}, {names[1]}: questions that one answered better")
    return (f'<details><summary>{head}</summary><div class="scroll"><table class="said"><thead><tr>'
            f'{_row(["question", "asked", "expected", *names], "th")}</tr></thead><tbody>{rows}</tbody></table></div>'
            "</details>")


def _said(e):
    return [f"{text or '(nothing)'} ({float(score):g})" for text, score in ((e.a, e.score_a), (e.b, e.score_b))]
