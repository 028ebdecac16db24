"""Records as curves: cells grouped by task and model, seeds averaged, and the one sentence that sums them up."""

import json
import math
from collections import Counter
from dataclasses import dataclass
from statistics import fmean

from .record import LABEL, Record, in_layers, latest

FULL = "none"  # the method name of the unpruned model: a reference, not a competitor
TOLERANCE = 0.01  # a cell "matches" the full model if it loses at most this much accuracy


@dataclass(frozen=True)
class Point:
    """One method at one budget; means over seeds. low and high span the 95 % intervals of all seeds."""

    label: str
    keep: int
    accuracy: float
    low: float
    high: float
    prefill_flops: float | None
    prefill_ms: float | None
    records: tuple[Record, ...]
    layers: int | None = None

    @property
    def of_layers(self) -> bool:
        """Whether its place on its curve is a number of layers."""
        return self.records[0].keeps_tokens

    @property
    def name(self) -> str:
        return f"{self.label} in {in_layers(self.layers)}" if self.of_layers else self.label

    @property
    def place(self) -> str:
        """Where on its curve it stands."""
        return in_layers(self.layers) if self.of_layers else str(self.keep)


@dataclass(frozen=True)
class Curve:
    """One method at several budgets. Of one that spares tokens and layers each number of layers is a curve of its own,
    over tokens; of one that spares layers alone the numbers of layers are its points."""

    label: str
    points: tuple[Point, ...]  # by keep and layers, ascending


@dataclass(frozen=True)
class Group:
    """All curves of one task and model; `full` is the unpruned model's point, if it was run."""

    task: str
    model: str
    curves: tuple[Curve, ...]
    full: Point | None
    records: tuple[Record, ...]

    @property
    def points(self):
        return [point for curve in self.curves for point in curve.points]


@dataclass(frozen=True)
class Headline:
    """The sentence, the point it speaks of (None if there is only the full model), and whether it matches it."""

    sentence: str
    point: Point | None
    matches: bool


def option_labels(records) -> dict:
    """Record key -> label: the method, with those options added that tell apart variants of one method. The fraction
    of a budget is none: cells at several of them are one curve. The layers that run are, where tokens are spared, too.
    """
    variants = {}
    for record in records:
        options = {name: json.dumps(value, sort_keys=True) if not isinstance(value, str) else value
                   for name, value in record.method_options.items() if name != "fraction"}
        variants.setdefault(record.method, []).append((record, options))
    labels = {}
    for method, members in variants.items():
        names = {name for _, options in members for name in options}
        differing = sorted(n for n in names if len({options.get(n) for _, options in members}) > 1)
        named: dict = {}
        for _, options in members:
            named.setdefault(options.get(LABEL), []).append(options)
        if LABEL in differing:  # what goes with the label need not be said beside it
            differing = [n for n in differing if n == LABEL or any(
                len({options.get(n) for options in some}) > 1 for some in named.values())]
        for record, options in members:
            shown = ", ".join(f"{name}={options[name]}" for name in differing if name in options)
            layers = "" if record.layers is None or record.keeps_tokens else f" in {in_layers(record.layers)}"
            name = method + layers
            labels[record.key()] = f"{name} ({shown})" if shown else name
    return labels


def _mean(values):
    values = list(values)
    return None if not values or any(v is None for v in values) else fmean(values)


def _point(label, records):
    return Point(label, records[0].keep, fmean(r.accuracy for r in records), min(r.ci95[0] for r in records),
                 max(r.ci95[1] for r in records), _mean(r.prefill_flops for r in records),
                 _mean(r.prefill_ms for r in records), tuple(records), records[0].layers)


def group_records(records) -> list[Group]:
    """Groups in order of first appearance; of a cell that was run twice the later record counts."""
    cells = {}
    for record in latest(records):
        cells.setdefault((record.task, record.model), []).append(record)
    groups = []
    for (task, model), members in cells.items():
        labels, places = option_labels(members), {}
        for record in members:
            budget = record.keep, record.layers or 0
            places.setdefault(labels[record.key()], {}).setdefault(budget, []).append(record)
        curves, full = [], None
        for label, by_budget in places.items():
            points = tuple(_point(label, by_budget[budget]) for budget in sorted(by_budget))
            if points[0].records[0].method == FULL:
                full = max((p for p in (full, points[-1]) if p), key=lambda p: p.keep)
            else:
                curves.append(Curve(label, points))
        groups.append(Group(task, model, tuple(curves), full, tuple(members)))
    return groups


def change(value, reference):
    """(value - reference) / reference, None where either is unknown or the reference is 0."""
    return None if value is None or not reference else value / reference - 1


def whole_percent(ratio):
    """|ratio| in percent without decimals, save where rounding would claim all of it: 99.6, not 100."""
    percent = abs(ratio) * 100
    return f"{percent:.0f}" if percent >= 100 or percent < 99.5 else f"{math.floor(percent * 100) / 100:g}"


def _cost(point):
    """What 'cheaper' means: prefill FLOPs where they are known, else tokens kept."""
    return (point.prefill_flops if point.prefill_flops is not None else float("inf"), point.keep, -point.accuracy)


def headline(group: Group) -> Headline:
    """The cheapest point within TOLERANCE of the full model, in one sentence; failing that, the closest point."""
    points, full = group.points, group.full
    if not points:
        return Headline(f"The full model reaches {full.accuracy:.3f} accuracy; no method was run beside it.", None,
                        False)
    best = max(points, key=lambda p: (p.accuracy, -p.keep))
    if full is None:
        return Headline(f"Keeping {count_of(best)} image tokens, {best.name} reaches {best.accuracy:.3f} accuracy, "
                        "the highest here; the full model was not run.", best, False)
    near = [p for p in points if p.accuracy >= full.accuracy - TOLERANCE - 1e-9 and _less(p, full)]
    if not near:
        return Headline(f"No method stays within {TOLERANCE:g} of the full model's {full.accuracy:.3f} accuracy; "
                        f"closest is {best.name} at {best.accuracy:.3f} with {count_of(best, full)} image tokens"
                        f"{_savings(best, full)}.", best, False)
    best = min(near, key=_cost)
    return Headline(f"Keeping {count_of(best, full)} image tokens, {best.name} reaches {best.accuracy:.3f} accuracy "
                    f"(full model {full.accuracy:.3f}){_savings(best, full)}.", best, True)


def _less(point, full):
    """Fewer tokens; of one that keeps all and spares layers, fewer FLOPs."""
    flops = change(point.prefill_flops, full.prefill_flops)
    return point.keep < full.keep or point.of_layers and flops is not None and flops < 0


def _savings(point, full):
    parts = []
    for name, less, more in (("prefill_flops", "fewer prefill FLOPs", "more prefill FLOPs"),
                             ("prefill_ms", "less prefill time", "more prefill time")):
        ratio = change(getattr(point, name), getattr(full, name))
        if ratio is not None:
            parts.append(f"{whole_percent(ratio)}\u00a0% {less if ratio <= 0 else more}")
    return ", with " + " and ".join(parts) if parts else ""


def count_of(point, full=None):
    """"12 of 64", or "12" where the whole is unknown."""
    return f"{point.keep} of {full.keep}" if full and full.keep >= point.keep else str(point.keep)


def common(records, name):
    """The values of one field, most frequent first."""
    return [value for value, _ in Counter(getattr(r, name) for r in records).most_common()]
