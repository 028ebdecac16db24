"""The commands `budgetprune eval` and `budgetprune report`."""

from pathlib import Path
from typing import Annotated

import typer

from .cli_output import Out, Resume, budget, console, evaluating, listed, whole

BUDGETS = {"digits": "4,8,12,16,24,32,64"}
OTHER_BUDGETS = "64,128,192"


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


def report(run: Annotated[Path, typer.Argument(help="Folder with records.jsonl.")] = Path("runs/demo"),
           out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: report.html in the folder.")] = None):
    """Make one self-contained HTML page of a run's records."""
    from .evaluation import write_report

    console.print(f"report: {write_report(run, out)}")
