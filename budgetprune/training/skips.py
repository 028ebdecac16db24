"""What could not be read: one line each in skipped.jsonl, the count at the end, and an end where it is too much."""

import json
import logging
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from ..models.adapter import replace_file

FILE = "skipped.jsonl"
FEW = 200  # samples that a run must have seen before a share of them says anything
log = logging.getLogger(__name__)


class Skips(TrainerCallback):
    """Gathers at the end of every step what each process skipped in it, so that all know, and stop at one step.

    count: so far, in the run. A resumed run takes back what a broken-off one had skipped in steps that are repeated.
    """

    def __init__(self, folder: Path, batch_size: int, steps: int, most: float):
        self.path, self.batch_size, self.total, self.most = folder / FILE, batch_size, steps * batch_size, most
        self.pending: list[dict] = []
        self.count = 0

    def took(self, entries: list[dict]) -> None:
        """What one batch of this process skipped."""
        self.pending += entries

    def on_train_begin(self, args, state, control, **kwargs):
        kept = []
        if state.is_world_process_zero:
            if self.path.is_file():
                kept = [row for row in map(json.loads, self.path.read_text().splitlines())
                        if row["step"] <= state.global_step]
            replace_file(self.path, lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in kept)))
        self.count = total(len(kept), args.device)

    def on_step_end(self, args, state, control, **kwargs):
        new = total(len(self.pending), args.device)
        if not new:
            return
        rows = [{"step": state.global_step, **row} for row in gathered(self.pending)]
        rows.sort(key=lambda row: row["position"])
        self.pending, self.count = [], self.count + new
        if state.is_world_process_zero:
            with self.path.open("a") as file:
                file.write("".join(json.dumps(row) + "\n" for row in rows))
            for row in rows[:3]:
                log.warning("skipped %s: %s", row["id"], row["reason"])
        seen = max(state.global_step * self.batch_size, min(FEW, self.total))
        if self.count > self.most * seen:
            raise ValueError(f"max_skipped allows {self.most:.2%} of the samples to be skipped, got {self.count} of "
                             f"{seen}; {self.path} names each; the last, {rows[-1]['id']}: {rows[-1]['reason']}")


def several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def total(count: int, device) -> int:
    """The sum over all processes."""
    if not several():
        return count
    counts = torch.tensor(count, device=device)
    dist.all_reduce(counts)
    return int(counts)


def gathered(rows: list) -> list:
    """Those of all processes."""
    if not several():
        return rows
    every: list = [None] * dist.get_world_size()
    dist.all_gather_object(every, rows)
    return [row for own in every for row in own]
