"""The small paper: what the choices in the trained pruner are worth, and how it stands among all methods, per task."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..catalog import available, find
from ..checked import integer, one_of
from ..demo import BUDGETS as KEPT
from ..demo import base_name, device, measure
from ..evaluation import latest, read
from ..evaluation.record import FILE_NAME, environment
from ..evaluation.run import EvalConfig, evaluate
from ..models.adapter import replace_file
from ..tasks import build
from ..tasks.drawn import drawn
from ..training.base_model import FIRST, load_base
from ..training.config import TrainConfig
from .against import against_best
from .summary import differences, summarise
from .trials import Trial, run_trials, trials_of
from .work import Work

BUDGETS = (2, 4, 8, 12)
BASELINE, FLOOR = "baseline", "random"
ABLATIONS = {
    BASELINE: {},
    "fusion=encoder": {"fusion": "encoder"},
    "estimator=fermi": {"estimator": "fermi"},
    "estimator=softmax": {"estimator": "softmax"},
    "gate=noise": {"gate": "noise", "estimator": "fermi"},
    "gate=features": {"gate": "features"},
}
QUESTION_BUDGETS = (1, 2, 4, 8, 16)
QUESTION = {"the image alone": {"method": "adaptive", "k_min": 1, "k_max": 16},
            "the question too": {"method": "adaptive_query", "k_min": 1, "k_max": 16}}
COMPRESSED = (1, 4, 16)
RESULT = "paper.json"
TITLES = {
    BASELINE: "budget behind the encoder (B), race, gates in attention",
    "fusion=encoder": "budget token inside the encoder (A)",
    "estimator=fermi": "estimator fermi",
    "estimator=softmax": "estimator softmax",
    "gate=noise": "noise instead of a choice, with fermi",
    "gate=features": "gates on gathered features",
}


@dataclass(frozen=True)
class Design:
    """What is run.

    tasks: on which all methods are compared; the rest is on digits. methods: which; of those that compress, each is
    trained for every count of COMPRESSED. settings: of ABLATIONS, the baseline among them. seeds: trainings of each
    setting; two fewer of each method, one of each compressor. steps: of the ablations; twice as many elsewhere, and
    three times as many of compressors, which learn other tokens and not only which to keep.
    samples: questions of a cell where all methods are compared; half of them elsewhere, where seeds are the measure.

    ValueError: an unknown name, a task without a LLaVA, a count that is none.
    """

    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    settings: tuple[str, ...] = tuple(ABLATIONS)
    seeds: int = 5
    steps: int = 150
    samples: int = 768

    def __post_init__(self):
        for name in ("seeds", "steps", "samples"):
            integer(name, getattr(self, name), 1)
        for setting in self.settings:
            one_of("settings", setting, ABLATIONS)
        if BASELINE not in self.settings:
            raise ValueError(f"settings must hold {BASELINE}, got {', '.join(self.settings)}")
        for method in self.methods:
            find(method)
        for task in self.tasks:
            drawn(task)

    @property
    def half(self) -> int:
        return max(1, self.samples // 2)

    @property
    def trained(self) -> list[str]:
        """The methods that learn to select."""
        return [name for name in self.methods if find(name).trainable and not find(name).fixed_count]

    @property
    def rivals(self) -> list[str]:
        """Those that select before the language model and need no training."""
        return [name for name in self.methods if name != "none" and not find(name).trainable
                and find(name).place == "vision"]

    def trials(self) -> dict[str, list[Trial]]:
        """{part: its trainings}: the ablations, whether the question is heard, the compressors, all trained methods."""
        config, longer, longest = (TrainConfig(steps=times * self.steps) for times in (1, 2, 3))
        fewer = max(1, self.seeds - 2)
        compressors = [name for name in self.methods if find(name).fixed_count]
        parts = {
            "ablations": trials_of({name: ABLATIONS[name] for name in self.settings}, config, self.seeds, BUDGETS,
                                   samples=self.half, part="ablations"),
            "question": trials_of({name: setting for name, setting in QUESTION.items()
                                   if setting["method"] in self.methods}, longer, fewer, QUESTION_BUDGETS,
                                  samples=self.half, part="question"),
            "compressors": [trial for keep in COMPRESSED for trial in trials_of(
                {f"{name}@{keep}": {"method": name, "k_min": keep, "k_max": keep} for name in compressors}, longest, 1,
                [keep], samples=self.half, part="compressors")],
        }
        for task in self.tasks:
            parts[task] = trials_of({name: {"method": name} for name in self.trained}, longer, fewer, KEPT,
                                    samples=self.samples, task=task, part="methods")
        return parts


def run_paper(out, *, tasks: Sequence[str], methods: Sequence[str] | None = None,
              settings: Sequence[str] = tuple(ABLATIONS), seeds: int = 5, steps: int = 150, samples: int = 768,
              workers: int | None = None, tell: Callable[[str, int, int, str], None] | None = None) -> Path:
    """Runs all of it into `out` and returns paper.json; what an earlier call has done is taken over.

    tasks, methods, settings, seeds, steps, samples: as `Design` says; methods: None: all.
    workers: as run_trials has it. tell: called with (part, done, total, note).

    ValueError: as `Design` says, or `out` holds a run of another one.
    """
    out = Path(out)
    design = Design(tuple(tasks), tuple(available() if methods is None else methods), tuple(settings), seeds, steps,
                    samples)
    parts = design.trials()
    with Work(out, asdict(design)) as work:
        def report(part, done, total, note):
            work.tick()
            if tell:
                tell(part, done, total, note)

        run_trials([trial for some in parts.values() for trial in some], out, workers=workers,
                   tell=lambda done, total, note: report("trainings", done, total, note))
        _floor(out / "ablations" / FLOOR, design.half)
        for task in tasks:
            _sweep(out, task, design, parts[task], report)
        result = {"command": "budgetprune paper", "seeds": seeds, "steps": steps, "samples": samples,
                  **_results(out, design, parts), "seconds": round(work.seconds, 1), **environment()}
    replace_file(out / RESULT, lambda path: path.write_text(json.dumps(result, indent=1) + "\n"))
    return out / RESULT


def _floor(folder, samples):
    """What a training has to beat, at the ablations' budgets."""
    model, processor = load_base(task=FIRST)
    config = EvalConfig([FLOOR], list(BUDGETS), samples=samples, latency_batch=0, images=0)
    evaluate(model.to(device()), processor, build(FIRST), folder, config, model_name=base_name(FIRST))


