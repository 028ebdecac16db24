"""Benchmarks that lmms-eval asks and scores, as cells of our own: each method x budget of one loaded model.

lmms-eval itself is reached through a `Host`, see integrations/lmms_run.py; nothing of it is imported here.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isclose
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from torch import nn

from ..models.base import family_of
from . import answers, record
from .answers import Answer
from .config import EvalConfig
from .costs import cost_of, shape_of_model
from .interval import interval
from .processes import Processes
from .record import Record
from .run import Heard, begin, budget_options, cell_of, cells_of, entered, missing

PREFIX = "lmms:"


@dataclass(frozen=True)
class Benchmark:
    """How a task of lmms-eval becomes a record.

    task: its name there. metric: of a sample's metrics the one that is its score, the first it has. scale: what a
    perfect answer sheet has in lmms-eval's own total of that metric, which the mean of our scores must give; None:
    that total is no mean of them. graded: scores may lie in between, as VQA accuracy does; those of other tasks are
    right or wrong where all of a cell are 1 or 0. image: the field of a document that names its image; None: each
    question is about one of its own.
    """

    task: str
    metric: tuple[str, ...] = ("exact_match",)
    scale: float | None = 1.0
    graded: bool = False
    image: str | None = None


BENCHMARKS = {
    "vqav2": Benchmark("vqav2_val", graded=True, image="image_id"),
    "gqa": Benchmark("gqa", image="imageId"),
    "textvqa": Benchmark("textvqa_val", graded=True, image="image_id"),
    "scienceqa": Benchmark("scienceqa_img"),
    "pope": Benchmark("pope", ("pope_accuracy",), image="image_source"),
    "mme": Benchmark("mme", ("mme_perception_score", "mme_cognition_score"), scale=None, image="question_id"),
    "mmbench": Benchmark("mmbench_en_dev_static", ("gpt_eval_score",), scale=100.0),
    "vizwiz": Benchmark("vizwiz_vqa_val", graded=True),
    "seed": Benchmark("seedbench", ("seed_all",), image="data_id"),
}


class Host(Protocol):
    """lmms-eval around one model."""

    model: nn.Module

    def size(self, task: str) -> int:
        """Questions of a task."""

    def ask(self, task: str, limit: int | None) -> tuple[Mapping[str, float], Sequence[Mapping]]:
        """({metric: total}, lmms-eval's log, an entry a question) of the first `limit` questions, as the model is now;
        ({}, []) in all processes but the main one. An error of the model's is raised."""


def benchmark(name: str, metric: str | None = None, image: str | None = None) -> Benchmark:
    """A benchmark of the table, or any other task of lmms-eval by its own name.

    metric, image: instead of the table's. ValueError: another task without a metric.
    """
    known = BENCHMARKS.get(name) or next((b for b in BENCHMARKS.values() if b.task == name), None)
    if known is None and metric is None:
        raise ValueError(f"task-option metric must say which of {name}'s metrics is the score of a question; known "
                         f"without it: {', '.join(PREFIX + one for one in BENCHMARKS)}")
    known = known or Benchmark(name, scale=None)
    return replace(known, metric=(metric,) if metric else known.metric, image=image or known.image,
                   scale=None if metric else known.scale)


def evaluate_lmms(host: Host, name: str, bench: Benchmark, out, config: EvalConfig, *, model_name: str,
                  resume: bool = True, tell: Callable[[str, int, int], None] | None = None,
                  processes: Processes | None = None) -> list[Record]:
    """`run.evaluate` for a task of lmms-eval: the cells that out/records.jsonl lacks, one after the other.

    A record's accuracy is the mean score of the questions; lmms-eval's own totals are its metrics. Of `config` batch,
    new_tokens, latency_batch and images are not used: prompts and lengths are lmms-eval's, and nothing is timed.
    name: what records call the task. ValueError: no such metric, or scores that are not what lmms-eval totals.
    """
    out, processes, model = Path(out), processes or Processes(), host.model
    tokens = family_of(model).features(model)[1]
    cells = cells_of(config, tokens, model)
    size = host.size(bench.task)
    count = size if config.samples is None else min(config.samples, size)
    done = {cell_of(r): r for r in processes.share(begin, out, resume)
            if (r.task, r.model, r.samples, r.seed) == (name, model_name, count, config.seed)}
    for cell in missing(cells, done, tell if processes.main else None):
        with entered(model, cell, config) as (active, pruning):
            with listening(model, pruning) as heard:
                totals, log = host.ask(bench.task, None if count == size else count)
            heard = [one for share in processes.gather(list, heard) or [] for one in share]
            costs = processes.share(costs_of_heard, model, active, pruning, heard, config, tokens, cell.layers)
        named = {"task": name, "model": model_name, "method": cell.method, "seed": config.seed, "samples": count,
                 "layers": cell.layers, **costs,
                 "method_options": cell.options | budget_options(cell.method, cell.keep),
                 **record.environment(model.device)}
        done[cell.key] = processes.share(_written, out, bench, totals, log, heard, cell.keep, named)
    return list(done.values())


@contextmanager
def listening(model: nn.Module, pruning):
    """Within, every call of model.generate leaves what it kept in the list that this yields; its answers do not."""
    generate, own, heard, family = model.generate, "generate" in vars(model), [], family_of(model)
    grown = family.features(model)[1] is None and shape_of_model(model.config) is not None

    def listened(*arguments, **inputs):
        said = generate(*arguments, **inputs)
        ids = inputs["input_ids"]
        tokens = family.is_placeholder(model, ids).sum(1).tolist()
        plan = pruning.plan if pruning is not None and any(tokens) else None
        counts = tokens if plan is None else list(plan.counts())
        if len(counts) != len(tokens):  # a row has several images, or none
            counts = [sum(counts) / len(tokens)] * len(tokens)
        mask = inputs.get("attention_mask")
        lengths = [ids.shape[1]] * len(ids) if mask is None else mask.sum(1).tolist()
        crops = family.crops(model, inputs) if grown and any(tokens) else [None] * len(ids)
        heard.extend(Heard("", [], *one, None, crop) for *one, crop in zip(counts, tokens, lengths, crops, strict=True))
        return said

    model.generate = listened
    try:
        yield heard
    finally:
        if own:
            model.generate = generate
        else:
            del model.generate


def costs_of_heard(model, active, pruning, heard, config, tokens, layers=None) -> dict:
    """FLOPs and the tokens a layer sees, where all prompts have one image."""
    if not heard or any(one.tokens == 0 or tokens is not None and one.tokens != tokens for one in heard):
        return {}

    class One:
        batch = len(heard)

    return cost_of(model, family_of(model), active, pruning, heard, One, replace(config, latency_batch=0), tokens,
                   layers)


def _written(out, bench, totals, log, heard, keep, named):
    """The record of a cell, once it is in the folder with its answers."""
    if not log:
        raise ValueError(f"{bench.task} must log its questions, got none")
    log = sorted(log, key=lambda entry: entry["doc_id"])
    scores = [score_of(bench, entry) for entry in log]
    if not bench.graded and set(scores) <= {0.0, 1.0}:
        scores = [bool(score) for score in scores]
    accuracy = fmean(scores)
    checked(bench, totals, accuracy)
    images = [image_of(bench, entry) for entry in log]
    low, high = interval(scores, images)
    kept = fmean(one.count for one in heard)
    cell = Record(keep=keep if isinstance(keep, int) else round(kept), accuracy=accuracy, kept_mean=kept,
                  ci95=(min(low, accuracy), max(high, accuracy)), metrics=dict(totals) or None, **named)
    key = cell.key()
    answers.write(out, [Answer(key, str(entry["doc_id"]), str(first(entry["filtered_resps"])), score, image,
                               next((text for text in entry.get("arguments", ()) if isinstance(text, str)), None),
                               str(entry.get("target")))
                        for entry, score, image in zip(log, scores, images, strict=True)])
    record.append(out / record.FILE_NAME, cell)
    return cell


def score_of(bench: Benchmark, entry: Mapping[str, Any]) -> float:
    """Of one question, in [0, 1]: the metric itself, its field `score`, or whether its `pred` is its `answer`."""
    value = next((entry[name] for name in bench.metric if name in entry), None)
    if isinstance(value, Mapping) and "score" in value:
        value = value["score"]
    elif isinstance(value, Mapping) and {"pred", "answer"} <= value.keys():
        value = float(value["pred"].lower().strip() == value["answer"].lower().strip())
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        there = ", ".join(name for name in entry if name not in _LOGGED) or "none"
        raise ValueError(f"{bench.task} must score every question by {' or '.join(bench.metric)} in [0, 1], got "
                         f"{value!r}; its metrics: {there}")
    return float(value)


def checked(bench: Benchmark, totals: Mapping[str, float], accuracy: float) -> None:
    """ValueError: lmms-eval totals the metric to something else than its scale times our mean."""
    if bench.scale is None:
        return
    total = totals.get(bench.metric[0])
    if total is None or not isclose(total, bench.scale * accuracy, rel_tol=1e-6, abs_tol=1e-9 * bench.scale):
        raise ValueError(f"{bench.task}'s {bench.metric[0]} must be {bench.scale:g} times the mean score {accuracy}, "
                         f"got {total}: this lmms-eval counts it in another way")


def image_of(bench: Benchmark, entry: Mapping[str, Any]) -> str:
    """The image's name in its data set; a question's own where that has none."""
    value = entry.get("doc", {}).get(bench.image) if bench.image else None
    return f"question {entry['doc_id']}" if value is None else str(value)


def first(values):
    return values[0] if isinstance(values, (list, tuple)) and values else values


_LOGGED = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "token_counts", "doc_hash", "input_media"}
