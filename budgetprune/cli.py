"""The command line: arguments in, calls out. No logic lives here."""

import logging
import os
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from .cli_cost import cost
from .cli_lists import listed, whole
from .cli_plan import plan

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False,
                  help="Token budgets for vision-language models: keep the image tokens that matter, and measure it.")
console = Console(stderr=True)

Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")]
Base = Annotated[Path | None, typer.Option("--model", help="Folder of another digits LLaVA, from train-base --out.")]
BUDGETS = {"digits": "4,8,12,16,24,32,64"}
OTHER_BUDGETS = "64,128,192"
Resume = Annotated[bool, typer.Option(help="Go on with what an earlier run left in the folder.")]


@contextmanager
def progress(what: str, total: int | None = None):
    """A bar on a terminal, a line now and then elsewhere; yields tell(done, text)."""
    if console.is_terminal:
        count = TextColumn("{task.completed}/{task.total} {task.fields[note]}")
        columns = (TextColumn("{task.description}"), BarColumn(), count, TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(what, total=total, note="")

            def tell(done, note="", total=total):
                bar.update(task, completed=done, total=total, note=note)

            yield tell
        return
    seen = [-1]

    def tell(done, note="", total=total):
        part = done * 10 // total if total else done
        if part != seen[0]:
            seen[0] = part
            console.print(f"{what}: {done}/{total} {note}".rstrip(), highlight=False)

    yield tell


def budget(text: str) -> int | float | None:
    """A count, a fraction of the image's tokens, or None for the method's own count."""
    if text == "own":
        return None
    if re.fullmatch(r"[01]?\.[0-9]+", text):
        return float(text)
    if not text.isdecimal():
        raise ValueError(f"budgets must hold whole numbers, fractions such as 0.25, or own; got {text!r}")
    return int(text)


def _loss(values: dict) -> str:
    return f"loss {float(values['loss']):.3f}" if "loss" in values else ""


@contextmanager
def training(steps: int, method: str):
    with progress(f"training {method}", steps) as tell:
        last = [""]

        def report(step, values):
            last[0] = _loss(values) or last[0]
            tell(step, last[0])

        yield report


@contextmanager
def evaluating():
    with progress("evaluating") as tell:
        yield lambda cell, done, total: tell(done, cell, total)


@app.command()
def demo(out: Out = Path("runs/demo"), steps: Annotated[int, typer.Option(help="Training steps of each pruner.")] = 300,
         samples: Annotated[int, typer.Option(help="Questions per cell.")] = 768, resume: Resume = True):
    """Train the pruners that learn, measure every method against the full model, write a report."""
    from dataclasses import replace

    from . import demo as the_demo

    pruners = {method: out / "pruners" / method for method in the_demo.trained_methods()}
    for method, folder in pruners.items():
        config = replace(the_demo.TRAIN, method=method, steps=steps)
        with training(steps, method) as on_step:
            the_demo.train_digits_pruner(folder, config, resume=resume, tell=on_step)
    with evaluating() as on_cell:
        page = the_demo.measure(out, pruners, samples=samples, resume=resume, tell=on_cell)
    console.print(f"report: {page}")


@app.command("train-base")
def train_base(out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: the user's cache.")] = None,
               vision_steps: Annotated[int | None, typer.Option(help="Steps of the vision tower alone.")] = None,
               steps: Annotated[int | None, typer.Option(help="Steps of the whole model.")] = None,
               seed: Annotated[int, typer.Option(help="Of weights and data.")] = 0, resume: Resume = True):
    """Make the tiny LLaVA of the digits task from nothing (about ten minutes on two cores)."""
    from .training import train_base as make

    given = {name: value for name, value in (("vision_steps", vision_steps), ("steps", steps)) if value is not None}
    console.print(f"written to {make(out, seed=seed, resume=resume, **given)}")


@app.command()
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


@app.command("eval")
def evaluate(methods: Annotated[str, typer.Option("--methods", "-m", help="Names with commas, or all.")] = "all",
             budgets: Annotated[str | None, typer.Option("--budgets", "-k", help="Counts, fractions of the image's "
                                                         "tokens such as 0.25, or own: the method's.")] = None,
             out: Out = Path("runs/eval"),
             model: Annotated[str | None, typer.Option(help="Folder of a model, or its name on the hub; default: the "
                                                       "small LLaVA of the digits.")] = None,
             pruner: Annotated[list[Path] | None, typer.Option(help="Folder of a trained pruner; repeatable.")] = None,
             task: Annotated[str, typer.Option(help="What is asked.")] = "digits",
             task_option: Annotated[list[str] | None, typer.Option(help="key=value of the task; repeatable.")] = None,
             samples: Annotated[str, typer.Option(help="Questions per cell, or all.")] = "768",
             seed: Annotated[int, typer.Option(help="Of the questions.")] = 0,
             batch: Annotated[int | None, typer.Option(help="Prompts at a time; default: the task's.")] = None,
             new_tokens: Annotated[int | None, typer.Option(help="Longest answer; default: the task's.")] = None,
             latency_batch: Annotated[int, typer.Option(help="Prompts of the timed batch; 0: no timing.")] = 32,
             resume: Resume = True):
    """Measure methods at budgets: accuracy, FLOPs, milliseconds, memory; one JSON line per cell."""
    from . import selectors, tasks
    from .demo import device, model_for
    from .evaluation.run import EvalConfig, pruners_in
    from .evaluation.run import evaluate as run

    trained = pruners_in(pruner or [])
    names = listed("methods", methods)
    if names == ["all"]:
        names = [n for n in selectors.available() if n in trained or not selectors.base.find(n).trainable]
    counts = [budget(b) for b in listed("budgets", BUDGETS.get(task, OTHER_BUDGETS) if budgets is None else budgets)]
    config = EvalConfig(names, counts, trained, samples=None if samples == "all" else whole("samples", samples),
                        seed=seed, batch=batch, new_tokens=new_tokens, latency_batch=latency_batch)
    asked = tasks.build(task, **tasks.parse_options(task, task_option or []))
    if asked.size is not None:  # what is missing is said before a large model is loaded
        asked.samples("test", config.samples or asked.size, seed)
    loaded, processor = model_for(task, model)
    with evaluating() as on_cell:
        name = Path(model).resolve().name if model else "digits-llava"
        run(loaded.to(device()), processor, asked, out, config, model_name=name, resume=resume, tell=on_cell)
    console.print(f"records: {out / 'records.jsonl'}")


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Folder with records.jsonl.")] = Path("runs/demo"),
           out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: report.html in the folder.")] = None):
    """Make one self-contained HTML page of a run's records."""
    from .evaluation import write_report

    console.print(f"report: {write_report(run, out)}")


app.command()(cost)
app.command()(plan)


@app.command("list")
def list_all():
    """The methods and tasks there are."""
    from . import selectors, tasks

    table = Table("method", "where", "in one line")
    for name in selectors.available():
        cls = selectors.base.find(name)
        where = "in the language model" if cls.place == "llm" else "before it"
        table.add_row(name, where + (", trained" if cls.trainable else ""), (cls.__doc__ or "").strip().splitlines()[0])
    Console().print(table)
    Console().print("tasks: " + ", ".join(tasks.available()))


@app.command()
def doctor():
    """What is active on this machine, why, and what to do about what is not."""
    from .doctor import examine

    table = Table(show_header=False, box=None)
    for finding in examine():
        sign = "[green]ok[/]" if finding.well else "[yellow]--[/]"
        table.add_row(sign, finding.what, finding.found + (f"\n[bold]{finding.advice}[/]" if finding.advice else ""))
    Console().print(table)


def joined(arguments: list[str]) -> list[str]:
    """`eval --budgets 4 8 12` as `eval --budgets 4,8,12`: lists may be written with spaces as well as with commas."""
    out: list[str] = []
    for argument in arguments:
        open_list = out[:1] == ["eval"] and len(out) > 2 and out[-2] in ("--budgets", "-k", "--methods", "-m")
        if open_list and not argument.startswith("-"):
            out[-1] += f",{argument}"
        else:
            out.append(argument)
    return out


def main() -> None:
    """Runs the command line: errors in arguments are one line, Ctrl-C keeps what is done."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler, which counts the bytes, talks while it starts
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("httpx", "transformers", "accelerate", "budgetprune.models.notice"):  # our tables say it
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        code = app(joined(sys.argv[1:]), standalone_mode=False)
        if code == 130:  # what typer makes of Ctrl-C
            console.print("stopped; the same command goes on from here")
        raise SystemExit(code or 0)
    except Exception as error:
        wrong_usage = getattr(error, "format_message", None)  # how typer says that the arguments do not fit
        if wrong_usage is None and not isinstance(error, (ValueError, TypeError, FileNotFoundError)):
            raise
        console.print(f"[red]error:[/] {escape(wrong_usage() if wrong_usage else str(error))}", highlight=False)
        raise SystemExit(2) from None
