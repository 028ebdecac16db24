"""The published figures as small panels, one for each source: sources do not compare, so no two share an axis."""

from html import escape

from .chart import Scale, number
from .published import MODEL, full_of, published, relative

LEFT, RIGHT, TOP, FOOT = 44, 14, 14, 44


def panel(curves: dict, title: str, across: str, *, width=350, height=280) -> str:
    """An <svg> of {label: [(x, y, what the tip says)]}, all grey. x falls from left to right, so that the lines end
    where methods differ most, and labels stand there, one below another.

    across: what the x axis is.
    """
    room = 14 + 6.6 * max(map(len, curves))
    right, bottom = width - RIGHT - room, height - FOOT
    places = [place for points in curves.values() for place in points]
    x = Scale([p[0] for p in places], right, LEFT, 4, 0.06)
    y = Scale([p[1] for p in places], bottom, TOP, 5, 0.05)
    parts = [f'<svg class="chart published" viewBox="0 0 {width} {height}" role="group" tabindex="0" '
             f'aria-label="{escape(f"Published, not measured here: {title}")}"><g class="axis">']
    for mark in y.marks:
        parts.append(f'<path class="grid" d="M{LEFT} {y(mark):.1f}H{right:.1f}"/><text x="{LEFT - 7}" '
                     f'y="{y(mark) + 4:.1f}" text-anchor="end">{mark:g}</text>')
    for mark in sorted({p[0] for p in places}) if len({p[0] for p in places}) < 5 else x.marks:
        parts.append(f'<path class="tick" d="M{x(mark):.1f} {bottom}v5"/><text x="{x(mark):.1f}" y="{bottom + 19}" '
                     f'text-anchor="middle">{number(mark)}</text>')
    parts.append(f'<path class="line" d="M{LEFT} {bottom}H{right:.1f}"/><text class="name" x="{LEFT}" '
                 f'y="{bottom + 37}">\u2191 % of full, over {escape(across)} \u2192</text></g>')
    ends = {label: (x(points[-1][0]), y(points[-1][1])) for label, points in curves.items()}
    bases = apart({label: at[1] + 4 for label, at in ends.items()}, TOP + 4, bottom + 2)
    for label, points in curves.items():
        line = "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b, _ in points)
        parts.append(f'<g class="curve published"><path class="run" d="M{line}"/>')
        for a, b, tip in points:
            parts.append(f'<g class="pt" data-tip="{escape(tip)}"><circle class="mark" cx="{x(a):.1f}" '
                         f'cy="{y(b):.1f}" r="3.2"/></g>')
        at = ends[label]
        parts.append(f'<path class="lead-line" d="M{at[0] + 4:.1f} {at[1]:.1f}L{right + 8:.1f} '
                     f'{bases[label] - 4:.1f}"/><text x="{right + 11:.1f}" y="{bases[label]:.1f}">{escape(label)}'
                     '</text></g>')
    return "".join(parts) + "</svg>"


def apart(wanted: dict, low: float, high: float, step: float = 13.0) -> dict:
    """{label: base line}, each as close to the wanted one as leaves `step` between neighbours within [low, high]."""
    order = sorted(wanted, key=wanted.get)
    step = min(step, (high - low) / max(1, len(order) - 1))
    bases, floor = {}, low
    for label in order:
        bases[label] = floor = max(wanted[label], floor)
        floor += step
    ceiling = high
    for label in reversed(order):
        bases[label] = ceiling = min(bases[label], ceiling)
        ceiling -= step
    return bases


def section() -> str:
    """The figures of the report, then every row with its source as a table that opens."""
    return f'<div class="panels">{"".join(_figures())}</div>{_tables()}'


def _figures():
    sources = published()["sources"]
    for key, source in sources.items():
        rows = [row for row in published()["relative"] if row["source"] == key]
        if not rows:
            continue
        curves = {}
        for row in sorted(rows, key=lambda row: -row["tokens"]):
            curves.setdefault(row["method"], []).append((row["tokens"], row["relative"], _tip(row, source)))
        title = source["title"] if source["set"] == key and len(key) > 2 else f"{key}: {source['title']}"
        yield _figure(panel(curves, title, "fewer tokens"), title,
                      f"{MODEL}. Compare within this panel only: no other has its tasks and its full model.")
    rows = [row for row in published()["scores"] if "tera_flops" in row]
    for key in dict.fromkeys(row["source"] for row in rows):
        source, curves = sources[key], {}
        for row in rows:
            if row["source"] == key:
                share = 100 * row["tera_flops"] / source["full_tera_flops"]
                curves.setdefault(row["method"], []).append((share, relative(row), _tip(row, source)))
        for points in curves.values():
            points.sort(reverse=True)
        both = (f'<div class="{name}">{panel(curves, source["title"], "less of its FLOPs, %", width=width)}</div>'
                for name, width in (("wide", 740), ("narrow", 350)))
        yield _figure("".join(both), source["title"],
                      f"{MODEL}, the mean of its {len(source['tasks'])} scores over the full model's. FLOPs are "
                      f"{escape(source['flops'])}, so only their share is shown.", "broad")


def _figure(svg, title, words, kind="small"):
    return (f'<figure class="{kind}"><h3>{escape(title)}</h3><p class="stamp">published, not measured here</p>{svg}'
            f'<figcaption>{words}</figcaption></figure>')


def _tip(row, source):
    what = f"{row['tokens']} image tokens: {row['relative']:g} % of full" if "relative" in row else \
        f"{row['detail']}: {relative(row):.1f} % of full, {row['tera_flops']:g} TFLOPs"
    lines = [row["method"], "published, not measured here", what, row.get("note", ""), source["title"],
             "third party" if row["third_party"] else "the authors' own figure"]
    return "\n".join(filter(None, lines))


def _tables():
    sources = published()["sources"]
    head = ("Method", "Image tokens", "Figures", "Of full", "By", "Source")
    rows = []
    for row in published()["relative"] + published()["scores"]:
        source = sources[row["source"]]
        if "relative" in row:
            model, figures, share = MODEL, "mean over its tasks", f"{row['relative']:g}\u00a0%"
        else:
            model = row["model"]
            figures = ", ".join(f"{task} {score:g}" for task, score in row["scores"].items())
            known = relative(row)
            share = "full" if row is full_of(row) else "\u2013" if known is None else f"{known:.1f}\u00a0% (computed)"
        detail = "; ".join(filter(None, ("" if model == MODEL else model, row.get("detail"), row.get("note"))))
        read = {"picture": ", read off a picture", "secondary": ", at second hand"}.get(source["read_from"], "")
        cells = [escape(row["method"]) + (f"<small>{escape(detail)}</small>" if detail else ""),
                 escape(str(row.get("tokens_said", row["tokens"]))), escape(figures), share,
                 "third party" if row["third_party"] else "its authors",
                 f"{escape(source['title'])}<small>{escape(source['where'])}{read}</small>"]
        rows.append(f'<tr><th scope="row">{cells[0]}</th>{"".join(f"<td>{cell}</td>" for cell in cells[1:])}</tr>')
    names = "".join(f'<th scope="col">{name}</th>' for name in head)
    return (f'<details><summary>All {len(rows)} published rows, each with its source</summary><div class="scroll" '
            'role="region" aria-label="Published rows, scrollable" tabindex="0"><table class="plain"><caption>'
            "Restated from the papers; none was measured here. Read off pictures and second-hand copies as marked."
            f"</caption><thead><tr>{names}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></details>")
