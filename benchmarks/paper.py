"""The tables that show the small experiment, from its committed results; what they say in words: paper_words.py.

    make paper-small                                             measure into runs/paper-small
    python benchmarks/readme.py --paper runs/paper-small         take its results over and write the blocks
"""

import json
from dataclasses import replace
from pathlib import Path

from budgetprune.catalog import find
from budgetprune.evaluation import Record
from budgetprune.evaluation.frontier import pareto_front
from budgetprune.evaluation.report_data import areas, common_range
from budgetprune.evaluation.summary import group_records
from budgetprune.study.paper import BASELINE, FLOOR, RESULT, TITLES

RESULTS = Path(__file__).resolve().parent / "results" / "paper.json"


def taken_over(folder: Path) -> str:
    """What is committed of a run: its result, with no file beside it."""
    return (folder / RESULT).read_text()


def results() -> dict:
    return json.loads(RESULTS.read_text())


def around(cell: dict, form: str = ".3f") -> str:
    half = "" if cell["half"] is None else f" ± {cell['half']:.3f}"
    return f"{round(cell['value'], 3) + 0.0:{form}}{half}"  # + 0.0: no minus before a zero


def words(entries) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *first, last = map(str, entries)
    return f"{', '.join(first)} and {last}" if first else last


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


def off_zero(cell: dict) -> bool:
    return cell["half"] is not None and abs(cell["value"]) > cell["half"]


def as_cell(row: dict) -> dict:
    """Of a record, whose interval is over questions and not quite even."""
    low, high = row["ci95"]
    return {"variant": row["method"], "keep": row["keep"], "value": row["accuracy"], "half": (high - low) / 2}


def ablations_block() -> str:
    """Accuracy of the baseline and without training, then what each other setting changes, seed by seed."""
    result = results()
    floor = [as_cell(row) for row in result["floor"]]
    lines = grid([c for c in result["ablations"] if c["variant"] == BASELINE] + floor,
                 {BASELINE: TITLES[BASELINE], FLOOR: f"`{FLOOR}`, no training"})
    changes = {name: title for name, title in TITLES.items() if name != BASELINE}
    lines += grid(result["against baseline"], changes, "+.3f", off_zero)[2:]
    lines.append(f"\nAccuracy on `digits`, then the difference that each setting makes to the first row; mean and 95 % "
                 f"interval over {result['seeds']} seeds, paired by seed, bold where the interval is off zero; that of "
                 f"the untrained row is over questions. {result['steps']} steps, K drawn from 2 to 24, "
                 f"{result['floor'][0]['samples']} questions a cell. {source(result)}")
    return "\n".join(lines)


def noise_block() -> str:
    """Noise in place of a choice against both places where gates can act."""
    result = results()
    lines = []
    for name, title in (("gate=features", "noise less gates on gathered features"),
                        ("estimator=fermi", "noise less gates in attention, with fermi as well")):
        cells = [cell | {"variant": name} for cell in result[f"against {name}"] if cell["variant"] == "gate=noise"]
        lines += grid(cells, {name: title}, "+.3f", off_zero)[2 if lines else 0:]
    return "\n".join(lines)


def question_block() -> str:
    result = results()
    lines = grid(result["question"], {"the image alone": "`adaptive`, the image alone",
                                      "the question too": "`adaptive_query`, the question too"})
    seeds = result["question"][0]["seeds"]
    lines.append(f"\n{2 * result['steps']} steps, K drawn from 1 to 16, {seeds} seeds, one question an image at "
                 f"inference. {source(result)}")
    return "\n".join(lines)


def compressors_block() -> str:
    """Those that compress, one training for each K, beside one pruner for all of them."""
    result = results()
    cells = [as_cell(row) for row in result["compressors"]]
    keeps = {cell["keep"] for cell in cells}
    names = sorted({cell["variant"] for cell in cells},
                   key=lambda name: -sum(cell["value"] for cell in cells if cell["variant"] == name))
    own = [cell for cell in result["question"] if cell["keep"] in keeps]
    lines = grid(cells + own, {name: f"`{name}`" for name in names} | {
        "the question too": "`adaptive_query`, one for all K", "the image alone": "`adaptive`, one for all K"})
    lines.append(f"\nAccuracy on `digits` with K of 64. Pruners: {2 * result['steps']} steps, {own[0]['seeds']} seeds, "
                 f"interval over seeds. Compressors: {3 * result['steps']} steps, one training at each K, interval "
                 f"over {result['compressors'][0]['samples']} questions. {source(result)}")
    return "\n".join(lines)


def measured(task: str) -> tuple[list[Record], Record, dict]:
    """(all cells that keep exactly K, the full model, {(trained method, K): mean and interval over seeds}) of a task;
    the accuracy of a trained one is its mean."""
    result = results()
    trained = {(c["variant"], c["keep"]): c for c in result["trained"] if c["task"] == task}
    records = [Record(**row) for row in result["methods"][task]]
    exact = [replace(r, accuracy=trained[r.method, r.keep]["value"]) if (r.method, r.keep) in trained else r
             for r in records if r.method != "none" and not r.method_options.get("count")]
    return exact, next(r for r in records if r.method == "none"), trained


