"""The blocks that show the small experiment, from its committed results.

    make paper-small                                             measure into runs/paper-small
    python benchmarks/readme.py --paper runs/paper-small         take its results over and write the blocks
"""

import json
from pathlib import Path

from budgetprune.evaluation import Record
from budgetprune.evaluation.frontier import pareto_front
from budgetprune.evaluation.report_data import areas, common_range
from budgetprune.evaluation.summary import group_records
from budgetprune.study.paper import RESULT, TITLES

RESULTS = Path(__file__).resolve().parent / "results" / "paper.json"


def taken_over(folder: Path) -> str:
    """What is committed of a run: its result, with no file beside it."""
    return (folder / RESULT).read_text()


def results() -> dict:
    return json.loads(RESULTS.read_text())


def around(cell: dict, form: str = ".3f") -> str:
    half = "" if cell["half"] is None else f" ± {cell['half']:.3f}"
    return f"{cell['value']:{form}}{half}"


def grid(cells: list[dict], rows: dict[str, str], form: str = ".3f", mark=lambda cell: False) -> list[str]:
    """A Markdown table: one row for each variant of `rows`, one column for each K."""
    keeps = sorted({cell["keep"] for cell in cells})
    found = {(cell["variant"], cell["keep"]): cell for cell in cells}
    lines = ["| | " + " | ".join(f"K = {k}" for k in keeps) + " |", "|---|" + "--:|" * len(keeps)]
    for variant, title in rows.items():
        row = [found.get((variant, k)) for k in keeps]
        if any(row):
            texts = ["" if cell is None else around(cell, form) for cell in row]
            texts = [f"**{text}**" if cell and mark(cell) else text for text, cell in zip(texts, row)]
            lines.append(f"| {title} | " + " | ".join(texts) + " |")
    return lines


def source(result: dict) -> str:
    return (f"`make paper-small`, {result['device']}, torch {result['torch']}, {result['time'][:10]}, "
            f"commit {result['commit']}.")


def ablations_block() -> str:
    """Accuracy of the baseline, then what each other setting changes, seed by seed."""
    result = results()
    lines = grid([c for c in result["ablations"] if c["variant"] == "baseline"], TITLES)
    changes = {name: title for name, title in TITLES.items() if name != "baseline"}

    def real(cell):
        return cell["half"] is not None and abs(cell["value"]) > cell["half"]

    lines += grid(result["against baseline"], changes, "+.3f", real)[2:]
    lines.append(f"\nAccuracy on `digits`, then the difference that each setting makes; mean and 95 % interval over "
                 f"{result['seeds']} seeds, paired by seed, bold where the interval is off zero. {result['steps']} "
                 f"steps, K drawn from 2 to 24, {result['samples'] // 2} questions a cell. {source(result)}")
    return "\n".join(lines)


def question_block() -> str:
    result = results()
    lines = grid(result["question"], {"the image alone": "`adaptive`, the image alone",
                                      "the question too": "`adaptive_query`, the question too"})
    seeds = result["question"][0]["seeds"]
    lines.append(f"\n{2 * result['steps']} steps, K drawn from 1 to 16, {seeds} seeds, one question an image at "
                 f"inference. {source(result)}")
    return "\n".join(lines)


def methods_block(task: str) -> str:
    """All methods on one task: accuracy at each K, the area under the curve; on the Pareto front in bold."""
    result = results()
    records = [Record(**row) for row in result["methods"][task]]
    full = next(r for r in records if r.method == "none")
    exact = [r for r in records if r.method != "none" and not r.method_options.get("count")]
    front = {(r.method, r.keep) for r in pareto_front(exact)}
    keeps = sorted({r.keep for r in exact})
    group, = group_records([*exact, full])
    found = {label.split()[0]: area for label, area in areas(group).items()}
    low, high = (f"{cost / full.prefill_flops:.0%}" for cost in common_range(group))
    cells = {(r.method, r.keep): r for r in exact}
    lines = ["| method | " + " | ".join(f"K = {k}" for k in keeps) + " | area |",
             "|---|" + "--:|" * (len(keeps) + 1)]
    for method in sorted({r.method for r in exact}, key=lambda name: (-found.get(name, 0), name)):
        row = []
        for keep in keeps:
            r = cells.get((method, keep))
            text = "" if r is None else f"{r.accuracy:.3f} · {r.prefill_flops / full.prefill_flops:.0%}"
            row.append(f"**{text}**" if (method, keep) in front else text)
        area = f"{found[method]:.3f}" if method in found else ""
        lines.append(f"| `{method}` | " + " | ".join(row) + f" | {area} |")
    lines.append("| full model | " + " | ".join([""] * (len(keeps) - 1) + [f"{full.accuracy:.3f} · 100%"]) + " | |")
    lines.append("\nAccuracy and share of the full model's prefill FLOPs; bold: on the Pareto front of both. Area: "
                 f"mean accuracy over the logarithm of the FLOPs, from {low} to {high} of the full model's; blank: a "
                 "method that does not reach that range. "
                 f"{full.samples} questions a cell. {source(result)}")
    return "\n".join(lines)


def tasks_block() -> str:
    """Every task's table, under its own heading."""
    return "\n\n".join(f"### `{task}`\n\n{methods_block(task)}" for task in results()["methods"])
