"""Token budgets for vision-language models: say how many tokens, keep the right ones, save the milliseconds.

Importing this imports nothing else; names are fetched when they are first used.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

_HOME = {
    "prune": "models", "unprune": "models", "from_pretrained": "models", "Pruning": "models",
    "export_vision": "models",
    "prune_depth": "models", "unprune_depth": "models", "depth_from_pretrained": "models", "DepthPruning": "models",
    "TokenBudget": "budget", "BudgetSampler": "budget_sampler", "TokenPlan": "plan",
    "BudgetEmbedding": "pruners", "VisionTokenController": "pruners",
    "Selector": "selectors", "TokenView": "selectors", "Compressor": "compress",
}

__all__ = [*_HOME, "compressors", "methods"]

try:
    __version__ = version("budgetprune")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"


def methods() -> list[str]:
    """The names of the methods that select tokens, at any budget. prune() knows them and compressors()."""
    return import_module(".selectors", __name__).available()


def compressors() -> list[str]:
    """The names of the methods that compress the image to one fixed count, once they are trained for it."""
    return import_module(".compress", __name__).available()


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__():
    return sorted([*globals(), *_HOME])
