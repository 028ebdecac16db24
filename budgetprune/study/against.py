"""Trained methods against the best of those that need no training, question by question, over seeds and questions."""

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from ..evaluation import answers, latest, read
from ..evaluation.paired import paired
from ..evaluation.record import FILE_NAME
from .summary import half_width
from .trials import Trial


@dataclass(frozen=True)
class Against:
    """A trained method less its strongest rival at one budget, asked the same questions.

    best: that rival, which is the most accurate on these very questions, so that it is flattered, if anything.
    value: difference of accuracy, mean over `seeds` trainings. low, high: 95 % interval of the questions (`paired`)
    and, of several seeds, of these (Student's t), their widths squared and added.
    """

    task: str
    method: str
    keep: int
    best: str
    value: float
    low: float
    high: float
    seeds: int


def against_best(trials: Sequence[Trial], out, folder, rivals: Collection[str]) -> list[Against]:
    """An Against for each variant and budget of `trials`, which are of one task, where a rival was measured as well.

    folder: of an evaluation on the same questions, which holds the rivals' records and answers.

    ValueError: the two were asked different questions.
    """
    out, others = Path(out), defaultdict(list)
    for record in latest(read(Path(folder) / FILE_NAME)):
        if record.method in rivals and not record.method_options.get("count"):
            others[record.task, record.keep, record.samples].append(record)
    strongest = {cell: max(some, key=lambda r: (r.accuracy, r.method)) for cell, some in others.items()}
    asked = answers.read(folder, {record.key() for record in strongest.values()})
    pairs = defaultdict(list)  # {(variant, cell): the trainings' answers}
    for trial in trials:
        records = {record.key(): (record.task, record.keep, record.samples) for record in trial.records(out)}
        said = answers.read(trial.folder(out), set(records))
        for key, cell in records.items():
            if cell in strongest:
                pairs[trial.variant, cell].append(said.get(key, {}))
    return [_against(variant, strongest[cell], asked.get(strongest[cell].key(), {}), runs)
            for (variant, cell), runs in pairs.items()]


def _against(variant, best, said, runs):
    if not said or any(run.keys() != said.keys() for run in runs):
        raise ValueError(f"trials must have been asked the same questions as {best.method} at {best.keep} on "
                         f"{best.task}, got others of {variant}")
    theirs = [one.score for one in said.values()]
    ours = [[run[name].score for name in said] for run in runs]
    images = [one.image for one in said.values()]
    result = paired(theirs, ours[0] if len(runs) == 1 else [fmean(map(float, scores)) for scores in zip(*ours)],
                    None if None in images else images)
    seeds = half_width([fmean(map(float, scores)) for scores in ours]) or 0.0
    low, high = (math.hypot(result.difference - end, seeds) for end in result.ci95)
    return Against(best.task, variant, best.keep, best.method, result.difference, result.difference - low,
                   result.difference + high, len(runs))
