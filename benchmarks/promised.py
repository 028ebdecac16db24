"""The table of docs/cost.md: where FLOPs that a method saves are time that it saves, from the demo's records."""

from budgetprune.evaluation import Record
from budgetprune.evaluation.predicted import by_method, predicted

KEEPS = (4, 12, 32)


def block(records: list[Record]) -> str:
    """A row per method, what saves most time for its FLOPs first: at some K the share of the full model's FLOPs and of
    its measured milliseconds; and the second over the first, of all cells."""
    rows = predicted(records)
    cells = {(row.method, row.keep): f"{row.flops_share:.0%} → {row.measured_share:.0%}" for row in rows
             if not row.method_options.get("count")}
    head = ["", *(f"K = {keep}" for keep in KEEPS), "time / FLOPs", "cells"]
    lines = [head, ["---", *["--:"] * (len(head) - 1)]]
    for one in sorted(by_method(rows), key=lambda one: one.mean):
        lines.append([f"`{one.method}`", *(cells.get((one.method, keep), "") for keep in KEEPS),
                      f"{one.mean:.2f} ({one.least:.2f} to {one.most:.2f})", f"{one.cells}"])
    full = next(record for record in records if record.method == "none")
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return (f"{text}\n\nShare of the full model's prefill FLOPs, by formula, → share of its milliseconds, measured: "
            f"{full.model}, batches of {full.latency_batch}, {full.device}, torch {full.torch}, {full.time[:10]}. The "
            "ratio is a geometric mean, with its least and most.")
