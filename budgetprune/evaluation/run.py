"""Task x method x budget, each cell one record. A run that was cut off goes on where it stopped."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..models import from_pretrained, prune
from ..models.adapter import load_adapter
from ..models.base import Family, family_of
from ..models.spared import parts, read_spared
from ..tasks import Task
from . import answers, pictures, record
from .config import EvalConfig, kind, pruners_in
from .costs import cost_of
from .interval import interval
from .processes import Processes
from .prompts import Prompts, prepare, prompt
from .record import Record
from .summary import FULL


@dataclass(frozen=True)
class Heard:
    """What one sample gave in a cell.

    tokens: image tokens of its prompt. count: those that the language model got. kept: which, where methods choose
    among them. grid: (rows, columns) of them where they form one. length: all tokens of the prompt. crops: how often
    the tower saw the image, None where that follows from its tokens.
    """

    answer: str
    kept: list[int]
    count: int
    tokens: int
    length: int
    grid: tuple[int, int] | None
    crops: int | None = None


def evaluate(model: nn.Module, processor, task: Task, out, config: EvalConfig, *, model_name: str,
             resume: bool = True, tell: Callable[[str, int, int], None] | None = None,
             processes: Processes | None = None) -> list[Record]:
    """Runs every cell that out/records.jsonl does not hold yet, and returns the records of all.

    Answers are generated as text and scored by the task; each is a line of out/answers.jsonl. resume: False begins
    anew; what the folder held is kept beside it as *.old. tell: called with (cell, done, total) in the main process.
    processes: of the run, all of which call this; None: this one alone. Every one asks its share of a cell's batches
    (not of the cells, which are few and of unequal length) and the main one measures time and memory, while the others
    wait, and writes: the files are those of one process.

    TypeError: the model is of no family. ValueError: a budget is beyond the model's image tokens, a folder holds
    another method, or `samples` asks for all of a task that has no end.
    """
    out, processes = Path(out), processes or Processes()
    family = family_of(model)
    _, tokens, grid = family.features(model)
    cells = cells_of(config, tokens, model)
    if config.samples is None and task.size is None:
        raise ValueError(f"samples must be a count for task {task.name}, which has no end")
    samples = task.samples("test", task.size if config.samples is None else config.samples, config.seed)
    prompts = Prompts(processor, samples, model, config.batch or task.batch, (processes.rank, processes.count))
    before = processes.share(begin, out, resume)
    done = {cell_of(r): r for r in before
            if (r.task, r.model, r.samples, r.seed) == (task.label, model_name, len(samples), config.seed)}
    model.eval()
    for cell in missing(cells, done, tell if processes.main else None):
        with entered(model, cell, config) as (active, pruning):
            shares = processes.gather(_asked, active, processor, prompts, pruning, family,
                                      config.new_tokens or task.new_tokens)
            heard = [one for batch in in_turn(shares or []) for one in batch]
            costs = processes.share(cost_of, model, family, active, pruning, heard, prompts, config, tokens,
                                    cell.layers)
        named = {"task": task.label, "model": model_name, "method": cell.method, "samples": len(samples),
                 "layers": cell.layers, "seed": config.seed,
                 "method_options": cell.options | budget_options(cell.method, cell.keep),
                 **costs, **record.environment(model.device)}
        done[cell.key] = processes.share(_written, out, task, samples, heard, cell.keep, grid, named, config.images,
                                         tokens is not None and pictures.crops(processor))
    return list(done.values())


@dataclass(frozen=True)
class Cell:
    """A method at a budget. name: as progress shows it. layers: how many run, None: nothing spares them. key: what
    `cell_of` calls its record."""

    name: str
    method: str
    keep: int | float | None
    layers: int | None
    options: dict
    key: tuple


def cells_of(config: EvalConfig, tokens: int | None, model: nn.Module) -> list[Cell]:
    """ValueError: a budget beyond the image's N `tokens` or the model's layers, or no trained pruner."""
    found, options_of = [], {method: config.options_of(method) for method in config.methods}
    counts = {method: read_spared(folder).layers(model, config.layers) for method, folder in config.pruners.items()}
    for method, keep in config.cells(tokens):
        budget = "all" if parts(method)[0] == FULL else "own" if keep is None else keep
        options, name = options_of[method], f"{method} {in_words(budget, tokens)}"
        for n in counts.get(method, [None]):
            found.append(Cell(name if n is None else f"{name}, {record.in_layers(n)}", method, keep, n, options,
                              _key(method, budget, options, n)))
    return found


def _key(method, budget, options, layers):
    key = method, budget, json.dumps(options, sort_keys=True)
    return key if layers is None else (*key, layers)


def missing(cells: Sequence[Cell], done: Mapping, tell: Callable[[str, int, int], None] | None) -> Iterator[Cell]:
    """One cell after the other that is not in `done` by then. tell: called with (cell, done, total)."""
    for number, cell in enumerate(cells):
        if tell:
            tell(cell.name, number, len(cells))
        if cell.key not in done:
            yield cell
    if tell:
        tell("done", len(cells), len(cells))


def _asked(*arguments):
    return list(generate(*arguments))


def _written(out, task, samples, heard, keep, grid, named, images, cropped):
    """The record of a cell, once it is in the folder with all that belongs to it."""
    replies, kept = [one.answer for one in heard], [one.kept for one in heard]
    scores = [scored(task, reply, sample) for reply, sample in zip(replies, samples, strict=True)]
    result = assess(samples, replies, scores, kept, [one.count for one in heard], task)
    if kind(named["method"]).fixed_count:  # it makes its tokens of all patches
        result["kept_recall"] = None
    cell = Record(keep=keep if isinstance(keep, int) else round(result["kept_mean"]), **result, **named)
    pictures.draw(out, samples, replies, scores, kept, [one.grid or grid for one in heard], cell, images,
                  cropped=cropped)
    answers.append(out, cell, samples, replies, scores)
    record.append(out / record.FILE_NAME, cell)
    return cell


def budget_options(method: str, keep: int | float | None) -> dict:
    """What a record's options say of a budget that is no count."""
    if parts(method)[0] == FULL:
        return {}
    return {"count": "own"} if keep is None else {"fraction": keep} if isinstance(keep, float) else {}


