"""The small paper: what the choices in the trained pruner are worth, and how it stands among all methods, per task."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from ..demo import measure, train_pruners
from ..evaluation import read
from ..evaluation.record import environment
from ..models.adapter import replace_file
from ..training.config import TrainConfig
from .summary import differences, summarise
from .trials import Trial, run_trials, trials_of

BUDGETS = (2, 4, 8, 12)
ABLATIONS = {
    "baseline": {},
    "fusion=encoder": {"fusion": "encoder"},
    "estimator=fermi": {"estimator": "fermi"},
    "estimator=softmax": {"estimator": "softmax"},
    "gate=noise": {"gate": "noise", "estimator": "fermi"},
    "gate=features": {"gate": "features"},
}
QUESTION_BUDGETS = (1, 2, 4, 8)
QUESTION = {"the image alone": {"method": "adaptive", "k_min": 1, "k_max": 16},
            "the question too": {"method": "adaptive_query", "k_min": 1, "k_max": 16}}
RESULT = "paper.json"
TITLES = {
    "baseline": "budget behind the encoder (B), race, gates in attention",
    "fusion=encoder": "budget token inside the encoder (A)",
    "estimator=fermi": "estimator fermi",
    "estimator=softmax": "estimator softmax",
    "gate=noise": "noise instead of a choice, with fermi",
    "gate=features": "gates on gathered features",
}


def trials(seeds: int, steps: int, samples: int) -> tuple[list[Trial], list[Trial]]:
    """(the ablations, the two that differ in whether the question is heard), on `digits`. The seeds are the measure
    here, so half the questions do."""
    config = TrainConfig(steps=steps)
    longer = replace(config, steps=2 * steps)
    half = max(1, samples // 2)
    return (trials_of(ABLATIONS, config, seeds, BUDGETS, samples=half),
            trials_of(QUESTION, longer, max(1, seeds - 2), QUESTION_BUDGETS, samples=half))


def run_paper(out, *, tasks: Sequence[str], seeds: int = 5, steps: int = 150, samples: int = 768,
              workers: int | None = None, tell: Callable[[str, int, int, str], None] | None = None) -> Path:
    """Runs all of it into `out` and returns paper.json; what an earlier call has done is taken over.

    tasks: on which all methods are compared, the trained ones after 2 x `steps` steps; the ablations are on digits.
    seeds: of each ablation; the question's worth is learnt from two fewer.
    tell: called with (part, done, total, note).
    """
    out, tell = Path(out), tell or (lambda part, done, total, note: None)
    ablations, question = trials(seeds, steps, samples)
    for part, some in (("ablations", ablations), ("question", question)):
        run_trials(some, out / part, workers=workers, tell=lambda done, total, note, part=part:
                   tell(part, done, total, note))
    pages = {}
    for task in tasks:
        folder = out / "methods" / task
        pruners = train_pruners(folder, TrainConfig(steps=2 * steps), task=task,
                                tell=lambda method, step, values, task=task:
                                tell(f"{task}: training {method}", step, 2 * steps, ""))
        measure(folder, pruners, task=task, samples=samples, latency_batch=0,  # the figures here are FLOPs
                tell=lambda cell, done, total, task=task: tell(f"{task}: evaluating", done, total, cell))
        pages[task] = [asdict(r) for r in read(folder / "records.jsonl")]
    result = {
        "command": "budgetprune paper", "seeds": seeds, "steps": steps, "samples": samples,
        **environment(),
        "ablations": [asdict(cell) for cell in summarise(ablations, out / "ablations")],
        "against baseline": [asdict(cell) for cell in differences(ablations, out / "ablations", "baseline")],
        "question": [asdict(cell) for cell in summarise(question, out / "question")],
        "methods": pages,
    }
    replace_file(out / RESULT, lambda path: path.write_text(json.dumps(result, indent=1) + "\n"))
    return out / RESULT
