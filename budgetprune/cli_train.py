"""The commands `budgetprune train-base` and `budgetprune train`."""

import os
from contextlib import nullcontext
from inspect import signature
from pathlib import Path
from typing import Annotated

import typer

from .cli_output import Out, Resume, console, training, value

REAL, METHOD = "Conversations", "The method"
# What fits a model of 576 image tokens, where the digits' own would not.
REAL_DEFAULTS = {"k_min": 32, "k_max": 288, "k_per_sample": True, "batch_size": 128, "learning_rate": 1e-3}
# Flags that are options of the method; what a method does not have is not handed on by default.
FLAGS = ("estimator", "fusion", "conditioning", "token_position", "gate", "tau", "use_cls")


def real(help: str, *names: str):
    return typer.Option(*names, help=help, rich_help_panel=REAL)


def own(help: str, *names: str):
    return typer.Option(*names, help=help, rich_help_panel=METHOD)


DrawnTask = Annotated[str, typer.Option(help="One that draws its images, such as digits or shapes.")]


def train_base(out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: the user's cache.")] = None,
               vision_steps: Annotated[int | None, typer.Option(help="Steps of the vision tower alone.")] = None,
               steps: Annotated[int | None, typer.Option(help="Steps of the whole model.")] = None,
               seed: Annotated[int, typer.Option(help="Of weights and data.")] = 0, resume: Resume = True,
               task: DrawnTask = "digits"):
    """Make the tiny LLaVA of a task from nothing (digits: five minutes on two cores, shapes: a quarter of an hour)."""
    from .training import train_base as make

    given = {name: value for name, value in (("vision_steps", vision_steps), ("steps", steps)) if value is not None}
    console.print(f"written to {make(out, seed=seed, resume=resume, task=task, **given)}")


