"""Accuracy over cost as SVG: curves with 95 % intervals, markers that differ in shape as well as in colour."""

import math
from html import escape
from itertools import pairwise

from .summary import count_of, headline

COLOURS = 8  # --c0 .. --c7 in style.css
AXES = {"prefill_flops": ("Prefill", "FLOPs", (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1))),
        "prefill_ms": ("Prefill time", "ms", (("", 1),))}
# Apart by CIE76 12 or more for eyes without red, green or blue cones too, and 3:1 or more from the paper.
LIGHT = ("#0b6fb8", "#a8321f", "#009e4a", "#e8178a", "#a07a00", "#0a3d2c", "#7a0f78", "#6b7480")
DARK = ("#5ab0f0", "#ff9257", "#5c8562", "#ab50d6", "#fbc916", "#48f7bf", "#d84a98", "#a9b3c1")


def curve_order(group):
    """Curves in the order of their colours: the headline's first, then as they appear in the records."""
    best = headline(group).point
    return sorted(group.curves, key=lambda curve: not (best and curve.label == best.label))


def slots_of(groups) -> dict[str, int]:
    """{label: number of its colour, marker and dash}, one for a method wherever it is drawn: the first group's in its
    order, then those that others add."""
    labels = dict.fromkeys(curve.label for group in groups for curve in curve_order(group))
    return {label: slot for slot, label in enumerate(labels)}


