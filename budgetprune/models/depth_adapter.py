"""Saving and loading what skips layers: method, options, budget and weights, beside a vision pruner's or alone."""

import json
from pathlib import Path

from torch import nn

from ..checked import shown
from ..pruners.depth import scheduler
from .adapter import replace_file
from .depth import DepthPruning, prune_depth

CONFIG, WEIGHTS = "depth_config.json", "depth_model.safetensors"
KEYS = ("method", "options", "budget", "train_budget", "seed")


def save_depth(model: nn.Module, folder) -> None:
    """Writes depth_config.json and depth_model.safetensors into `folder`, each aside and renamed."""
    from safetensors.torch import save_file

    pruner, folder = model.budget_depth, Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in pruner.weights().items()}
    replace_file(folder / WEIGHTS, lambda path: save_file(weights, path, {"format": "pt"}))
    config = {"method": pruner.scheduler.name, "options": pruner.scheduler.options(), "budget": pruner.budget,
              "train_budget": pruner.train_budget, "seed": pruner.seed}
    replace_file(folder / CONFIG, lambda path: path.write_text(json.dumps(config, indent=2) + "\n"))


def depth_from_pretrained(model: nn.Module, folder, *, budget=None) -> DepthPruning:
    """Prunes the depth of `model` as saved in `folder`; `budget` overrides the saved one.

    FileNotFoundError: nothing of the kind in `folder`. ValueError: it cannot be read, or was made for another model.
    """
    config = read_depth_config(folder)
    train = config["train_budget"]
    pruning = prune_depth(model, config["method"], budget=config["budget"] if budget is None else budget,
                          train_budget=train and tuple(train), seed=config["seed"], **config["options"])
    try:
        load_depth_weights(model, folder)
    except BaseException:
        pruning.remove()
        raise
    return pruning


def load_depth_weights(model: nn.Module, folder) -> None:
    """Reads the weights in `folder` into a model whose depth is pruned already."""
    from safetensors.torch import load_file

    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"no {WEIGHTS} in {folder}")
    try:
        model.budget_depth.load_weights(load_file(path))
    except RuntimeError as error:
        raise ValueError(f"what is in {folder} was trained for another model: {error}") from error


def read_depth_config(folder) -> dict:
    """What save_depth wrote. FileNotFoundError: nothing. ValueError: it names the file, and what is wrong there."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"no {CONFIG} in {folder}")
    try:
        config = json.loads(path.read_text())
        if not isinstance(config, dict) or set(config) != set(KEYS):
            raise TypeError(f"it must hold an object of {', '.join(KEYS)}, got {shown(config)}")
        if not isinstance(config["options"], dict):
            raise TypeError(f"options must be an object, got {shown(config['options'])}")
        scheduler(config["method"])
    except (TypeError, ValueError) as error:  # what json says of broken files are ValueErrors, too
        raise ValueError(f"{path} is not what save_pretrained writes: {error}") from error
    return config