def train(ctx: typer.Context, out: Out = Path("runs/pruner"),
          model: Annotated[str | None, typer.Option(help="Folder of another small LLaVA, from train-base --out; with "
                                                    "--data a folder or a name on the hub.")] = None,
          method: Annotated[str, typer.Option("--method", "-m", help="A trained one.")] = "adaptive",
          k_min: Annotated[int, typer.Option(help="Smallest count drawn; with --data 32 unless given.")] = 2,
          k_max: Annotated[int, typer.Option(help="Largest count drawn; with --data 288 unless given.")] = 24,
          steps: Annotated[int, typer.Option(help="Optimiser steps; with --data one epoch unless given.")] = 300,
          batch_size: Annotated[int, typer.Option(help="Images per step, with --data over all processes, 128.")] = 64,
          learning_rate: Annotated[float, typer.Option(help="Peak, of the pruner; with --data 0.001.")] = 3e-3,
          k_sampling: Annotated[str, typer.Option(help="How counts are drawn: uniform, log_uniform or from a "
                                                       "list.")] = "uniform",
          k_counts: Annotated[list[int], typer.Option(help="A count of the list; repeatable.")] = (),
          k_per_sample: Annotated[bool, typer.Option(help="Each sample of a step draws its own count; with --data "
                                                          "unless told otherwise.")] = False,
          keep: Annotated[int | None, typer.Option(help="The one count of a method that is made for one.")] = None,
          estimator: Annotated[str, own("Gradient of the choice: race, fermi or softmax.")] = "race",
          fusion: Annotated[str, own("Budget joins behind the vision encoder, post, or as one more token inside it, "
                                     "encoder.")] = "post",
          conditioning: Annotated[str, own("Budget meets patches: add, concat, dot, cross or none.")] = "add",
          token_position: Annotated[str, own("Of the token inside the encoder: own, first or last.")] = "own",
          gate: Annotated[str, own("What training does with the choice: gates in attention or on features, or noise "
                                   "instead.")] = "attention",
          tau: Annotated[float, own("Temperature of the choice.")] = 1.0,
          use_cls: Annotated[bool, own("Put a projected CLS before the patches.")] = False,
          option: Annotated[list[str] | None, own("key=value of the method; repeatable.")] = None,
          noise: Annotated[float, typer.Option(help="Share of the steps that draw with noise, from the first.")] = 0.3,
          lora_rank: Annotated[int, typer.Option(help="LoRA rank on the language model; 0: it stays frozen.")] = 0,
          seed: Annotated[int, typer.Option(help="Of weights, data, noise and counts.")] = 0,
          save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 100,
          data: Annotated[str | None, real("LLaVA's JSON or JSONL, parquet, a folder of datasets, or "
                                                  "hub:owner/name[:config[:split]].")] = None,
          images: Annotated[str | None, real("Folder where the images' paths begin.")] = None,
          epochs: Annotated[float | None, real("Over the data, in place of --steps.")] = None,
          micro_batch: Annotated[int, real("Samples at a time in one process; the rest is accumulated.")] = 4,
          dtype: Annotated[str, real("Of the frozen weights: auto, bf16 or fp32.")] = "auto",
          checkpointing: Annotated[bool, real("Compute activations again rather than keep them.")] = True,
          train_projector: Annotated[bool, real("Train the projector, too, with all its weights.")] = False,
          model_learning_rate: Annotated[float, real("Of LoRA and projector.")] = 2e-4,
          max_length: Annotated[int, real("Tokens of a sample; the end is cut, never an image.")] = 2048,
          one_question: Annotated[bool | None, real("Each question by itself, or a conversation as a whole; default: "
                                                    "by itself where the method looks at the question.",
                                                    "--one-question/--whole")] = None,
          max_skipped: Annotated[float, real("Share of the samples that may be unreadable.")] = 0.05,
          workers: Annotated[int, real("Processes that read images, for each that trains.")] = 4,
          report_to: Annotated[str, real("none, tensorboard or wandb.")] = "none",
          fsdp: Annotated[bool, real("Divide the weights over the processes (FSDP2).")] = False,
          deepspeed: Annotated[str | None, real("A DeepSpeed configuration, a JSON file.")] = None,
          task: DrawnTask = "digits", resume: Resume = True):
    """Train a pruner, or a method that compresses, on the language-model loss alone: for the small LLaVA of a task, or
    with --data for any model."""
    from .catalog import find
    from .checked import integer
    from .training.config import TrainConfig
    from .training.task_pruner import train_task_pruner

    given = {name for name in ctx.params if ctx.get_parameter_source(name).name != "DEFAULT"}
    flags = {p.name: (ctx.params[p.name], p.default) for p in ctx.command.params if p.name in FLAGS}
    settings = {"method": method, "options": options_of(method, option or [], flags), "k_min": k_min, "k_max": k_max,
                "k_sampling": k_sampling, "k_counts": tuple(k_counts), "k_per_sample": k_per_sample, "steps": steps,
                "seed": seed, "batch_size": batch_size, "learning_rate": learning_rate, "noise": noise,
                "lora_rank": lora_rank, "save_every": save_every}
    if data is not None:
        settings |= {name: value for name, value in REAL_DEFAULTS.items() if name not in given}
    if keep is not None:
        if twice := sorted(given & {"k_min", "k_max", "k_counts", "k_sampling"}):
            raise ValueError(f"keep must come without {twice[0]}, got both")
        settings |= {"k_min": integer("keep", keep, 1), "k_max": keep}
    elif find(method).fixed_count and not given & {"k_min", "k_max"}:
        raise ValueError(f"keep must be given for {method}, whose weights are made for one count")
    if data is None:
        needless = sorted(given & {p.name for p in ctx.command.params if getattr(p, "rich_help_panel", None) == REAL})
        if needless:
            raise ValueError(f"{needless[0]} must come with data, got no --data")
        with training(steps, method) as on_step:
            train_task_pruner(out, TrainConfig(**settings), task=task, base=model, resume=resume, tell=on_step)
        console.print(f"pruner: {out}")
        return
    if "task" in given:
        raise ValueError("task must come without data, which are other questions")
    if model is None:
        raise ValueError("model must be given with data, got no --model")
    if {"steps", "epochs"} <= given:
        raise ValueError("steps and epochs both say how long: name one of them")
    from .evaluation.load import load_model
    from .training.run import train_on_conversations
    from .training.run_config import RunConfig

    config = RunConfig(
        model, data, images, TrainConfig(**settings), None if "steps" in given else 1.0 if epochs is None else epochs,
        micro_batch, dtype, checkpointing, train_projector, model_learning_rate, max_length, one_question, max_skipped,
        workers, report_to, fsdp, deepspeed)
    first = os.environ.get("RANK", "0") == "0"  # as launchers number processes: one of them talks
    with training(None, method) if first else nullcontext() as on_step:
        done = train_on_conversations(lambda kind: load_model(model, kind), config, out, resume=resume, tell=on_step)
    if first and done.skipped is not None:
        console.print(f"skipped: {done.skipped} samples that could not be read, beside {done.samples} trained on"
                      + (f"; {out / 'skipped.jsonl'} says why" if done.skipped else ""), highlight=False)
    if first:
        console.print(f"pruner: {out}")


def options_of(method: str, texts: list[str], common: dict[str, tuple]) -> dict:
    """The options of a method, of "key=value" with values as JSON has them, and of flags of their own.

    common: {option: (value, default)} of those flags; a method that has no such option does without the default, and
    refuses another value by itself. ValueError: another form, or an option twice; an unknown method.
    """
    from .catalog import find

    own = signature(find(method)).parameters
    found = {name: flag for name, (flag, default) in common.items() if name in own or flag != default}
    given = set()
    for text in texts:
        key, sign, word = text.partition("=")
        if not sign or not key:
            raise ValueError(f"option must be key=value with a key out of {', '.join(own)}, got {text!r}")
        if key in given:
            raise ValueError(f"option {key} must be given once, got it twice")
        given.add(key)
        found[key] = value(word)
    return found
