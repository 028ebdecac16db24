"""The whole way once: train pruners for a LLaVA, measure them against the full model and all other methods, report."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from . import tasks
from .catalog import find
from .evaluation import write_report
from .evaluation.load import load_model
from .evaluation.run import EvalConfig, evaluate
from .models.adapter import replace_file
from .selectors import available
from .tasks import find as find_task
from .tasks.drawn import Drawn, drawn
from .training.base_model import FIRST, LOG, load_base
from .training.config import TrainConfig
from .training.data import TaskStream
from .training.loop import train_pruner

BUDGETS = (4, 8, 12, 16, 24, 32)
TRAIN = TrainConfig()
TASK_FILE = "train_task.json"


def train_task_pruner(out, config: TrainConfig, *, task: str = FIRST, base=None, resume: bool = True,
                      tell: Callable | None = None) -> None:
    """Trains a pruner for the LLaVA of a task into `out`; one that is finished there is left as it is.

    ValueError: the task does not draw its images, or `out` holds a run on another one.
    """
    asked, out = drawn(task), Path(out)
    model, processor = load_base(base, asked.name)
    dataset = TaskStream(asked, processor, config.steps * config.batch_size, config.seed + 1,
                         one_question="text" in find(config.method).needs)
    written = out / TASK_FILE
    if written.is_file():
        before = json.loads(written.read_text())["task"]
    else:  # runs that began before there was a second task do not say it
        before = FIRST if (out / "train_config.json").is_file() else asked.label
    if resume and before != asked.label:
        raise ValueError(f"{out} holds a run on the task {before}; choose another folder, or begin anew with "
                         "resume=False (--no-resume)")
    out.mkdir(parents=True, exist_ok=True)
    replace_file(written, lambda path: path.write_text(json.dumps({"task": asked.label}) + "\n"))
    train_pruner(model, dataset, out, config, resume=resume, tell=tell)


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
    return [name for name in tasks.available() if issubclass(find_task(name), Drawn)]


def measure(out, pruners: dict[str, Path], *, task: str = FIRST, samples: int = 768, resume: bool = True,
            tell: Callable | None = None) -> Path:
    """Evaluates all methods that select, the trained ones from their folders, and reports into `out`; returns the
    report."""
    model, processor = load_base(task=task)
    methods = sorted(available(), key=lambda name: (name != "none", name))
    config = EvalConfig(methods, [*BUDGETS, None], pruners, samples=samples)
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