def methods_block(task: str) -> str:
    """All methods on one task: accuracy at each K, the area under the curve; on the Pareto front in bold."""
    result = results()
    exact, full, trained = measured(task)
    front = {(r.method, r.keep) for r in pareto_front(exact)}
    keeps = sorted({r.keep for r in exact})
    group, = group_records([*exact, full])
    found = {label.split()[0]: area for label, area in areas(group).items()}
    cells = {(r.method, r.keep): r for r in exact}
    lines = ["| method | " + " | ".join(f"K = {k}" for k in keeps) + " | area |",
             "|---|" + "--:|" * (len(keeps) + 1)]
    for method in sorted({r.method for r in exact}, key=lambda name: (-found.get(name, 0), name)):
        row = []
        for keep in keeps:
            r = cells.get((method, keep))
            text = ""
            if r is not None:
                cell = trained.get((method, keep), as_cell(vars(r)))
                text = f"{around(cell)} · {r.prefill_flops / full.prefill_flops:.0%}"
            row.append(f"**{text}**" if (method, keep) in front else text)
        area = f"{found[method]:.3f}" if method in found else ""
        mark = ", trained" if find(method).trainable else ""
        lines.append(f"| `{method}`{mark} | " + " | ".join(row) + f" | {area} |")
    last = f"{around(as_cell(vars(full)))} · 100%"
    lines.append("| full model | " + " | ".join([""] * (len(keeps) - 1) + [last]) + " | |")
    span = common_range(group)
    if span:
        low, high = (f"{cost / full.prefill_flops:.0%}" for cost in span)
        area = (f"Area: mean accuracy over the logarithm of the FLOPs, from {low} to {high} of the full model's; "
                "blank: a method that does not reach that range. ")
    seeds = next((f" (of trained methods the mean over {c['seeds']} trainings, with the interval over these)"
                  for c in trained.values()), "")
    lines.append(f"\nAccuracy with its 95 % interval over {full.samples} questions{seeds}, and share of the full "
                 f"model's prefill FLOPs; bold: on the Pareto front of both, which compares at equal cost. "
                 f"{area if span else ''}{source(result)}")
    return "\n".join(lines)


def tasks_block() -> str:
    """Every task's table, under its own heading."""
    return "\n\n".join(f"### `{task}`\n\n{methods_block(task)}" for task in results()["methods"])


def against_block() -> str:
    """Each trained method less the best at the same K that needs no training and acts before the language model."""
    result = results()
    cells = result["against training-free"]
    keeps = sorted({cell["keep"] for cell in cells})
    lines = ["| | " + " | ".join(f"K = {k}" for k in keeps) + " |", "|---|" + "--:|" * len(keeps)]
    for task in dict.fromkeys(cell["task"] for cell in cells):
        of_task = [cell for cell in cells if cell["task"] == task]
        accuracy = {(r.method, r.keep): r.accuracy for r in measured(task)[0]}
        best = {cell["keep"]: cell["best"] for cell in of_task}
        lines.append(f"| `{task}`: best without training | " + " | ".join(
            f"`{best[k]}` {accuracy[best[k], k]:.3f}" if k in best else "" for k in keeps) + " |")
        for method in dict.fromkeys(cell["method"] for cell in of_task):
            row = {cell["keep"]: cell for cell in of_task if cell["method"] == method}
            lines.append(f"| `{task}`: `{method}` less that | " + " | ".join(
                _signed(row[k]) if k in row else "" for k in keeps) + " |")
    lines.append(f"\nDifference of accuracy on the same questions, mean over {cells[0]['seeds']} trainings, with its "
                 "95 % interval over questions and trainings together, bold where that is off zero; each interval is "
                 "for itself, not for all at once. The rival is the best on these very questions, which flatters it. "
                 f"{_hearing(cells)}{source(result)}")
    return "\n".join(lines)


def _hearing(cells) -> str:
    """Which of those compared get the question as well as the image."""
    rivals = {row["method"] for page in results()["methods"].values() for row in page}
    hears = {side: sorted(f"`{name}`" for name in names if "text" in find(name).needs) for side, names in (
        ("trained", {cell["method"] for cell in cells}),
        ("others", {name for name in rivals if not find(name).trainable and find(name).place == "vision"}))}
    others = f"of its rivals {words(hears['others'])}" if hears["others"] else "none of its rivals"
    return f"{words(hears['trained'])} gets the question, {others}. " if hears["trained"] else ""


def _signed(cell: dict) -> str:
    value, low, high = (f"{round(cell[name], 3) + 0.0:+.3f}" for name in ("value", "low", "high"))
    text = f"{value} [{low}, {high}]"
    return f"**{text}**" if cell["low"] > 0 or cell["high"] < 0 else text


BLOCKS = {"paper ablations": ablations_block, "paper noise": noise_block, "paper question": question_block,
          "paper compressors": compressors_block, "paper against": against_block, "paper tasks": tasks_block}