def _sweep(out, task, design, trials, report):
    """All methods that select on one task, the trained ones of the first seed, and the report page."""
    first = {trial.variant: trial.folder(out) / "pruner" for trial in trials if trial.config.seed == 0}
    measure(out / "methods" / task, first, task=task, samples=design.samples, latency_batch=0,  # figures are FLOPs here
            methods=[name for name in design.methods if not find(name).fixed_count],
            tell=lambda cell, done, total: report(f"{task}: evaluating", done, total, cell))


def _results(out, design, parts):
    """What paper.json says beside how it was run; lists of cells, as JSON has them."""
    ablations = parts["ablations"]
    pages = {task: [r for r in latest(read(out / "methods" / task / FILE_NAME)) if r.samples == design.samples]
             for task in design.tasks}
    found = {
        "ablations": summarise(ablations, out),
        "against baseline": differences(ablations, out, BASELINE),
        "floor": [r for r in latest(read(out / "ablations" / FLOOR / FILE_NAME)) if r.samples == design.half],
        "question": summarise(parts["question"], out),
        "compressors": [r for trial in parts["compressors"] for r in trial.records(out)],
        "trained": [cell for task in design.tasks for cell in summarise(parts[task], out)],
        "against training-free": [cell for task in design.tasks for cell in against_best(
            parts[task], out, out / "methods" / task, design.rivals)],
    }
    for name in ("estimator=fermi", "gate=features"):
        if name in design.settings:
            found[f"against {name}"] = differences(ablations, out, name)
    return {name: [asdict(cell) for cell in cells] for name, cells in found.items()} | {
        "methods": {task: [asdict(r) for r in page] for task, page in pages.items()}}
