"""Weights of the model itself that a training run wrote beside a pruner: read, laid over a model, taken off again."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checked import integer, one_of

RUN, LOG, TUNED = "train_config.json", "train_log.jsonl", "tuned_model.safetensors"
TUNES = ("frozen", "lora", "full")
LORA_TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj)"


def inject_lora(model: nn.Module, rank: int) -> None:
    """Puts LoRA on the language model's attention. What hooks or replaces layers has to come after it."""
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LORA_TARGETS), model)


def fitting(model: nn.Module, path: Path) -> dict[str, Tensor]:
    """The weights in a file, each of the name and shape of one of the model's. ValueError: it is of another model."""
    from safetensors.torch import load_file

    weights, own = load_file(path), dict(model.named_parameters())
    wrong = [name for name, value in weights.items() if name not in own or own[name].shape != value.shape]
    if wrong:
        raise ValueError(f"{path} is of another model: {wrong[0]} does not fit")
    return weights


def tune_of(folder) -> tuple[str, int]:
    """(what of the model a run in `folder` tuned, rank of its LoRA); ("frozen", 0) where it tuned nothing.

    FileNotFoundError: the run has not finished, or its weights are gone. ValueError: its configuration cannot be read.
    """
    folder = Path(folder)
    path, weights = folder / RUN, folder / TUNED
    if not path.is_file():
        if weights.is_file():
            raise FileNotFoundError(f"no {RUN} in {folder}, which says how {TUNED} was tuned")
        return "frozen", 0
    try:
        config = json.loads(path.read_text())
        if not isinstance(config, dict):
            raise TypeError("it must hold an object")
        if "tune" not in config:  # of a run that trains a pruner alone
            return "frozen", 0
        tune, rank = one_of("tune", config["tune"], TUNES), integer("lora_rank", config["lora_rank"], 1)
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is not of a run that spares tokens and layers: {error}") from error
    if not (folder / LOG).is_file():
        raise FileNotFoundError(f"no finished run of tokens and layers in {folder}: the command that began it goes on")
    if tune != "frozen" and not weights.is_file():
        raise FileNotFoundError(f"no {TUNED} in {folder}, whose run tuned the model too")
    return tune, rank


@contextmanager
def tuned(model: nn.Module, folder) -> Iterator[None]:
    """Within, the model has the weights or the LoRA that a run left in `folder`; afterwards it is what it was, bit for
    bit. Its own weights are set aside in main memory meanwhile, not beside the others on a GPU.

    ValueError: the weights are of another model, or it carries adapters already.
    """
    tune, rank = tune_of(folder)
    if tune == "frozen":
        yield
        return
    if tune == "full":
        with replaced(model, fitting(model, Path(folder) / TUNED)):
            yield
        return
    if hasattr(model, "peft_config"):
        raise ValueError(f"model must be without adapters for the LoRA in {folder}, got one with {model.peft_config}")
    learnt = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        with torch.random.fork_rng(devices=[]):  # the first weights are drawn, and then replaced
            inject_lora(model, rank)
        with torch.no_grad():
            own = dict(model.named_parameters())
            for name, value in fitting(model, Path(folder) / TUNED).items():
                own[name].copy_(value)
        yield
    finally:
        eject_lora(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(learnt[name])


@contextmanager
def replaced(model: nn.Module, weights: dict[str, Tensor]) -> Iterator[None]:
    """Within, these of the model's parameters have other values."""
    own, aside = dict(model.named_parameters()), {}
    try:
        for name, value in weights.items():
            parameter = own[name]
            aside[name] = parameter.data.cpu(), parameter.device
            parameter.data = value.to(parameter)
        yield
    finally:
        for name, (value, device) in aside.items():
            own[name].data = value.to(device)


def eject_lora(model: nn.Module) -> None:
    """Puts the layers back that inject_lora wrapped; nothing is merged into them."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BaseTunerLayer):
                setattr(parent, name, child.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