def begin(out: Path, resume: bool) -> list[Record]:
    """The records that an earlier run left; without `resume` its files are put aside."""
    if not resume:
        for name in (record.FILE_NAME, answers.FILE_NAME, pictures.FILE_NAME):
            if (out / name).exists():
                (out / name).replace(out / f"{name}.old")
    return record.read(out / record.FILE_NAME)


def in_turn(shares: Sequence[Sequence]) -> Iterator:
    """First the first of each, then the second of each, and so on: processes' batches in the order of one's."""
    return (one for round_ in zip_longest(*shares) for one in round_ if one is not None)


def cell_of(r: Record) -> tuple:
    """What `evaluate` calls the cell of a record."""
    options = dict(r.method_options)
    own, fraction = options.pop("count", None) == "own", options.pop("fraction", None)
    budget = "all" if parts(r.method)[0] == FULL else "own" if own else r.keep if fraction is None else fraction
    return _key(r.method, budget, options, r.layers)


def in_words(budget, tokens: int | None) -> str:
    """The budget of a cell as progress shows it. tokens: N where every image has as many."""
    if budget == "all":
        return "all tokens" if tokens is None else f"K={tokens}"
    return "own count" if budget == "own" else f"{budget:.4g} of N" if isinstance(budget, float) else f"K={budget}"


@contextmanager
def entered(model: nn.Module, cell: Cell, config: EvalConfig) -> Iterator:
    """(the model to run, the pruning of its tokens) of a cell; the full model is the stock one, without any hook of
    ours."""
    method, keep = cell.method, cell.keep
    if method == FULL:
        yield model, None
        return
    folder = config.pruners.get(method)
    if folder is None:
        with prune(model, method, keep=keep, seed=config.seed, **config.options.get(method, {})) as pruning:
            yield model, pruning
        return
    saved = read_spared(folder)
    if not saved.plain:
        with saved.entered(model, keep, cell.layers) as pruning:
            yield model, pruning
        return
    with from_pretrained(model, folder, keep=keep) as pruning, adapted(model, folder) as active:
        yield active, pruning


