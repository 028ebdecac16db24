"""Trains a pruner on the images that a task draws, for the small LLaVA of that task."""

import json
from collections.abc import Callable
from pathlib import Path

from ..catalog import find
from ..models.adapter import replace_file
from ..tasks import Task
from ..tasks.drawn import drawn
from .base_model import FIRST, load_base
from .config import TrainConfig
from .data import TaskStream
from .loop import train_pruner

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
    begin_on(asked, out, resume)
    train_pruner(model, dataset, out, config, resume=resume, tell=tell)


def begin_on(task: Task, out: Path, resume: bool) -> None:
    """Writes into `out` which task it is trained on. ValueError: a run there that this would go on with is not."""
    written = out / TASK_FILE
    if written.is_file():
        before = json.loads(written.read_text())["task"]
    else:  # runs that began before there was a second task do not say it
        before = FIRST if (out / "train_config.json").is_file() else task.label
    if resume and before != task.label:
        raise ValueError(f"{out} holds a run on the task {before}; choose another folder, or begin anew with "
                         "resume=False (--no-resume)")
    out.mkdir(parents=True, exist_ok=True)
    replace_file(written, lambda path: path.write_text(json.dumps({"task": task.label}) + "\n"))
