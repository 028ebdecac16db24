"""The whole way once: train pruners for a LLaVA, measure them against the full model and all other methods, report."""

import json
from collections.abc import Callable
from pathlib import Path

from .catalog import find
from .evaluation import write_report
from .evaluation.load import load_model
from .evaluation.run import EvalConfig, evaluate
from .selectors import available
from .training.base_model import WORDS, load_base
from .training.config import TrainConfig
from .training.data import DigitsStream
from .training.loop import train_pruner

BUDGETS = (4, 8, 12, 16, 24, 32)
TRAIN = TrainConfig()


def train_digits_pruner(out, config: TrainConfig, *, base=None, resume: bool = True,
                        tell: Callable | None = None) -> None:
    """Trains a pruner for the digits LLaVA into `out`; one that is finished there is left as it is."""
    model, processor = load_base(base)
    dataset = DigitsStream(processor, config.steps * config.batch_size, config.seed + 1,
                           one_question="text" in find(config.method).needs)
    train_pruner(model, dataset, out, config, resume=resume, tell=tell)


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
    evaluate(model.to(device()), processor, build("digits"), out, config, model_name="digits-llava", resume=resume,
             tell=tell)
    return write_report(out)


def model_for(task: str, name: str | None):
    """(model, processor) of a folder or a name on the hub; None: the digits LLaVA, which knows its own task only.

    ValueError: no name, and another task. FileNotFoundError: no model there.
    """
    if name is None and task != "digits":
        raise ValueError(f"model must be given for task {task}: the one that comes with the package knows digits only")
    if task == "digits" and (name is None or _is_digits(Path(name))):
        return load_base(name)
    return load_model(name)


def _is_digits(folder: Path) -> bool:
    """Whether load_base is who to ask for it, or to say why there is none."""
    config = folder / "config.json"
    if not config.is_file():
        return True
    return (json.loads(config.read_text()).get("text_config") or {}).get("vocab_size") == len(WORDS)


def device() -> str:
    """Where models run: the GPU if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
