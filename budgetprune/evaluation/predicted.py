"""Measured milliseconds beside what FLOPs and rooflines promised, cell by cell."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import exp, log
from pathlib import Path

from ..catalog import build, find
from ..cost import Device, VlmShape, prefill_flops, table
from . import record as records_file
from .record import Record, latest
from .summary import FULL


@dataclass(frozen=True)
class Predicted:
    """One cell against the full model of its run.

    measured_share, flops_share: its prefill_ms and prefill_flops, of the full model's. flops_ratio: the first over the
        second, 1 where time falls as the operations do, more where less was won than they promise.
    roofline_share, roofline_ratio: the same by the roofline of a device, where one is given.
    """

    task: str
    model: str
    method: str
    keep: int
    method_options: dict
    measured_ms: float
    measured_share: float
    flops_share: float
    flops_ratio: float
    roofline_share: float | None = None
    roofline_ratio: float | None = None


@dataclass(frozen=True)
class MethodRatio:
    """flops_ratio of one method's cells: the geometric mean, the least and the most."""

    method: str
    cells: int
    mean: float
    least: float
    most: float


def predicted(records: Iterable[Record], shape: VlmShape | None = None, on: Device | None = None) -> list[Predicted]:
    """A row for every timed cell of which the run also timed the full model, on the same device, in batches of as many
    prompts, at the same commit; the full model itself has none.

    shape, on: the model of the records and a device, for rooflines too; cells whose images differ in size, or that
    spare layers, have none. A method that spares layers is one of its own for each number of them.
    Text tokens are those that make the full model's FLOPs.
    """
    cells = [one for one in latest(records) if one.prefill_ms and one.prefill_flops]
    whole = {_place(one): one for one in cells if one.method == FULL}
    rows = []
    for one in cells:
        full = whole.get(_place(one))
        if one.method == FULL or full is None:
            continue
        share, flops = one.prefill_ms / full.prefill_ms, one.prefill_flops / full.prefill_flops
        roofline = None if shape is None or on is None else _roofline_share(one, full, shape, on)
        rows.append(Predicted(one.task, one.model, one.spares, one.keep, one.method_options, one.prefill_ms, share,
                              flops, share / flops, roofline, None if roofline is None else share / roofline))
    return rows


def of_run(run, shape: VlmShape | None = None, on: Device | None = None) -> list[Predicted]:
    """`predicted` of a folder with records.jsonl, or of the file. ValueError: nothing there can be compared."""
    path = Path(run) / records_file.FILE_NAME if Path(run).is_dir() else Path(run)
    rows = predicted(records_file.read(path), shape, on)
    if not rows:
        raise ValueError(f"run must have timed cells of the full model and of a method, {path} has none; "
                         "budgetprune eval --latency-batch 32 measures them")
    return rows


def by_method(rows: Iterable[Predicted]) -> list[MethodRatio]:
    """One row per method, in order of the first appearance."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row.method, []).append(row.flops_ratio)
    return [MethodRatio(method, len(each), exp(sum(map(log, each)) / len(each)), min(each), max(each))
            for method, each in found.items()]


def _place(one):
    return one.task, one.model, one.device, one.latency_batch, one.commit


def _roofline_share(one, full, shape, on):
    tokens = full.keep
    crops = shape.packed or tokens % shape.tokens_per_crop == 0
    if one.layers is not None or full.kept_mean not in (None, tokens) or not crops:
        return None
    depth, stages, kind = shape.decoder.layers, None, find(one.method)
    if kind.place == "llm":
        method = build(one.method)
        method = build(one.method, **{name: one.method_options.get(name, value) for name, value in
                                      method.options().items()})  # records have options of the run's own as well

        def stages(kept):
            return method.stages(tokens, kept, depth)

    def milliseconds(keep):
        row, = table(shape, [keep], _text(shape, tokens, full.prefill_flops), image_tokens_in=tokens,
                     batch=one.latency_batch or 1, bytes_per_value=on.bytes_per_value, on=on, stages=stages,
                     projected="all" if kind.after_projector else None)
        return row.prefill_roofline_ms

    return milliseconds(min(one.keep, tokens)) / milliseconds(tokens)


def _text(shape, tokens, flops):
    """The text tokens with which the full model needs so many FLOPs, or the nearest below."""
    low, high = 0, 1
    while prefill_flops(shape, tokens, tokens, high).total <= flops:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if prefill_flops(shape, tokens, tokens, middle).total <= flops else (low, middle)
    if prefill_flops(shape, tokens, tokens, low).total != flops and shape.tiling is None and not shape.packed:
        raise ValueError(f"model must be that of the records: their full model needs {flops} FLOPs, which no number of "
                         "text tokens gives here")
    return low
