"""The commands `budgetprune train-base` and `budgetprune train`."""

from pathlib import Path
from typing import Annotated

import typer

from .cli_output import Base, Out, Resume, console, training


def train_base(out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: the user's cache.")] = None,
               vision_steps: Annotated[int | None, typer.Option(help="Steps of the vision tower alone.")] = None,
               steps: Annotated[int | None, typer.Option(help="Steps of the whole model.")] = None,
               seed: Annotated[int, typer.Option(help="Of weights and data.")] = 0, resume: Resume = True):
    """Make the tiny LLaVA of the digits task from nothing (about ten minutes on two cores)."""
    from .training import train_base as make

    given = {name: value for name, value in (("vision_steps", vision_steps), ("steps", steps)) if value is not None}
    console.print(f"written to {make(out, seed=seed, resume=resume, **given)}")


def train(out: Out = Path("runs/pruner"), base: Base = None,
          method: Annotated[str, typer.Option("--method", "-m", help="A trained one.")] = "adaptive",
          k_min: Annotated[int, typer.Option(help="Smallest count drawn in training.")] = 2,
          k_max: Annotated[int, typer.Option(help="Largest count drawn in training.")] = 24,
          steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 300,
          batch_size: Annotated[int, typer.Option(help="Images per step.")] = 64,
          learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 3e-3,
          estimator: Annotated[str, typer.Option(help="Gradient of the choice: race, fermi or softmax.")] = "race",
          fusion: Annotated[str, typer.Option(help="Budget meets patches: add, concat, cross or none.")] = "add",
          tau: Annotated[float, typer.Option(help="Temperature of the choice.")] = 1.0,
          noise: Annotated[float, typer.Option(help="Share of the steps that draw with noise, from the first.")] = 0.3,
          use_cls: Annotated[bool, typer.Option(help="Put a projected CLS before the patches.")] = False,
          lora_rank: Annotated[int, typer.Option(help="LoRA rank on the language model; 0: it stays frozen.")] = 0,
          seed: Annotated[int, typer.Option(help="Of weights, data, noise and counts.")] = 0, resume: Resume = True):
    """Train a pruner for the digits LLaVA on the language-model loss alone."""
    from .demo import train_digits_pruner
    from .training.config import TrainConfig

    options = {"estimator": estimator, "fusion": fusion, "tau": tau, "use_cls": use_cls}
    config = TrainConfig(method=method, options=options, k_min=k_min, k_max=k_max, steps=steps, batch_size=batch_size,
                         learning_rate=learning_rate, noise=noise, lora_rank=lora_rank, seed=seed)
    with training(steps, method) as on_step:
        train_digits_pruner(out, config, base=base, resume=resume, tell=on_step)
    console.print(f"pruner: {out}")
