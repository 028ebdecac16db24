"""The command line: arguments in, calls out. No logic lives here; commands with many arguments have their own files."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .cli_compare import compare
from .cli_cost import cost
from .cli_eval import evaluate, report
from .cli_joint import joint, train_joint
from .cli_output import Out, Resume, console, evaluating, training
from .cli_plan import plan
from .cli_study import ablate, paper
from .cli_train import train, train_base

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False,
                  help="Token budgets for vision-language models: keep the image tokens that matter, and measure it.")


@app.command()
def demo(out: Out = Path("runs/demo"), steps: Annotated[int, typer.Option(help="Training steps of each pruner.")] = 300,
         samples: Annotated[int, typer.Option(help="Questions per cell.")] = 768, resume: Resume = True):
    """Train the pruners that learn, measure every method against the full model, write a report."""
    from dataclasses import replace

    from . import demo as the_demo
    from .training.task_pruner import train_task_pruner

    pruners = {method: out / "pruners" / method for method in the_demo.trained_methods()}
    for method, folder in pruners.items():
        config = replace(the_demo.TRAIN, method=method, steps=steps)
        with training(steps, method) as on_step:
            train_task_pruner(folder, config, resume=resume, tell=on_step)
    with evaluating() as on_cell:
        page = the_demo.measure(out, pruners, samples=samples, resume=resume, tell=on_cell)
    console.print(f"report: {page}")


for name, command in (("train-base", train_base), ("train", train), ("train-joint", train_joint), ("eval", evaluate),
                      ("compare", compare), ("report", report), ("cost", cost), ("plan", plan), ("joint", joint),
                      ("ablate", ablate), ("paper", paper)):
    app.command(name)(command)


@app.command("list")
def list_all():
    """The methods and tasks there are."""
    from . import catalog, tasks

    table = Table("method", "where", "in one line")
    for name in catalog.available():
        cls = catalog.find(name)
        where = "in the language model" if cls.place == "llm" else "before it"
        trained = ", trained for one count" if cls.fixed_count else ", trained" if cls.trainable else ""
        table.add_row(name, where + trained, (cls.__doc__ or "").strip().splitlines()[0])
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


# {command: its lists that may be written with spaces}; `cost` has a model's name behind its own, which is no number.
LISTS = {"eval": ("--budgets", "-k", "--methods", "-m", "--tasks", "--layers"), "ablate": ("--budgets", "-k"),
         "paper": ("--tasks", "--methods", "-m", "--settings"), "cost": ("--keep", "-k")}


def joined(arguments: list[str]) -> list[str]:
    """`eval --budgets 4 8 12` as `eval --budgets 4,8,12`: lists may be written with spaces as well as with commas."""
    out: list[str] = []
    for argument in arguments:
        open_list = len(out) > 2 and out[-2] in LISTS.get(out[0], ())
        if open_list and not argument.startswith("-") and (out[0] != "cost" or argument[:1].isdigit()):
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
        if wrong_usage is None and not isinstance(error, (ValueError, TypeError, OSError)):
            raise
        console.print(f"[red]error:[/] {escape(wrong_usage() if wrong_usage else str(error))}", highlight=False)
        raise SystemExit(2) from None
