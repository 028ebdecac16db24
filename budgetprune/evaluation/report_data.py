"""What the report's script draws from: curves, costs and fronts of every task as plain JSON values."""

from dataclasses import dataclass
from math import log
from statistics import fmean

from .chart import dash, marker
from .frontier import area_under_curve, pareto_front
from .published import references
from .summary import Group, headline

_SI = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1))
_BINARY = (("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10), ("", 1))
_NOT_TIMED = "not recorded (eval with --latency-batch 0, or records of another tool)"


@dataclass(frozen=True)
class Cost:
    """A field of the records that accuracy can stand over. missing: why no cell may have it."""

    field: str
    short: str
    name: str
    unit: str
    prefixes: tuple[tuple[str, float], ...]
    missing: str


COSTS = (
    Cost("prefill_flops", "FLOPs", "Prefill", "FLOPs", _SI, "not recorded (no formula knows this tower and decoder)"),
    Cost("prefill_ms", "Time", "Prefill time", "ms", (("", 1),), _NOT_TIMED),
    Cost("peak_bytes", "Memory", "Peak memory", "B", _BINARY, _NOT_TIMED),
    Cost("decode_ms_per_token", "Decoding", "Decoding", "ms/token", (("", 1),), _NOT_TIMED),
    Cost("keep", "Tokens", "Image tokens kept", "", (("", 1),), ""),
)


def mean_of(point, field):
    """A field's mean over the seeds of a point, None where one has no value."""
    values = [getattr(record, field) for record in point.records]
    return None if any(value is None for value in values) else fmean(values)


def metrics_of(point) -> dict[str, float]:
    """The metrics that all records of a point have, means over seeds."""
    known = [record.metrics or {} for record in point.records]
    return {name: fmean(m[name] for m in known) for name in known[0] if all(name in m for m in known)}


def common_range(group: Group, field: str = "prefill_flops") -> tuple[float, float] | None:
    """The costs (low, high) between which the areas under the curves are compared; None where there are none.

    Curves need not overlap: a method inside the language model may begin at a cost where others end. So the range is
    the one whose factor high / low, as a logarithm, times the number of curves that span it beside the first is the
    largest.
    """
    spans = [s for s in (_span(curve, field) for curve in group.curves) if s]
    ranges = [(low, high) for low in {s[0] for s in spans} for high in {s[1] for s in spans} if low < high]

    def covered(at):
        return sum(s[0] <= at[0] and at[1] <= s[1] for s in spans)

    def weight(at):
        width = log(at[1] / at[0])
        return width * (covered(at) - 1), width, -at[0]

    return max(filter(covered, ranges), key=weight, default=None)


def areas(group: Group, field: str = "prefill_flops") -> dict[str, float]:
    """{label: area under its curve} of the curves that span `common_range`."""
    within = common_range(group, field)
    if within is None:
        return {}
    found = {}
    for curve in group.curves:
        span = _span(curve, field)
        if span and span[0] <= within[0] and within[1] <= span[1]:
            own = [record for point in curve.points for record in point.records]
            found[curve.label] = next(iter(area_under_curve(own, field, within=within).values()))
    return found


def _span(curve, field):
    """(least, most) of the costs of a curve, None where they are fewer than two."""
    values = {value for value in (mean_of(point, field) for point in curve.points) if value}
    return (min(values), max(values)) if len(values) > 1 else None


def front(group: Group, field: str) -> list:
    """The points of the Pareto front over a cost, by cost; [] where no cell has it."""
    points = group.points + ([group.full] if group.full else [])
    if all(mean_of(point, field) is None for point in points):
        return []
    at = {record.key(): point for point in points for record in point.records}
    return list({id(point): point for record in pareto_front(group.records, field)
                 if (point := at.get(record.key()))}.values())


def page_data(groups: list[Group], slots: dict[str, int]) -> dict:
    """All that the script draws curves from. slots: {label: which colour, marker and dash}."""
    looks = [{"label": label, "mark": marker(slot, 0, 0, 4), "dash": dash(slot)} for label, slot in slots.items()]
    costs = [{"field": c.field, "short": c.short, "name": c.name, "unit": c.unit, "prefixes": c.prefixes,
              "missing": c.missing} for c in COSTS]
    return {"costs": costs, "methods": looks, "groups": [_group(group, slots) for group in groups]}


def _group(group, slots):
    best = headline(group).point
    points = [point for point in (group.full, *group.points) if point]
    metrics = sorted({name for point in points for name, value in metrics_of(point).items() if value <= 1})
    return {"task": group.task, "model": group.model, "metrics": metrics,
            "full": _point(group.full) if group.full else None,
            "best": [slots[best.label], best.keep] if best else None,
            "curves": [{"slot": slots[curve.label], "points": [_point(point) for point in curve.points]}
                       for curve in group.curves],
            "fronts": {cost.field: [[slots.get(point.label, -1), point.keep, point.layers]
                                    for point in front(group, cost.field)] for cost in COSTS},
            "published": references(group.task, group.model)}


def _point(point):
    costs = {cost.field: mean_of(point, cost.field) for cost in COSTS}
    named = {"name": point.name} if point.name != point.label else {}
    return {**named, "keep": point.keep, "layers": point.layers, "accuracy": point.accuracy, "low": point.low,
            "high": point.high, "seeds": len(point.records), "metrics": metrics_of(point),
            "costs": {name: value for name, value in costs.items() if value is not None}}
