"""Original or compact position ids: the accuracy of every method that has the choice, on the digits task.

    python benchmarks/positions.py          measure into benchmarks/results/positions.jsonl (about two minutes)
    python benchmarks/readme.py             and put the table into docs/methods.md

A cell is a method, a budget and a numbering, on the same questions. Trained methods are left out: they learn with one.
"""

import argparse
import tempfile
from pathlib import Path

from budgetprune import tasks
from budgetprune.evaluation import read
from budgetprune.evaluation.run import EvalConfig, evaluate
from budgetprune.selectors import available
from budgetprune.selectors.base import find
from budgetprune.training import load_base

RESULTS = Path(__file__).resolve().parent / "results" / "positions.jsonl"
NUMBERINGS = ("original", "compact")
BUDGETS = (4, 8, 16, 32)


def methods() -> list[str]:
    """Those that act before the language model and do not learn."""
    return [name for name in available() if name != "none" and find(name).place == "vision"
            and not find(name).trainable]


def measure(out: Path, samples: int) -> None:
    model, processor = load_base()
    for numbering in NUMBERINGS:
        config = EvalConfig(methods(), BUDGETS, samples=samples, latency_batch=0, images=0,
                            options={name: {"positions": numbering} for name in methods()})
        evaluate(model, processor, tasks.build("digits"), out, config, model_name="digits-llava",
                 tell=lambda cell, done, total: print(f"{done}/{total} {cell}", flush=True))


def positions_table() -> str:
    """One row per method: accuracy with original and with compact ids at each K, the better one in bold where their
    intervals do not overlap."""
    records = read(RESULTS)
    cells = {(r.method, r.keep, r.method_options["positions"]): r for r in records}
    keeps = sorted({r.keep for r in records})
    lines = ["| method | default | " + " | ".join(f"K = {k}" for k in keeps) + " |", "|---|---|" + "--:|" * len(keeps)]
    for method in sorted({r.method for r in records}):
        row = [" / ".join(_accuracy(cells, method, k, numbering) for numbering in NUMBERINGS) for k in keeps]
        lines.append(f"| `{method}` | {find(method).positions} | " + " | ".join(row) + " |")
    one = records[0]
    lines.append(f"\nAccuracy with original / compact ids on the digits task, {one.samples} questions a cell; bold "
                 "where the other's 95 % interval lies below. "
                 f"`python benchmarks/positions.py`, torch {one.torch}, {one.time[:10]}, commit {one.commit}.")
    return "\n".join(lines)


def _accuracy(cells, method, keep, numbering):
    mine, other = (cells[method, keep, n] for n in (numbering, *(n for n in NUMBERINGS if n != numbering)))
    return f"**{mine.accuracy:.3f}**" if mine.ci95[0] > other.ci95[1] else f"{mine.accuracy:.3f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=768, help="questions per cell")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the records go")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), arguments.samples)
        aside = arguments.out.with_suffix(".part")
        aside.write_text((Path(folder) / "records.jsonl").read_text())
        aside.replace(arguments.out)


if __name__ == "__main__":
    main()
