"""The command `budgetprune compare`: two runs, or two cells, question by question."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .cli_output import console


def compare(run_a: Annotated[Path, typer.Argument(help="Folder with records.jsonl and answers.jsonl.")],
            run_b: Annotated[Path | None, typer.Argument(help="Another; default: cells of the first.")] = None,
            a: Annotated[str | None, typer.Option(help="A cell, METHOD@K, or METHOD@K/n of n layers; default of "
                                                 "one run: the full model.")] = None,
            b: Annotated[str | None, typer.Option(help="The cell against it; default: every other.")] = None,
            task: Annotated[str | None, typer.Option(help="Only this one.")] = None,
            method: Annotated[str | None, typer.Option("--method", "-m", help="Only cells of this one.")] = None,
            keep: Annotated[str | None, typer.Option("--keep", "-k", help="Only cells of this budget.")] = None,
            examples: Annotated[int, typer.Option(help="Questions shown of each kind.")] = 5,
            out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file; default: compare.json in the "
                                                     "first folder.")] = None,
            html: Annotated[Path | None, typer.Option(help="A page with the table and the examples.")] = None):
    """Compare cells on the same questions: difference, interval, tests, and where they differ."""
    from .checked import integer
    from .evaluation.compare import FILE_NAME, write_json
    from .evaluation.compare import compare as run
    from .evaluation.compare_page import figures, heads, write_page

    found, notes = run(run_a, run_b, a=a, b=b, task=task, method=method, keep=keep,
                       examples=integer("examples", examples, 0))
    several, runs = len(found) > 1, [run_a, run_b or run_a]
    table = Table(*heads(several), title="B against A on the same questions")
    for one in found:
        table.add_row(*map(escape, figures(one, several)))
    shown = Console()
    shown.print(table)
    for note in notes:
        shown.print(escape(note), highlight=False)
    if not several:
        _examples(shown, found[0])
    console.print(f"written to {write_json(found, notes, runs, out or run_a / FILE_NAME)}", soft_wrap=True)
    if html:
        console.print(f"page: {write_page(found, notes, runs, html)}", soft_wrap=True)


def _examples(shown, found):
    if not found.examples:
        return
    table = Table("question", "asked", "expected", "A", "B", title="where they differ")
    for e in found.examples:
        table.add_row(*(escape(str(text)) for text in (e.sample, e.question or "", e.answer or "", e.a, e.b)))
    shown.print(table)
