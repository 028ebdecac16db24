"""The commands `budgetprune eval`, methods x budgets x tasks in one process or in several, and `budgetprune report`."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .cli_output import Out, Resume, budget, console, evaluating, listed, whole

LMMS_OPTIONS = ("metric", "image", "include_path")


@dataclass
class Entry:
    """A task as the command line names it: `pope`, or `pope@random` where one is asked several times."""

    label: str
    name: str
    options: list[str] = field(default_factory=list)
    pruners: list[Path] = field(default_factory=list)


def entries(task: str | None, tasks: str | None, options: list[str], pruners: list[str]) -> list[Entry]:
    """What is asked, each with its own options and trained pruners.

    ValueError: both lists, an entry twice, or an option whose task is not asked or, of several, not said.
    """
    if task is not None and tasks is not None:
        raise ValueError(f"one of task and tasks must be given, got {task!r} and {tasks!r}")
    labels = [task or "digits"] if tasks is None else listed("tasks", tasks)
    if len(set(labels)) < len(labels):
        raise ValueError(f"tasks must differ: one that is asked twice gets a name such as pope@random, got {tasks!r}")
    found = [Entry(label, label.partition("@")[0]) for label in labels]
    said = []
    for text in options:
        key, sign, value = text.partition("=")
        place, _, name = key.rpartition(".")
        if not place and len(found) > 1:
            raise ValueError(f"task-option must be TASK.key=value where several tasks are asked, got {text!r}")
        _of(found, place or found[0].name, "task-option", text)
        said.append((place or found[0].name, name, f"{name}{sign}{value}"))
    for entry in found:  # what is said of pope@random goes before what is said of every pope
        own = [name for place, name, _ in said if place == entry.label]
        entry.options = [text for place, name, text in said
                         if place == entry.label or (place == entry.name and name not in own)]
    for text in pruners:
        place, sign, folder = text.partition("=")
        if not (folder if sign else text):
            raise ValueError(f"pruner must be FOLDER, TASK=FOLDER or LABEL=FOLDER, got {text!r}")
        known = sign and any(place in (entry.label, entry.name) for entry in found)
        for entry in _of(found, place, "pruner", text) if known else found:
            entry.pruners.append(Path(folder if known else text))
    return found


def _of(found, place, what, text):
    mine = [entry for entry in found if place in (entry.label, entry.name)]
    if not mine:
        raise ValueError(f"{what} must be of a task that is asked, {', '.join(e.label for e in found)}; got {text!r}")
    return mine


def evaluate(methods: Annotated[str, typer.Option("--methods", "-m", help="Names with commas, or all.")] = "all",
             budgets: Annotated[str | None, typer.Option("--budgets", "-k", help="Counts, fractions of the image's "
                                                         "tokens such as 0.25, or own: the method's.")] = None,
             out: Out = Path("runs/eval"),
             model: Annotated[str | None, typer.Option(help="Folder of a model, or its name on the hub; default: the "
                                                       "task's own small LLaVA.")] = None,
             pruner: Annotated[list[str] | None, typer.Option(help="Folder of a trained pruner, of train-joint too, "
                                                              "TASK=folder, or LABEL=folder where a method has "
                                                              "several; repeatable.")] = None,
             layers: Annotated[str | None, typer.Option(help="Counts that run, of pruners that spare layers; default: "
                                                        "up to five, from the prefix to all.")] = None,
             task: Annotated[str | None, typer.Option(help="What is asked; default: digits.")] = None,
             tasks: Annotated[str | None, typer.Option(help="Several, with commas: digits,pope@random,gqa.")] = None,
             task_option: Annotated[list[str] | None, typer.Option(help="key=value of the task, TASK.key=value of one "
                                                                   "of several; repeatable.")] = None,
             samples: Annotated[str, typer.Option(help="Questions per cell, or all.")] = "768",
             seed: Annotated[int, typer.Option(help="Of the questions.")] = 0,
             batch: Annotated[int | None, typer.Option(help="Prompts at a time; default: the task's.")] = None,
             new_tokens: Annotated[int | None, typer.Option(help="Longest answer; default: the task's.")] = None,
             latency_batch: Annotated[int, typer.Option(help="Prompts of the timed batch; 0: no timing.")] = 32,
             resume: Resume = True):
    """Measure methods at budgets: accuracy, FLOPs, milliseconds, memory; one JSON line per cell."""
    from .evaluation.processes import Processes, ProcessLost

    asked = [(_OfLmmsEval if entry.name.startswith("lmms:") else _Asked)(
        entry, methods, budgets, samples, layers, seed=seed, batch=batch, new_tokens=new_tokens,
        latency_batch=latency_batch) for entry in entries(task, tasks, task_option or [], pruner or [])]
    if layers is not None and not any(one.config.layers for one in asked):
        raise ValueError(f"layers must come with a pruner that spares layers, which `budgetprune train-joint` makes; "
                         f"got {layers!r} without one")
    if len(labels := [one.recorded for one in asked]) > len(set(labels)):
        raise ValueError(f"tasks must be different questions, got {', '.join(labels)}")
    try:
        processes = Processes.launched()
        _sweep(asked, model, out, resume, processes)
        processes.leave()
    except ProcessLost as lost:
        said = f"{lost}; the same command goes on from what is done"
        console.print(f"[red]error:[/] {escape(said)}", highlight=False)
        raise typer.Exit(1) from lost


class _Asked:
    """One task with what is measured on it. What is missing is said before a large model is loaded.

    kind: tasks of one kind are asked of the same loaded model.
    """

    kind: tuple = ()

    def __init__(self, entry: Entry, methods, budgets, samples, layers, **config):
        from . import catalog
        from .evaluation.config import EvalConfig, parts, rounds_of

        (trained, called), *others = rounds_of(entry.pruners)
        names = listed("methods", methods)
        if names == ["all"]:
            names = [n for n in catalog.available() if n in trained or not catalog.find(n).trainable]
            names += [n for n in trained if n not in names]
        counts_of_layers = () if layers is None else [whole("layers", n) for n in listed("layers", layers)]
        if not any(parts(n)[1] for n in names):  # another task may have one
            counts_of_layers = ()
        counts = self.usual(entry) if budgets is None else [budget(b) for b in listed("budgets", budgets)]
        self.name, self.label = entry.name, entry.label
        self.config = EvalConfig(names, counts, trained, labels=called, layers=counts_of_layers,
                                 samples=None if samples == "all" else whole("samples", samples), **config)
        self.rounds = [self.config]
        for pruners, labels in others:
            of_layers = counts_of_layers if any(parts(n)[1] for n in pruners) else ()
            self.rounds.append(replace(self.config, methods=list(pruners), pruners=pruners, labels=labels,
                                       layers=of_layers))
        self.recorded = self.made(entry)

    def usual(self, entry):
        """The budgets of a task where none are named."""
        from . import tasks

        return tasks.find(entry.name).budgets

    def made(self, entry) -> str:
        """What records call the task."""
        from . import tasks

        self.task = tasks.build(entry.name, **tasks.parse_options(entry.name, entry.options))
        if isinstance(self.task, tasks.drawn.Drawn):
            self.kind = (self.name,)  # its model knows its words only
        if self.task.size is not None:
            self.task.samples("test", self.config.samples or self.task.size, self.config.seed)
        return self.task.label

    def load(self, model, device, out):
        from .demo import model_for

        loaded, processor = model_for(self.name, model)
        return loaded.to(device), processor

    def run(self, loaded, out, config, **options):
        from .evaluation.run import evaluate

        return evaluate(*loaded, self.task, out, config, **options)


class _OfLmmsEval(_Asked):
    """A benchmark of lmms-eval, `lmms:pope`, or any other task of it with its option metric."""

    def usual(self, entry):
        from .tasks import Task

        return Task.budgets

    def made(self, entry):
        from .evaluation.lmms import benchmark
        from .integrations.lmms_run import require_lmms_eval

        found = {}
        for text in entry.options:
            key, sign, value = text.partition("=")
            if not sign or key not in LMMS_OPTIONS or key in found:
                raise ValueError(f"task-option of {entry.label} must be key=value, once each, with a key out of "
                                 f"{', '.join(LMMS_OPTIONS)}; got {text!r}")
            found[key] = value
        require_lmms_eval()
        self.include_path = found.pop("include_path", None)
        self.kind = "lmms-eval", self.include_path
        self.task = benchmark(entry.name.removeprefix("lmms:"), **found)
        return entry.label

    def load(self, model, device, out):
        from .integrations.lmms_run import LmmsEval

        if model is None:
            raise ValueError(f"model must be given for task {self.label}: a folder or a name on the hub")
        return LmmsEval(model, str(device), out, self.include_path, half=str(device) != "cpu")

    def run(self, loaded, out, config, **options):
        from .evaluation.lmms import evaluate_lmms

        return evaluate_lmms(loaded, self.recorded, self.task, out, config, **options)


def _sweep(asked, model, out, resume, processes):
    """One task after the other, all into one folder; a model that was named is loaded once for all of a kind."""
    from .demo import base_name, device

    loaded, kind, tables = None, None, []
    for number, one in enumerate(asked):
        if loaded is None or model is None or kind != one.kind:
            loaded = None  # before the next is there
            loaded, kind = one.load(model, processes.device(device()), out), one.kind
        with evaluating(one.label if len(asked) > 1 else "") as on_cell:
            name = Path(model).resolve().name if model else base_name(one.name)
            for config in one.rounds:  # each leaves the records of all so far
                records = one.run(loaded, out, config, model_name=name, tell=on_cell, processes=processes,
                                  resume=resume or number > 0 or config is not one.rounds[0])
        tables.append(table_of(records))
    if processes.main:
        for table in tables:
            Console().print(table)
        console.print(f"records: {out / 'records.jsonl'}")


def table_of(records) -> Table:
    """The cells of one task, each with its own figures behind the accuracy."""
    first = records[0]
    metrics = list(dict.fromkeys(name for r in records for name in r.metrics or {}))
    spared = any(r.layers is not None for r in records)
    table = Table("method", "kept", *(["layers"] if spared else []), "accuracy", "95 % interval", *metrics,
                  "GFLOPs", "prefill ms", title=f"{first.task}, {first.model}, {first.samples} questions")
    for r in records:
        options = {k: v for k, v in r.method_options.items() if k in ("count", "fraction")}
        shown = "".join(f" ({'own' if k == 'count' else v})" for k, v in options.items())
        layers = ["all" if r.layers is None else str(r.layers)] if spared else []
        table.add_row(r.named, f"{r.keep}{shown}", *layers, f"{r.accuracy:.4f}", "{:.4f} to {:.4f}".format(*r.ci95),
                      *(_figure((r.metrics or {}).get(name), 1) for name in metrics),
                      _figure(r.prefill_flops, 1e9, 3), _figure(r.prefill_ms, 1, 2))
    return table


def _figure(value, unit, digits=4):
    return "" if value is None else f"{value / unit:,.{digits}f}"


def report(run: Annotated[Path, typer.Argument(help="Folder with records.jsonl.")] = Path("runs/demo"),
           out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: report.html in the folder.")] = None,
           model: Annotated[str | None, typer.Option(help="Of the records, for rooflines: a known model, or a folder "
                                                     "with config.json; default: by its name.")] = None,
           hardware: Annotated[str | None, typer.Option(help="That they were timed on, for rooflines: such as h100, or "
                                                        "this; default: by its name.")] = None):
    """Make one self-contained HTML page of a run's records."""
    from .evaluation import write_report
    from .evaluation.shape import shape_of
    from .evaluation.this_machine import device_of

    shape, on = None if model is None else shape_of(model), None if hardware is None else device_of(hardware)
    console.print(f"report: {write_report(run, out, shape=shape, on=on)}")
