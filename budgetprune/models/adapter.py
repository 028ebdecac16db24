"""Saving and loading what a pruner is: method, options, budget, and its trained weights if it has any."""

import json
import os
import uuid
from pathlib import Path

from torch import nn

from ..budget import count_range
from ..catalog import build, find
from ..checked import shown
from .pruning import Pruning, prune

CONFIG, WEIGHTS = "budgetprune_config.json", "budgetprune_model.safetensors"


def save_pretrained(model: nn.Module, folder) -> None:
    """Writes budgetprune_config.json and, for trained methods, budgetprune_model.safetensors into `folder`.

    Each file is written aside and renamed, so a folder never holds half of one.
    """
    from safetensors.torch import save_file

    pruner, folder = model.budget_pruner, Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in pruner.weights().items()}
    if weights:
        replace_file(folder / WEIGHTS, lambda path: save_file(weights, path, {"format": "pt"}))
    pruners = [pruner] if pruner.inside is None else [pruner, pruner.inside]
    keep = [one.budget.keep if one.budget else None for one in pruners]
    config = {"method": "+".join(one.selector.name for one in pruners), "train_keep": pruner.train_keep,
              "options": pruner.selector.options(), "keep": keep[0], "positions": pruner.asked_positions,
              "seed": pruner.seed}
    if pruner.inside is not None:  # options may have the same names in both
        config |= {"options": [one.selector.options() for one in pruners], "keep": keep}
    replace_file(folder / CONFIG, lambda path: path.write_text(json.dumps(config, indent=2) + "\n"))


def from_pretrained(model: nn.Module, folder, *, keep=None) -> Pruning:
    """Prunes `model` as saved in `folder`; `keep` overrides the saved budget, where the method is not made for one.

    FileNotFoundError: no pruner in `folder`. ValueError: its configuration cannot be read, or its weights do not fit
    this model.
    """

    folder = Path(folder)
    config = read_config(folder)
    saved, method, options = config["keep"], config["method"], config["options"]
    fixed = find(method.split("+")[0]).fixed_count  # such weights fit their own count, and another one is named below
    if "+" in method:
        method, options = tuple(build(name, **own) for name, own in zip(method.split("+"), options)), {}
    pruning = prune(model, method, keep=keep if keep is not None and not fixed else saved,
                    train_keep=config["train_keep"] and tuple(config["train_keep"]), positions=config.get("positions"),
                    seed=config.get("seed", 0), **options)
    try:
        if fixed and keep is not None:
            pruning.set_keep(keep)
        load_weights(model, folder)
    except BaseException:
        pruning.remove()
        raise
    return pruning


def read_config(folder) -> dict:
    """What save_pretrained wrote in budgetprune_config.json, known to name methods that there are, and their options.

    FileNotFoundError: no such file. ValueError: it names the file, and what is wrong or missing there.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"no {CONFIG} in {folder}")
    try:
        config = json.loads(path.read_text())
        if not isinstance(config, dict):
            raise TypeError(f"it must hold an object, got {shown(config)}")
        if missing := [key for key in ("method", "options", "keep", "train_keep") if key not in config]:
            raise TypeError(f"it has no {', '.join(missing)}")
        method, options, train_keep = config["method"], config["options"], config["train_keep"]
        if not isinstance(method, str):
            raise TypeError(f"method must be a string, got {shown(method)}")
        names, each = method.split("+"), options if "+" in method else [options]
        if not isinstance(each, list) or len(each) != len(names) or not all(isinstance(own, dict) for own in each):
            raise TypeError(f"options must be an object for each of {', '.join(names)}, got {shown(options)}")
        for name, own in zip(names, each):
            build(name, **own)
        if train_keep is not None:
            count_range("train_keep", train_keep)
    except (TypeError, ValueError) as error:  # what json and a method say of broken files are ValueErrors, too
        raise ValueError(f"{path} is not what save_pretrained writes: {error}") from error
    return config


def load_weights(model: nn.Module, folder) -> None:
    """Reads the trained weights in `folder`, if the method has any, into an already pruned model.

    FileNotFoundError: the method is trained, but its weights are not there. ValueError: they do not fit this model.
    """
    from safetensors.torch import load_file

    path = Path(folder) / WEIGHTS
    if model.budget_pruner.selector.trainable:
        if not path.is_file():
            raise FileNotFoundError(f"no {WEIGHTS} in {folder}: {model.budget_pruner.selector.name} is trained")
        try:
            model.budget_pruner.load_weights(load_file(path))
        except RuntimeError as error:
            raise ValueError(f"the pruner in {folder} was trained for another model: {error}") from error


def load_adapter(model: nn.Module, folder) -> nn.Module:
    """The peft model of the LoRA and the modules that were trained beside the pruner in `folder`, around `model`, which
    is pruned with it; `model` itself where there are none. It changes layers of `model`.
    """
    if not (Path(folder) / "adapter_config.json").is_file():
        return model
    from peft import PeftModel

    return PeftModel.from_pretrained(model, folder).eval()


def replace_file(path: Path, write) -> None:
    """write(another path beside it), then rename: nobody ever sees half of the file."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")  # not mkstemp, whose files only their owner may read
    try:
        write(aside)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
