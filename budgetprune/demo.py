"""The whole way once: train a pruner for a LLaVA, measure it against the full model and other methods, report."""

from collections.abc import Callable
from pathlib import Path

from .evaluation import write_report
from .evaluation.run import EvalConfig, evaluate
from .selectors import available
from .selectors.base import find
from .training.base_model import load_base
from .training.config import TrainConfig
from .training.data import DigitsStream
from .training.loop import train_pruner

BUDGETS = (4, 8, 12, 16, 24, 32)
TRAIN = TrainConfig(options={"tau": 1.0})


def train_digits_pruner(out, config: TrainConfig, *, base=None, resume: bool = True,
                        tell: Callable | None = None) -> None:
    """Trains a pruner for the digits LLaVA into `out`."""
    model, processor = load_base(base)
    dataset = DigitsStream(processor, config.steps * config.batch_size, config.seed + 1)
    train_pruner(model, dataset, out, config, resume=resume, tell=tell)


def run(out, *, train: TrainConfig = TRAIN, samples: int = 768, resume: bool = True,
        training: Callable | None = None, evaluating: Callable | None = None) -> Path:
    """Trains, evaluates and reports into `out`; returns the report. What an earlier run finished is not done again."""
    from .tasks import build

    out = Path(out)
    pruner = out / "pruner"
    finished = (pruner / "budgetprune_config.json").is_file()
    if not (resume and finished and TrainConfig.read(pruner / "train_config.json") == train):
        train_digits_pruner(pruner, train, resume=resume, tell=training)
    model, processor = load_base()
    methods = sorted(available(), key=lambda name: (name != "none", name))
    trained = {name: pruner for name in methods if find(name).trainable}
    config = EvalConfig(methods, [*BUDGETS, None], trained, samples=samples)
    evaluate(model, processor, build("digits"), out, config, model_name="digits-llava", tell=evaluating)
    return write_report(out)
