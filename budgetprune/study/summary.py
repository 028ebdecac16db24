"""What the settings of a study are worth: means over seeds with intervals, and differences seed by seed."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from .trials import Trial


@dataclass(frozen=True)
class Cell:
    """One setting at one budget: mean over `seeds` trainings, and its 95 % interval (Student's t; None: one seed).

    value: accuracy, or, of `differences`, that less the baseline's. recall: mean share of the patches that matter which
    were kept, None where the task does not say which do.
    """

    task: str
    variant: str
    keep: int
    value: float
    half: float | None
    seeds: int
    recall: float | None = None


def summarise(trials: Sequence[Trial], out) -> list[Cell]:
    """A Cell for each task, setting and budget, in the order of the trials."""
    return [_cell(*key, [r.accuracy for r in rows.values()], [r.kept_recall for r in rows.values()])
            for key, rows in _measured(trials, out).items()]


def differences(trials: Sequence[Trial], out, baseline: str) -> list[Cell]:
    """Each other setting less `baseline`, paired by seed: both were trained and asked alike but for the setting.

    ValueError: no trial of that name is measured.
    """
    measured = _measured(trials, out)
    if not any(variant == baseline for _, variant, _ in measured):
        raise ValueError(f"baseline must be one of {', '.join(dict.fromkeys(v for _, v, _ in measured))}, "
                         f"got {baseline}")
    cells = []
    for (task, variant, keep), rows in measured.items():
        other = measured.get((task, baseline, keep), {})
        pairs = [rows[seed].accuracy - other[seed].accuracy for seed in rows if seed in other]
        if variant != baseline and pairs:
            cells.append(_cell(task, variant, keep, pairs, [None]))
    return cells


def _measured(trials, out):
    found: dict = defaultdict(dict)
    for trial in trials:
        for record in trial.records(Path(out)):
            found[trial.task, trial.variant, record.keep][trial.config.seed] = record
    return found


def half_width(values: Sequence[float]) -> float | None:
    """Half of the 95 % interval around a mean, by Student's t; None of a single value."""
    from scipy.stats import t

    n = len(values)
    return float(t.ppf(0.975, n - 1)) * stdev(values) / math.sqrt(n) if n > 1 else None


def _cell(task, variant, keep, values, recalls):
    recall = None if any(r is None for r in recalls) else fmean(recalls)
    return Cell(task, variant, keep, fmean(values), half_width(values), len(values), recall)