@contextmanager
def adapted(model: nn.Module, folder) -> Iterator[nn.Module]:
    """`model`, pruned as in `folder`, with what was trained of its own weights; afterwards its own modules again."""
    own, trained = dict(model.named_modules()), {name: p.requires_grad for name, p in model.named_parameters()}
    adapter = model
    try:
        adapter = load_adapter(model, folder)
        yield adapter
    finally:
        if adapter is not model:
            adapter.unload()
        for name, module in own.items():  # in whose place peft leaves the trained copy, hooks of ours on it
            parent, _, last = name.rpartition(".")
            if name and getattr(model.get_submodule(parent), last) is not module:
                setattr(model.get_submodule(parent), last, module)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])


@torch.no_grad()
def generate(model, processor, prompts, pruning, family: Family, new_tokens: int) -> Iterator[list[Heard]]:
    """What every sample of each batch gave. model: the pruned one, which peft may have wrapped."""
    stock, same = prompts.model, family.features(prompts.model)[1]
    stride = 2**32 if same is None else (prompts.batch * same + 3) // 4  # no batch draws more, see Pruner.next_key
    for number, inputs in zip(prompts.numbers, prompts, strict=True):
        if pruning is not None:
            pruning.draw_from(number * stride)  # whoever asked the batches before
        out = model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=new_tokens)
        new = out[:, inputs["input_ids"].shape[1]:]
        replies = [text.strip() for text in processor.tokenizer.batch_decode(new, skip_special_tokens=True)]
        tokens, grids = tokens_of(family, stock, inputs)
        plan = pruning.plan if pruning is not None else None
        if plan is None:  # the full model, or a mid-LLM method that had nothing to drop
            kept, counts = [list(range(n)) for n in tokens], tokens
        elif pruning.selector.fixed_count:  # it reads all patches, and keeps none
            kept, counts = [list(range(n)) for n in tokens], plan.counts()
        else:
            kept = [[n for n in row if n >= 0] for row in plan.kept.tolist()]
            counts = [n + int(getattr(pruning.selector, "use_cls", False)) for n in plan.counts()]
        lengths = inputs["attention_mask"].sum(1).tolist()
        crops = family.crops(stock, inputs) or [None] * len(replies)
        yield [Heard(*one) for one in zip(replies, kept, counts, tokens, lengths, grids, crops, strict=True)]


def tokens_of(family: Family, model, inputs: dict) -> tuple[list[int], list[tuple[int, int] | None]]:
    """(image tokens, grid of them or None) of each prompt of a batch: one image each."""
    _, tokens, grid = family.features(model)
    rows = len(inputs["input_ids"])
    if tokens is not None:
        return [tokens] * rows, [grid] * rows
    lengths = family.is_placeholder(model, inputs["input_ids"]).sum(1).tolist()
    return lengths, family.grids(model, "image", inputs, lengths)


def scored(task: Task, reply: str, sample) -> bool | float:
    """The task's score as plain Python has it. ValueError: not in [0, 1]."""
    score = task.score(reply, sample)
    if not 0 <= score <= 1:
        raise ValueError(f"{type(task).__name__}.score must be in [0, 1], got {score}")
    return bool(score) if isinstance(score, (Integral, np.bool_)) else float(score)


def assess(samples, replies, scores, kept, counts, task: Task) -> dict:
    """Accuracy with its interval, the task's own metrics, and the share of the patches that matter that was kept."""
    known = [(set(sample.relevant), set(row)) for sample, row in zip(samples, kept, strict=True) if sample.relevant]
    recall = sum(len(wanted & row) / len(wanted) for wanted, row in known) / len(known) if known else None
    low, high = interval(scores, [sample.image_id for sample in samples])
    accuracy = sum(scores) / len(scores)
    # A sum and a mean may differ in their last bit.
    return {"accuracy": accuracy, "ci95": (min(low, accuracy), max(high, accuracy)), "kept_recall": recall,
            "kept_mean": sum(counts) / len(counts), "metrics": task.summary(replies, samples) or None}


__all__ = ["EvalConfig", "Heard", "Prompts", "entered", "evaluate", "generate", "prepare", "prompt", "pruners_in"]
