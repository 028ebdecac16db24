"""What a curve of accuracy over cost comes to in one number, and which cells nothing beats on both."""

import math
from itertools import pairwise
from statistics import fmean

from ..checked import one_of
from .record import Record
from .summary import group_records

COSTS = ("prefill_flops", "prefill_ms", "decode_ms_per_token", "peak_bytes", "kept_mean", "layer_mean", "keep")


def area_under_curve(records, cost: str = "prefill_flops", *, scale: str = "log", within=None) -> dict[str, float]:
    """{label of a curve: area under its accuracy over cost}, each in [0, 1], labels as `group_records` has them.

    The curve joins a method's cells by straight lines over the logarithm of the cost (scale "log": every halving of
    the cost counts as much; no full model is needed, since a share of its cost is a shift) or over the cost itself
    ("linear"). The area is the integral over the range that all curves share (`shared_range`), or over `within` =
    (low, high), divided by the width of that range: the mean accuracy there. Cells of several seeds are averaged. The
    full model is no curve; a method with fewer than two costs has none and is left out.

    ValueError: records of several tasks or models; no record knows the cost; curves share no range; `within` goes
    beyond a curve.
    """
    place = _scale(scale)
    curves = _curves(records, cost)
    if not curves:
        return {}
    low, high = _shared(curves, cost) if within is None else within
    if not 0 < low < high:
        raise ValueError(f"within must be (low, high) with 0 < low < high, got {(low, high)}")
    found = {}
    for label, points in curves.items():
        if not points[0][0] <= low < high <= points[-1][0]:
            raise ValueError(f"within must lie between {points[0][0]:g} and {points[-1][0]:g}, the costs of {label}, "
                             f"got {within!r}")
        inner = [(c, a) for c, a in points if low < c < high]
        corners = [(low, _at(points, low, place)), *inner, (high, _at(points, high, place))]
        area = sum((place(d) - place(c)) * (a + b) / 2 for (c, a), (d, b) in pairwise(corners))
        found[label] = area / (place(high) - place(low))
    return found


def shared_range(records, cost: str = "prefill_flops") -> tuple[float, float]:
    """(low, high): the costs between which every curve has cells on both sides. ValueError: there is none."""
    curves = _curves(records, cost)
    if not curves:
        raise ValueError("records must have a method at two costs at least, got none")
    return _shared(curves, cost)


def pareto_front(records, cost: str = "prefill_flops") -> list[Record]:
    """The records of the cells that no other cell beats: none costs as little or less and is as accurate or more,
    with one of the two strictly. In order of cost; two equal cells are both there.

    The full model takes part, and so do several models. A cell of several seeds is judged by its means and stands
    there with all its records. Cells whose cost is not known are left out. ValueError: records of several tasks; no
    record knows the cost.
    """
    cells, groups = [], _groups(records, cost)
    for group in groups:
        for point in [*group.points, *([group.full] if group.full else [])]:
            if (value := _cost(point, cost)) is not None:
                cells.append((value, point.accuracy, point.records))
    if groups and not cells:
        raise ValueError(f"cost must be one that records have, none has {cost}")
    cells.sort(key=lambda cell: (cell[0], -cell[1]))
    front, best = [], (-1.0, 0.0)  # accuracy and cost of the best so far
    for value, accuracy, members in cells:
        if accuracy > best[0] or (accuracy, value) == best:
            best = (accuracy, value)
            front += members
    return front


def _groups(records, cost):
    one_of("cost", cost, COSTS)
    groups = group_records(records)
    if len(tasks := {group.task for group in groups}) > 1:
        raise ValueError(f"records must be of one task, got {', '.join(sorted(tasks))}")
    return groups


def _curves(records, cost) -> dict[str, list[tuple[float, float]]]:
    """{label: (cost, accuracy) by cost}, of methods with two costs at least."""
    groups = _groups(records, cost)
    if len(groups) > 1:
        raise ValueError(f"records must be of one model, got {', '.join(sorted(g.model for g in groups))}")
    found, known = {}, False
    for curve in groups[0].curves if groups else ():
        at = {}
        for point in curve.points:
            if (value := _cost(point, cost)) is not None:
                at.setdefault(value, []).append(point.accuracy)
        known = known or bool(at)
        if len(at) > 1:
            found[curve.label] = [(value, fmean(at[value])) for value in sorted(at)]
    if groups and groups[0].curves and not known:
        raise ValueError(f"cost must be one that records have, none has {cost}")
    return found


def _cost(point, cost):
    values = [getattr(record, cost) for record in point.records]
    return None if any(value is None for value in values) else fmean(values)


def _shared(curves, cost):
    low, high = max(p[0][0] for p in curves.values()), min(p[-1][0] for p in curves.values())
    if not low < high:
        last = max(curves, key=lambda label: curves[label][0][0])
        first = min(curves, key=lambda label: curves[label][-1][0])
        raise ValueError(f"records must overlap in {cost}: {first} ends at {high:g} where {last} begins at {low:g}")
    return low, high


def _scale(name):
    return {"log": math.log, "linear": float}[one_of("scale", name, ("log", "linear"))]


def _at(points, cost, place):
    """The accuracy of a curve at `cost`, which lies within it."""
    for (c, a), (d, b) in pairwise(points):
        if c <= cost <= d:
            return a + (b - a) * (place(cost) - place(c)) / (place(d) - place(c))
    raise ValueError(f"cost must lie on the curve, got {cost:g}")
