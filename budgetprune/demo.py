"""The whole way once: train pruners for a LLaVA, measure them against the full model and all other methods, report."""

from collections.abc import Callable
from pathlib import Path

from .evaluation import write_report
from .evaluation.load import load_model
from .evaluation.run import EvalConfig, evaluate
from .selectors import available
from .selectors.base import find
from .tasks import find as find_task
from .tasks.drawn import Drawn
from .training.base_model import FIRST, LOG, load_base
from .training.config import TrainConfig

BUDGETS = (4, 8, 12, 16, 24, 32)
TRAIN = TrainConfig()


def trained_methods() -> list[str]:
    """The names of the methods that learn."""
    return [name for name in available() if find(name).trainable]


def measure(out, pruners: dict[str, Path], *, samples: int = 768, resume: bool = True,
            tell: Callable | None = None) -> Path:
    """Evaluates all methods, the trained ones from their folders, and reports into `out`; returns the report."""
    from .tasks import build

    model, processor = load_base()
    methods = sorted(available(), key=lambda name: (name != "none", name))
    config = EvalConfig(methods, [*BUDGETS, None], pruners, samples=samples)
    evaluate(model.to(device()), processor, build(FIRST), out, config, model_name=base_name(FIRST), resume=resume,
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
