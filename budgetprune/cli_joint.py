"""The commands `budgetprune joint` and `budgetprune train-joint`: image tokens and layers for one budget of FLOPs."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .cli_output import Base, Out, Resume, console, roofline_note, training
from .cli_train import DrawnTask


def joint(model: Annotated[str, typer.Argument(help="A known model, or a folder with config.json.")] = "llava-1.5-7b",
          flops: Annotated[float, typer.Option(help="Of one prefill: up to 2 a fraction of the full one, or an amount "
                                               "(all tokens, all layers: a little over 1, the latency "
                                               "token).")] = 0.5,
          prefix: Annotated[int | None, typer.Option(help="Layers that always run; default: half of them.")] = None,
          text: Annotated[int, typer.Option("--text", help="Text tokens of the prompt.")] = 64,
          least_keep: Annotated[int, typer.Option(help="Fewest image tokens.")] = 1,
          hardware: Annotated[str | None, typer.Option(help="Such as h100, or this: roofline milliseconds.")] = None):
    """How many image tokens and how many layers one budget of FLOPs pays for."""
    from .checked import number
    from .cost import joint_budget, joint_frontier, joint_roofline_ms, table
    from .cost.joint import POLICIES
    from .evaluation.shape import shape_of
    from .evaluation.this_machine import device_of

    on = None if hardware is None else device_of(hardware)
    shape = shape_of(model)
    budget = number("flops", flops, 0) if flops <= 2 else int(number("flops", flops))
    options = {"prefix": shape.decoder.layers // 2 if prefix is None else prefix, "least_keep": least_keep}
    policies = {policy: joint_budget(shape, budget, text, policy=policy, **options) for policy in POLICIES}
    times = ["roofline ms", "of full"] if on else []
    rows = Table("layers", "image tokens", "FLOPs", "of full", *times, "policy", title=f"{model}, {text} text tokens")
    if on:
        whole, = table(shape, [shape.tokens_per_crop], text, bytes_per_value=on.bytes_per_value, on=on)
    for pair in joint_frontier(shape, budget, text, **options):
        names = ", ".join(name for name, choice in policies.items() if choice == pair)
        times = []
        if on:
            bound = joint_roofline_ms(shape, pair.keep, pair.layers, text, on)
            times = [f"{bound:,.2f}", f"{bound / whole.prefill_roofline_ms:.1%}"]
        rows.add_row(f"{pair.layers} of {shape.decoder.layers}", str(pair.keep), f"{pair.flops:.4g}",
                     f"{pair.share:.1%}", *times, names)
    shown = Console()
    shown.print(rows)
    if on:
        shown.print(roofline_note(on), highlight=False)


def train_joint(out: Out = Path("runs/joint"), base: Base = None,
                method: Annotated[str, typer.Option("--method", "-m", help="Of tokens; none: all stay.")] = "adaptive",
                depth: Annotated[str, typer.Option(help="Of layers; none: all run.")] = "adallava",
                form: Annotated[str, typer.Option(help="Whole layers, or heads.")] = "layers",
                prefix: Annotated[int, typer.Option(help="Layers that always run.")] = 1,
                rank: Annotated[int, typer.Option(help="Heads of a unit, form heads.")] = 2,
                answer_from: Annotated[str, typer.Option(help="Whose state predicts the answer: the latency token's or "
                                                              "the prompt's, as a frozen model knows.")] = "latency",
                share_min: Annotated[float, typer.Option(help="Smallest budget drawn, of the full prefill.")] = 0.35,
                share_max: Annotated[float, typer.Option(help="Largest budget drawn.")] = 1.05,
                tune: Annotated[str, typer.Option(help="Of the model itself: frozen, lora or full.")] = "full",
                lora_rank: Annotated[int, typer.Option(help="Of tune lora.")] = 8,
                steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 300,
                batch_size: Annotated[int, typer.Option(help="Images per step.")] = 32,
                learning_rate: Annotated[float, typer.Option(help="Peak, of what decides.")] = 3e-3,
                model_learning_rate: Annotated[float, typer.Option(help="Peak, of the model's own weights.")] = 1e-3,
                seed: Annotated[int, typer.Option(help="Of weights, data, noise and budgets.")] = 0,
                task: DrawnTask = "digits", resume: Resume = True):
    """Train what spares image tokens and what spares layers together, for the small LLaVA of a task."""
    from .training.joint_config import JointConfig
    from .training.joint_task import train_task_joint

    spared = {"method": method, "depth": depth}
    spared = {name: None if value == "none" else value for name, value in spared.items()}
    options = {"form": form, "prefix": prefix, "answer_from": answer_from} | ({"rank": rank} if form == "heads" else {})
    config = JointConfig(**spared, options={"tau": 1.0} if spared["method"] else {},
                         depth_options=options if spared["depth"] else {}, share_min=share_min, share_max=share_max,
                         tune=tune, lora_rank=lora_rank, steps=steps, batch_size=batch_size,
                         learning_rate=learning_rate, model_learning_rate=model_learning_rate, seed=seed)
    with training(steps, " and ".join(value for value in spared.values() if value)) as on_step:
        train_task_joint(out, config, task=task, base=base, resume=resume, tell=on_step)
    console.print(f"tokens and layers: {out}")
