"""The commands `budgetprune train-base` and `budgetprune train`."""

import json
from inspect import signature
from pathlib import Path
from typing import Annotated

import typer

from .cli_output import Base, Out, Resume, console, training

DrawnTask = Annotated[str, typer.Option(help="One that draws its images, such as digits or shapes.")]


def train_base(out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: the user's cache.")] = None,
               vision_steps: Annotated[int | None, typer.Option(help="Steps of the vision tower alone.")] = None,
               steps: Annotated[int | None, typer.Option(help="Steps of the whole model.")] = None,
               seed: Annotated[int, typer.Option(help="Of weights and data.")] = 0, resume: Resume = True,
               task: DrawnTask = "digits"):
    """Make the tiny LLaVA of a task from nothing (about ten minutes on two cores)."""
    from .training import train_base as make

    given = {name: value for name, value in (("vision_steps", vision_steps), ("steps", steps)) if value is not None}
    console.print(f"written to {make(out, seed=seed, resume=resume, task=task, **given)}")


def train(out: Out = Path("runs/pruner"), base: Base = None,
          method: Annotated[str, typer.Option("--method", "-m", help="A trained one.")] = "adaptive",
          keep: Annotated[int | None, typer.Option(help="The one count of a method that is made for one.")] = None,
          k_min: Annotated[int, typer.Option(help="Smallest count drawn in training.")] = 2,
          k_max: Annotated[int, typer.Option(help="Largest count drawn in training.")] = 24,
          steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 300,
          batch_size: Annotated[int, typer.Option(help="Images per step.")] = 64,
          learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 3e-3,
          estimator: Annotated[str, typer.Option(help="Gradient of the choice: race, fermi or softmax.")] = "race",
          fusion: Annotated[str, typer.Option(help="Budget joins behind the vision encoder, post, or as one more token "
                                                   "inside it, encoder.")] = "post",
          conditioning: Annotated[str, typer.Option(help="Budget meets patches: add, concat, dot, cross or "
                                                         "none.")] = "add",
          token_position: Annotated[str, typer.Option(help="Of the token inside the encoder: own, first or "
                                                           "last.")] = "own",
          tau: Annotated[float, typer.Option(help="Temperature of the choice.")] = 1.0,
          noise: Annotated[float, typer.Option(help="Share of the steps that draw with noise, from the first.")] = 0.3,
          use_cls: Annotated[bool, typer.Option(help="Put a projected CLS before the patches.")] = False,
          lora_rank: Annotated[int, typer.Option(help="LoRA rank on the language model; 0: it stays frozen.")] = 0,
          option: Annotated[list[str] | None, typer.Option(help="key=value of the method; repeatable.")] = None,
          seed: Annotated[int, typer.Option(help="Of weights, data, noise and counts.")] = 0, resume: Resume = True,
          task: DrawnTask = "digits"):
    """Train a pruner, or a method that compresses, for the small LLaVA of a task on the language-model loss alone."""
    from .demo import train_task_pruner
    from .training.config import TrainConfig

    options = options_of(method, option or [], {
        "estimator": (estimator, "race"), "fusion": (fusion, "post"), "conditioning": (conditioning, "add"),
        "tau": (tau, 1.0), "use_cls": (use_cls, False), "token_position": (token_position, "own")})
    if keep is not None:
        k_min = k_max = keep
    config = TrainConfig(method=method, options=options, k_min=k_min, k_max=k_max, steps=steps, batch_size=batch_size,
                         learning_rate=learning_rate, noise=noise, lora_rank=lora_rank, seed=seed)
    with training(steps, method) as on_step:
        train_task_pruner(out, config, task=task, base=base, resume=resume, tell=on_step)
    console.print(f"pruner: {out}")


def options_of(method: str, texts: list[str], common: dict[str, tuple]) -> dict:
    """The options of a method, of "key=value" with values as JSON has them, and of flags of their own.

    common: {option: (value, default)} of those flags; a method that has no such option does without the default, and
    refuses another value by itself. ValueError: another form, or an option twice; an unknown method.
    """
    from .catalog import find

    own = signature(find(method)).parameters
    found = {name: value for name, (value, default) in common.items() if name in own or value != default}
    given = set()
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise ValueError(f"option must be key=value with a key out of {', '.join(own)}, got {text!r}")
        if key in given:
            raise ValueError(f"option {key} must be given once, got it twice")
        given.add(key)
        found[key] = _value(value)
    return found


def _value(text: str):
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text  # a word needs no quotes
