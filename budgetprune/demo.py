"""The whole way once: train pruners for a LLaVA, measure them against the full model and all other methods, report."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from . import tasks
from .catalog import find
from .evaluation import write_report
from .evaluation.load import load_model
from .evaluation.run import EvalConfig, evaluate
from .selectors import available
from .tasks import find as find_task
from .tasks.drawn import Drawn
from .training.base_model import CHECKPOINTS, FIRST, LOG, load_base
from .training.config import TrainConfig
from .training.task_pruner import train_task_pruner

BUDGETS = (4, 8, 12, 16, 24, 32)
TRAIN = TrainConfig()


def trained_methods() -> list[str]:
    """The names of the methods that learn."""
    return [name for name in available() if find(name).trainable]


def train_pruners(out, config: TrainConfig = TRAIN, *, task: str = FIRST, resume: bool = True,
                  tell: Callable | None = None) -> dict[str, Path]:
    """Trains every method that learns to select, each into a folder of its own under `out`; returns the folders.

    tell: called with (method, step, values).
    """
    folders = {method: Path(out) / "pruners" / method for method in trained_methods()}
    for method, folder in folders.items():
        train_task_pruner(folder, replace(config, method=method), task=task, resume=resume,
                          tell=tell and (lambda step, values, method=method: tell(method, step, values)))
    return folders


def small_tasks() -> list[str]:
    """The names of the tasks whose small LLaVA comes with the package."""
    return [name for name in tasks.available() if issubclass(find_task(name), Drawn)
            and (CHECKPOINTS / f"{name}-llava").is_dir()]


def measure(out, pruners: dict[str, Path], *, task: str = FIRST, samples: int = 768, latency_batch: int = 32,
            methods: Sequence[str] | None = None, resume: bool = True, tell: Callable | None = None) -> Path:
    """Evaluates the full model and `methods`, the trained ones from their folders, and reports into `out`; returns the
    report. methods: None: all that select."""
    model, processor = load_base(task=task)
    methods = sorted({"none", *(available() if methods is None else methods)}, key=lambda name: (name != "none", name))
    config = EvalConfig(methods, [*BUDGETS, None], pruners, samples=samples, latency_batch=latency_batch)
    evaluate(model.to(device()), processor, tasks.build(task), out, config, model_name=base_name(task), resume=resume,
             tell=tell)
    return write_report(out)


def base_name(task: str) -> str:
    """What records call the small LLaVA of a task."""
    return f"{task}-llava"


def model_for(task: str, name: str | None):
    """(model, processor) of a folder or a name on the hub; None: the task's own small LLaVA, which knows no other task.

    ValueError: no name, and a task without such a LLaVA. FileNotFoundError: no model there.
    """
    own = issubclass(find_task(task), Drawn)
    if name is None and not own:
        raise ValueError(f"model must be given for task {task}: those that come with the package know only tasks that "
                         "draw their images")
    if own and (name is None or not (Path(name) / "config.json").is_file() or (Path(name) / LOG).is_file()):
        return load_base(name, task)
    return load_model(name)


def device() -> str:
    """Where models run: the GPU if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