def marker(slot, x, y, r):
    """Path of the marker of curve number `slot`, centred on (x, y)."""
    slot = (slot + 3 * (slot // COLOURS)) % COLOURS
    if slot == 0:
        return f"M{x - r:.1f} {y:.1f}a{r:.1f} {r:.1f} 0 1 0 {2 * r:.1f} 0a{r:.1f} {r:.1f} 0 1 0 {-2 * r:.1f} 0z"
    # slot: corners, turn, reach, inner reach (a star where it is smaller)
    corners, turn, reach, inner = {
        1: (4, 45, 1.2, None), 2: (3, -90, 1.35, None), 3: (4, 0, 1.35, None), 4: (3, 90, 1.35, None),
        5: (4, 45, 1.8, 0.6), 6: (5, -90, 1.7, 0.7), 7: (4, 0, 1.8, 0.6)}[slot]
    steps = []
    for i in range(corners):
        for half, at in ((0, reach), (0.5, inner)):
            if at is not None:
                angle = math.radians(turn + 360 * (i + half) / corners)
                steps.append((r * at * math.cos(angle), r * at * math.sin(angle)))
    return "M" + "L".join(f"{x + dx:.1f} {y + dy:.1f}" for dx, dy in steps) + "z"


def dash(slot):
    return ("", "6 3", "2 3", "8 3 2 3")[slot // COLOURS % 4]


def ticks(low, high, about):
    """Round numbers within [low, high], roughly `about` of them."""
    step = 10 ** math.floor(math.log10(max(high - low, 1e-12) / about))
    step = next(step * m for m in (1, 2, 2.5, 5, 10) if (high - low) / (step * m) <= about)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


class Scale:
    """Linear, or logarithmic where the values span more than a factor of 12; with a margin on both sides."""

    def __init__(self, values, start, end, about, margin=0.05, bounds=None):
        low, high = min(values), max(values)
        self.log = bounds is None and low > 0 and high / low > 12
        self.to = math.log10 if self.log else float
        low, high = self.to(low), self.to(high)
        pad = (high - low) * margin or abs(high) * 0.1 or 1
        self.low, self.high = low - pad, high + pad
        if bounds:
            self.low, self.high = max(bounds[0], self.low), min(bounds[1], self.high)
        self.start, self.end = start, end
        if self.log:
            decades = range(math.floor(self.low), math.ceil(self.high) + 1)
            marks = [m * 10.0**d for d in decades for m in (1, 2, 5)]
            self.marks = [m for m in marks if self.low <= math.log10(m) <= self.high]
        else:
            self.marks = ticks(self.low, self.high, about)

    def __call__(self, value):
        return self.start + (self.to(value) - self.low) / (self.high - self.low) * (self.end - self.start)


def unit_of(values, axis):
    """Unit prefix and divisor that keep the largest value at 1 or above."""
    top = max(values)
    return next(((prefix, size) for prefix, size in AXES[axis][2] if top >= size), AXES[axis][2][-1])


def number(value):
    """Four significant digits without an exponent or trailing zeros."""
    text = f"{value:.{max(0, 3 - math.floor(math.log10(abs(value))))}f}" if value else "0"
    return text.rstrip("0").rstrip(".") if "." in text else text


def axis_points(group, axis, slots):
    """Curves as (slot, curve, points with a known x)."""
    found = [(slots[curve.label], curve, [p for p in curve.points if getattr(p, axis) is not None])
             for curve in curve_order(group)]
    return [(slot, curve, points) for slot, curve, points in found if points]


def chart(group, axis, width=560, height=380, *, legend=False, style="", slots=None) -> str | None:
    """The figure as an <svg>, or None where no cell has a value on this axis.

    legend, style: for a picture that stands alone; a page brings its own. slots: of slots_of, where there are several
    groups.
    """
    curves, headed = axis_points(group, axis, slots or slots_of([group])), headline(group).point
    full = group.full if group.full and getattr(group.full, axis) is not None else None
    shown = [p for _, _, points in curves for p in points] + ([full] if full else [])
    if not shown:
        return None
    name, unit, _ = AXES[axis]
    prefix, size = unit_of([getattr(p, axis) for p in shown], axis)
    rows, columns = 0, 1
    if legend:
        columns = max(1, (width - 40) // (60 + 7 * max((len(c.label) for _, c, _ in curves), default=1)))
        rows = math.ceil(len(curves) / columns)
    bottom = height - 46 - 22 * rows
    x = Scale([getattr(p, axis) / size for p in shown], 50, width - 16, max(4, width // 90))
    known = shown + ([group.full] if group.full else [])
    top = 30  # room for the full model's label even at accuracy 1
    y = Scale([p.low for p in known] + [p.high for p in known], bottom, top, 6, 0.04, (0, 1))
    label = (f"Accuracy over {name.lower()} {unit if axis == 'prefill_flops' else 'in milliseconds'}, "
             f"{group.task}, {group.model}: {len(curves)} methods, {len(shown)} points")
    parts = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="{"img" if legend else "group"}" '
             f'aria-label="{escape(label)}"' + (' xmlns="http://www.w3.org/2000/svg"' if legend else ' tabindex="0"')
             + ">", style, '<g class="axis">']
    for mark in y.marks:
        parts.append(f'<path class="grid" d="M50 {y(mark):.1f}H{width - 16}"/>'
                     f'<text x="42" y="{y(mark) + 4:.1f}" text-anchor="end">{mark:.2f}</text>')
    for mark in x.marks:
        parts.append(f'<path class="tick" d="M{x(mark):.1f} {bottom}v5"/>'
                     f'<text x="{x(mark):.1f}" y="{bottom + 20}" text-anchor="middle">{number(mark)}</text>')
    parts.append(f'<path class="line" d="M50 {bottom}H{width - 16}"/><text class="name" x="{width - 16}" '
                 f'y="{bottom + 38}" text-anchor="end">{name} '
                 f'({prefix}{unit}) \u2192</text><text class="name" x="50" y="{bottom + 38}">\u2191 Accuracy'
                 "</text></g>")
    if group.full:
        parts.append(_full_line(group.full, y, width))
    for slot, curve, points in reversed(curves):  # the headline's curve last, so that it lies on top
        first = headed is not None and curve.label == headed.label
        parts.append(_curve(group, slot, curve, points, axis, size, prefix, x, y, first))
    if full:
        parts.append(f'<g class="full pt" {_tip(group, full, axis, size, prefix)}><circle '
                     f'cx="{x(getattr(full, axis) / size):.1f}" cy="{y(full.accuracy):.1f}" r="5"/></g>')
    best = headed
    if best and getattr(best, axis) is not None:
        lines = [[(x(getattr(p, axis) / size), y(p.accuracy)) for p in points] for _, _, points in curves]
        if group.full:
            lines.append([(50, y(group.full.accuracy)), (width - 16, y(group.full.accuracy))])
        at = x(getattr(best, axis) / size), y(best.accuracy)
        parts.append(_callout(f"{best.name}, {count_of(best, group.full)} tokens", at, lines, width, bottom))
    for i, (slot, curve, _) in enumerate(curves if legend else []):
        left, top = 50 + (i % columns) * ((width - 60) // columns), bottom + 62 + 22 * (i // columns)
        parts.append(f'<g class="curve c{slot % COLOURS}"><path class="run" d="M{left} {top - 4}h26" '
                     f'stroke-dasharray="{dash(slot)}"/><path class="mark" d="{marker(slot, left + 13, top - 4, 4)}"/>'
                     f'</g><text class="key" x="{left + 34}" y="{top}">{escape(curve.label)}</text>')
    return "".join(parts) + "</svg>"


def _full_line(full, y, width):
    top, base, line = y(full.high), y(full.low), y(full.accuracy)
    return (f'<g class="full"><rect x="50" y="{top:.1f}" width="{width - 66}" height="{base - top:.1f}"/>'
            f'<path d="M50 {line:.1f}H{width - 16}"/><text x="{width - 20}" y="{line - 9:.1f}" text-anchor="end">'
            f'full model {full.accuracy:.3f}</text></g>')


def _callout(text, at, lines, width, bottom):
    """A ring around the headline's point, and its key at the right edge in the row that covers least of the curves."""
    left = width - 34 - 6.8 * len(text)
    drawn = [((1 - t) * ax + t * bx, (1 - t) * ay + t * by) for line in lines
             for (ax, ay), (bx, by) in pairwise(line) for t in (i / 12 for i in range(13))]

    def covered(base):
        return sum(px > left - 6 and base - 16 < py < base + 8 for px, py in drawn)

    base = min((bottom - 14 - 24 * row for row in range(9)), key=covered)
    return (f'<g class="callout"><circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="8.5"/><circle cx="{left:.1f}" '
            f'cy="{base - 4:.1f}" r="6"/><text x="{width - 20}" y="{base:.1f}" text-anchor="end">{escape(text)}'
            "</text></g>")


def _curve(group, slot, curve, points, axis, size, prefix, x, y, first):
    places = [(x(getattr(p, axis) / size), y(p.accuracy), p) for p in points]
    run = "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py, _ in places)
    out = [f'<g class="curve c{slot % COLOURS}{" first" if first else ""}" data-curve="{slot}">']
    if first and len(points) > 1:
        rim = [f"{px:.1f} {y(p.high):.1f}" for px, _, p in places]
        rim += [f"{px:.1f} {y(p.low):.1f}" for px, _, p in reversed(places)]
        out.append(f'<path class="band" d="M{"L".join(rim)}z"/>')
    out.append(f'<path class="run" d="{run}" stroke-dasharray="{dash(slot)}"/>')
    for px, py, p in places:
        out.append(f'<g class="pt" {_tip(group, p, axis, size, prefix)}><path class="whisker" '
                   f'd="M{px:.1f} {y(p.low):.1f}V{y(p.high):.1f}"/><path class="mark" '
                   f'd="{marker(slot, px, py, 4.4 if first else 3.6)}"/></g>')
    return "".join(out) + "</g>"


def _tip(group, point, axis, size, prefix):
    lines = ["full model" if point is group.full else point.name, f"{count_of(point, group.full)} image tokens",
             f"accuracy {point.accuracy:.4f} ({point.low:.3f} to {point.high:.3f})",
             f"{number(getattr(point, axis) / size)} {prefix}{AXES[axis][1]}"]
    if len(point.records) > 1:
        lines.append(f"mean of {len(point.records)} seeds")
    return f'data-tip="{escape(chr(10).join(lines))}"'
