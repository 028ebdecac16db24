"""Predicted error over image tokens at fixed FLOPs as SVG: the law's curve, its best point, the measured points."""

from html import escape
from itertools import groupby, pairwise

from ..cost import BudgetPlan, ScalingFit
from ..cost.budget_plan import size_for
from .chart import Scale, marker, number, unit_of

GREY = 7  # the last colour of the palette
STEPS = 160


def answer(choice) -> str:
    """One way to spend a budget in words."""
    return f"{choice.size:.3g} B and {choice.tokens} image token{'s' if choice.tokens > 1 else ''}"


def plan_chart(plan: BudgetPlan, fit: ScalingFit, points, width=720, height=470, *, style="") -> str:
    """The figure as an <svg> that stands alone; under every tick stands the model size that the budget leaves.

    points: what was fitted, in grey. style: a <style> element with the palette and chart.css.
    """
    left, right, top, bottom = 54, width - 20, 30, height - 92
    counts = sorted({round(plan.most ** (i / STEPS), 4) for i in range(STEPS + 1)} | {float(plan.best.tokens)})
    sizes = [size_for(plan.flops, v, plan.text_tokens) for v in counts]
    line = [fit.error(size, v) for size, v in zip(sizes, counts)]
    rims = [fit.interval(lambda a, alpha, beta, d, n=n, v=v: a * n**-alpha * v**-beta + d)
            for n, v in zip(sizes, counts)] if fit.draws else []
    errors = line + [p.error for p in points] + [c.error for c in plan.choices]
    room = 0.1 * (max(errors) - min(errors))  # for the words under the best point
    x = Scale([1, plan.most, *(p.tokens for p in points)], left, right - 34, 8, 0.02)
    y = Scale([min(errors) - room, max(errors)], bottom, top, 6, 0.04, (0, 1))
    prefix, unit = unit_of([plan.flops], "prefill_flops")
    spent = f"{number(plan.flops / unit)} {prefix}FLOPs, {plan.text_tokens} text tokens"
    parts = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" xmlns="http://www.w3.org/2000/svg" '
             f'aria-label="{escape(f"Predicted error over image tokens at {spent}; least at {answer(plan.best)}")}">',
             style, '<g class="axis">']
    for mark in y.marks:
        parts.append(f'<path class="grid" d="M{left} {y(mark):.1f}H{right}"/>'
                     f'<text x="{left - 8}" y="{y(mark) + 4:.1f}" text-anchor="end">{mark:.3g}</text>')
    for mark in x.marks:
        parts.append(f'<path class="tick" d="M{x(mark):.1f} {bottom}v5"/><text class="count" x="{x(mark):.1f}" '
                     f'y="{bottom + 19}" text-anchor="middle">{number(mark)}</text><text x="{x(mark):.1f}" '
                     f'y="{bottom + 34}" text-anchor="middle">'
                     f'{size_for(plan.flops, mark, plan.text_tokens):.2g} B</text>')
    parts.append(f'<path class="line" d="M{left} {bottom}H{right}"/><text class="name" x="{right}" y="{bottom + 54}" '
                 f'text-anchor="end">Image tokens, and the model that the rest pays for \u2192</text>'
                 f'<text class="name" x="{left}" y="{bottom + 54}">\u2191 Error</text></g>')
    parts += [_measured(points, size, x, y) for size in sorted({p.size for p in points})]
    parts.append('<g class="curve c0 first">')
    if rims:
        band = [f"{x(v):.1f} {y(high):.1f}" for v, (_, high) in zip(counts, rims)]
        band += [f"{x(v):.1f} {y(low):.1f}" for v, (low, _) in reversed(list(zip(counts, rims)))]
        parts.append(f'<path class="band" d="M{"L".join(band)}z"/>')
    places = [(x(v), y(e), fit.sizes[0] <= n <= fit.sizes[1] and fit.tokens[0] <= v <= fit.tokens[1])
              for v, e, n in zip(counts, line, sizes)]
    for within, pairs in groupby(pairwise(places), key=lambda pair: pair[0][2] and pair[1][2]):
        pairs = list(pairs)
        run = "L".join(f"{px:.2f} {py:.2f}" for px, py, _ in [pairs[0][0], *(second for _, second in pairs)])
        parts.append(f'<path class="run" d="M{run}" stroke-dasharray="{"" if within else "6 4"}"/>')
    for choice in plan.choices:
        px, py = x(choice.tokens), y(choice.error)
        parts.append(f'<path class="mark" d="{marker(0, px, py, 4)}"><title>{escape(_tip(choice))}</title></path>')
    drawn = [(x(p.tokens), y(p.error)) for p in points] + [(px, py) for px, py, _ in places]
    parts.append("</g>" + _ring(plan.best, x, y, left, right, drawn))
    keys = (("c0 first", left, f"the law at {spent}; dashed: extrapolated"),
            (f"c{GREY}", left + (right - left) * 5 // 8, "measured, by size of the model"))
    base = bottom + 80
    for colour, at, text in keys:
        parts.append(f'<g class="curve {colour}"><path class="run" d="M{at} {base - 4}h26"/></g>'
                     f'<text class="key" x="{at + 34}" y="{base}">{escape(text)}</text>')
    return "".join(parts) + "</svg>"


def _tip(choice):
    return f"{answer(choice)}: error {choice.error:.4f}"


def _measured(points, size, x, y):
    """One model's points in grey with its size at the end."""
    own = sorted((p for p in points if p.size == size), key=lambda p: p.tokens)
    places = [(x(p.tokens), y(p.error)) for p in own]
    marks = "".join(f'<path class="mark" d="{marker(0, px, py, 3)}"/>' for px, py in places)
    return (f'<g class="curve measured c{GREY}"><path class="run" d="M{"L".join(f"{a:.1f} {b:.1f}" for a, b in places)}'
            f'"/>{marks}</g><text x="{places[-1][0] + 7:.1f}" y="{places[-1][1] + 4:.1f}">{size:g} B</text>')


def _ring(best, x, y, left, right, drawn):
    """A ring around the best point, and its words below or above, where they cover less of what is drawn."""
    px, py, text = x(best.tokens), y(best.error), _tip(best)
    anchor, share = ("start", 0) if px < left + 130 else ("end", 1) if px > right - 130 else ("middle", 0.5)
    start = px - share * 6.8 * len(text)

    def covered(base):
        return sum(start < a < start + 6.8 * len(text) and base - 14 < b < base + 4 for a, b in drawn)

    base = min((py + 25, py - 16), key=covered)
    return (f'<g class="callout minimum" data-tokens="{best.tokens}" data-size="{best.size:.6g}"><circle '
            f'cx="{px:.2f}" cy="{py:.2f}" r="8.5"/><text x="{px:.1f}" y="{base:.1f}" text-anchor="{anchor}">'
            f'{escape(text)}</text></g>')
