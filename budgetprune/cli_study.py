"""The commands `budgetprune ablate` and `budgetprune paper`: what the settings of training are worth, over seeds."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .cli_output import console, listed, progress, value, whole


def varied(entries: list[str], option: str = "vary") -> dict[str, list]:
    """{name: values} of entries name=value,value; values are JSON where they can be read so, such as [4,8], else words.

    ValueError: an entry that is none, or a name that comes twice.
    """
    found: dict[str, list] = {}
    for entry in entries:
        name, equals, text = entry.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name or name in found:
            raise ValueError(f"{option} must be name=value,value, once for each name, got {entry!r}")
        found[name] = [value(word) for word in listed(f"{option} {name}", text)]
    return found


def ablate(vary: Annotated[list[str], typer.Option(help="name=value,value of a setting of training, or k=8,[4,16]: one "
                                                    "count, or one out of a list; repeatable.")],
           method: Annotated[str, typer.Option("--method", "-m", help="A trained one.")] = "adaptive",
           base: Annotated[list[str] | None, typer.Option("--set", help="name=value for all; repeatable.")] = None,
           seeds: Annotated[int, typer.Option(help="Trainings of each setting.")] = 5,
           steps: Annotated[int, typer.Option(help="Optimiser steps of each.")] = 150,
           budgets: Annotated[str, typer.Option("--budgets", "-k", help="Counts, with commas.")] = "4,8,12",
           samples: Annotated[int, typer.Option(help="Questions per cell.")] = 768,
           task: Annotated[str, typer.Option(help="One with a model of its own.")] = "digits",
           workers: Annotated[int | None, typer.Option(help="Trainings at a time; default: one per core.")] = None,
           out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("runs/ablate")):
    """Train a pruner under several settings, one changed at a time, with several seeds each; compare them."""
    from .study import differences, one_at_a_time, run_trials, summarise, trials_of
    from .study.trials import with_setting
    from .training.config import TrainConfig

    fixed = {name: _one(name, values) for name, values in varied(base or [], "set").items()}
    config = with_setting(TrainConfig(steps=steps), {"method": method, **fixed})
    counts = [whole("budgets", k) for k in listed("budgets", budgets)]
    trials = trials_of(one_at_a_time(varied(vary)), config, seeds, counts, samples=samples, task=task)
    with progress("trials", len(trials)) as tell:
        run_trials(trials, out, workers=workers, tell=lambda done, total, note: tell(done, note, total))
    cells, apart = summarise(trials, out), differences(trials, out, "baseline")
    off = {(cell.variant, cell.keep): cell for cell in apart}
    table = Table("setting", "K", "accuracy", "to baseline, paired by seed", "patches that matter kept",
                  title=f"{task}, {method}, {steps} steps, {seeds} seeds; mean ± 95 % interval over seeds")
    for cell in cells:
        table.add_row(escape(cell.variant), str(cell.keep), _around(cell, ".3f"),
                      _around(off.get((cell.variant, cell.keep)), "+.3f"),
                      "" if cell.recall is None else f"{cell.recall:.3f}")
    Console().print(table)
    console.print(f"trials: {out}")


def paper(out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("runs/paper-small"),
          tasks: Annotated[str | None, typer.Option(help="Where all methods are compared; default: all with a model "
                                                    "of their own.")] = None,
          methods: Annotated[str | None, typer.Option("--methods", "-m", help="Which; default: all.")] = None,
          settings: Annotated[str | None, typer.Option(help="Ablations, with baseline; default: all.")] = None,
          seeds: Annotated[int, typer.Option(help="Trainings of each setting.")] = 5,
          steps: Annotated[int, typer.Option(help="Optimiser steps of the ablations; two or three times as many "
                                                  "elsewhere.")] = 150,
          samples: Annotated[int, typer.Option(help="Questions per cell.")] = 768,
          workers: Annotated[int | None, typer.Option(help="Trainings at a time; default: one per core; 0: in this "
                                                      "process.")] = None):
    """The whole experiment in small: ablations over seeds, the question's worth, all methods on every small task."""
    from .demo import small_tasks
    from .study.paper import ABLATIONS, run_paper

    with progress("paper") as tell:
        def on_part(part, done, total, note):
            tell(done, f"{part} {note}".rstrip(), total)

        page = run_paper(out, tasks=listed("tasks", tasks) if tasks else small_tasks(),
                         methods=listed("methods", methods) if methods else None,
                         settings=listed("settings", settings) if settings else tuple(ABLATIONS), seeds=seeds,
                         steps=steps, samples=samples, workers=workers, tell=on_part)
    minutes = json.loads(page.read_text())["seconds"] / 60
    console.print(f"results: {page}, after {minutes:.1f} minutes of work, interruptions left out", highlight=False)


def _one(name: str, values: list):
    if len(values) > 1:
        raise ValueError(f"set {name} must be one value for all settings, got {len(values)}; a list has brackets")
    return values[0]


def _around(cell, form: str) -> str:
    if cell is None:
        return ""
    return f"{cell.value:{form}}" + ("" if cell.half is None else f" ± {cell.half:.3f}")
