"""The report of a run: one HTML file that needs nothing else, and the same results as SVG and Markdown."""

import json
import os
import tempfile
from html import escape
from pathlib import Path
from string import Template

from . import overlays, pictures, published_chart, report_promised
from .chart import AXES, COLOURS, DARK, LIGHT, chart, dash, marker, slots_of
from .plan_chart import plan_chart
from .record import FILE_NAME, read
from .report_data import COSTS, mean_of, page_data
from .report_table import DASH, cells_table, methods_table, ranges_note
from .summary import TOLERANCE, change, common, count_of, group_records, headline, whole_percent

ASSETS = Path(__file__).parent / "report_assets"
STYLES = ("chart.css", "style.css", "explore.css", "promised.css")
SCRIPTS = ("page.js", "scale.js", "curves.js", "explore.js", "overlay.js", "table.js")
_CODES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})

def _asset(name):
    return (ASSETS / name).read_text(encoding="utf-8")


def _load(run_dir):
    path = Path(run_dir) / FILE_NAME
    records = read(path)
    if not records:
        raise ValueError(f"no records in {path}: `budgetprune eval --out {run_dir}` makes them "
                         "(`make demo` does so for the bundled task)")
    return records


def write_report(run_dir, out=None, *, command=None, shape=None, on=None) -> Path:
    """Write the report of `run_dir`/records.jsonl and, where it exists, pictures.jsonl; returns its path.

    out: the HTML file, `run_dir`/report.html where None; replaced in one step, never half-written.
    command: what the footer names as the command that made the run.
    shape, on: the cost.VlmShape and cost.Device of rooflines; None: those that the records name, where they are known.
    ValueError: no records (the message names the command that makes them), or a line or image that cannot be used.
    """
    run_dir = Path(run_dir)
    groups = group_records(_load(run_dir))
    records = [record for group in groups for record in group.records]
    first = headline(groups[0])
    slots, shots = slots_of(groups), pictures.read(run_dir)
    wanted = (first.point.records[0].spares, first.point.keep) if first.point else None
    cards, hero, scenes = overlays.section(run_dir, shots, wanted) if shots else ("", "", None)
    data = page_data(groups, slots) | {"pictures": scenes}
    methods = methods_table(groups, slots)
    even, promised, bounds = report_promised.section(groups, slots, shape, on)
    page = Template(_asset("page.html")).substitute(
        title=escape(f"{groups[0].task}, {groups[0].model}: image token budgets"),
        style=_palette() + "".join(map(_asset, STYLES)), script="".join(map(_asset, SCRIPTS)),
        eyebrow=escape(f"{groups[0].task} · {groups[0].model}"),
        sentence=escape(first.sentence), tiles=_tiles(groups[0], first), hero=hero,
        keys=_keys(slots), controls=_controls(groups),
        charts="".join(_charts(i, group, len(groups) > 1, slots) for i, group in enumerate(groups)),
        methods=methods, methods_hidden="" if methods else "hidden", ranges=escape(ranges_note(groups)),
        promised_hidden="" if promised else "hidden", even=even, promised=promised, bounds=escape(bounds),
        published=published_chart.section(),
        table=cells_table(groups, slots), pictures_hidden="" if cards else "hidden", cards=cards,
        data=json.dumps(data, ensure_ascii=False).translate(_CODES),
        tolerance=f"{TOLERANCE:g}", footer=_footer(records, command or f"budgetprune report {run_dir}"),
    )
    return _write(Path(out) if out else run_dir / "report.html", page)


def write_chart_svg(records, out, *, axis="prefill_flops", task=None, model=None) -> Path:
    """Write accuracy over `axis` ("prefill_flops" or "prefill_ms") as an SVG file that stands alone; returns its path.

    task, model: which of several are drawn. ValueError: none or more than one is left, or the axis was not measured.
    """
    if axis not in AXES:
        raise ValueError(f"axis must be {' or '.join(AXES)}, got {axis!r}")
    groups = [g for g in group_records(records) if task in (None, g.task) and model in (None, g.model)]
    if len(groups) != 1:
        found = ", ".join(f"{g.task} with {g.model}" for g in groups) or "none"
        raise ValueError(f"task and model must leave one pair to draw, got {found}")
    svg = chart(groups[0], axis, 720, 440, legend=True, style=_style())
    if svg is None:
        raise ValueError(f"no record has {axis}")
    return _write(Path(out), svg + "\n")


def write_plan_svg(plan, fit, points, out) -> Path:
    """Write predicted error over image tokens at a budget of FLOPs as an SVG file that stands alone; returns its path.

    plan, fit: of cost.plan_budget and cost.fit_scaling; points: what was fitted, drawn in grey.
    """
    return _write(Path(out), plan_chart(plan, fit, points, style=_style()) + "\n")


def _palette():
    light, dark = (";".join(f"--c{i}:{colour}" for i, colour in enumerate(c)) for c in (LIGHT, DARK))
    curves = "".join(f".c{i}{{color:var(--c{i})}}" for i in range(COLOURS))
    return f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}{curves}"


def _style():
    """For a picture that stands alone."""
    return f"<style>{_palette()}{_asset('chart.css')}</style>"


def _tiles(group, first):
    """The headline's numbers, large."""
    if first.point is None:
        return ""
    point, full = first.point, group.full
    tiles = [(count_of(point, full).replace(" of ", "<small> of ") + ("</small>" if full else ""), "image tokens kept"),
             (f"{point.accuracy:.3f}", f"accuracy, full model {full.accuracy:.3f}" if full else "accuracy")]
    for name, text in (("prefill_flops", "prefill FLOPs"), ("prefill_ms", "prefill time")):
        ratio = change(getattr(point, name), getattr(full, name)) if full else None
        if ratio is not None:
            sign = "" if not ratio else "\u2212" if ratio < 0 else "+"
            tiles.append((f"{sign}{whole_percent(ratio)}<small>\u00a0%</small>", text))
    return "".join(f"<div><dd>{value}</dd><dt>{text}</dt></div>" for value, text in tiles)


def _charts(number, group, several, slots):
    """One task's charts as they stand without script, which draws another in their place."""
    figures = []
    for axis, (_, unit, _) in AXES.items():
        wide = chart(group, axis, slots=slots)
        what = "FLOPs" if unit == "FLOPs" else "time"
        if wide is None:
            figures.append(f'<p class="missing">Prefill {what}: not recorded.</p>')
        else:
            figures.append(f'<figure><h3>Accuracy over prefill {what}</h3><div class="wide">{wide}</div>'
                           f'<div class="narrow">{chart(group, axis, 350, 310, slots=slots)}</div></figure>')
    head = (f'<h3 class="pair">{escape(group.task)} · {escape(group.model)}</h3>'
            f'<p>{escape(headline(group).sentence)}</p>' if several else "")
    return (f'<div class="group" id="group-{number}">{head}<figure class="drawn"><h3></h3><div class="plot"></div>'
            f'<figcaption></figcaption></figure><div class="pairing">{"".join(figures)}</div></div>')


def _keys(slots):
    """The legend, whose keys the script makes filters."""
    return "".join(
        f'<button type="button" data-curve="{slot}" aria-pressed="true"><svg class="c{slot % COLOURS}" '
        f'viewBox="0 0 30 14" aria-hidden="true"><path class="run" d="M1 7h28" stroke-dasharray="{dash(slot)}"/>'
        f'<path class="mark" d="{marker(slot, 15, 7, 4.2)}"/></svg>{escape(label)}</button>'
        for label, slot in slots.items())


def _controls(groups):
    """What the script listens to: which cost, which task, which score. A cost that no cell has says why."""
    points = [point for group in groups for point in (group.full, *group.points) if point]
    costs, reasons = [], {}
    for cost in COSTS:
        known = any(mean_of(point, cost.field) is not None for point in points)
        if not known:
            reasons.setdefault(cost.missing, []).append(cost.short)
        costs.append(f'<label{"" if known else " class=off"}><input type="radio" name="cost" value="{cost.field}"'
                     f'{"" if known else " disabled aria-describedby=off"}>{cost.short}</label>')
    reason = " ".join(f"{', '.join(names)}: {why}." for why, names in reasons.items())
    tasks = "".join(f'<option value="{i}">{escape(g.task)} · {escape(g.model)}</option>' for i, g in enumerate(groups))
    return (f'<fieldset class="costs"><legend>Cost</legend>{"".join(costs)}</fieldset>'
            f'<label{" hidden" if len(groups) < 2 else ""}>Task <select id="task"><option value="all">all {len(groups)}'
            f'</option>{tasks}</select></label><label hidden>Score <select id="score"></select></label>'
            '<label class="check"><input type="checkbox" id="front" checked> Pareto front '
            '<svg class="swatch" viewBox="0 0 22 10" aria-hidden="true"><path class="front" d="M1 5h20"/></svg></label>'
            '<label class="check"><input type="checkbox" id="bars" checked> intervals</label>'
            f'<p id="off" class="off">{escape(reason)}</p>')


def _footer(records, command):
    times = sorted(r.time for r in records if r.time)
    span = "" if not times else times[0] if times[0][:10] == times[-1][:10] else f"{times[0][:10]} to {times[-1][:10]}"
    entries = [("Command", f"<code>{escape(command)}</code>"), ("Date", escape(span.replace("T", " ")))]
    for title, name in (("Machine", "device"), ("torch", "torch"), ("Commit", "commit"), ("Seed", "seed"),
                        ("Samples", "samples"), ("Timed batch", "latency_batch")):
        values = [str(v) for v in common(records, name) if v not in ("", None)]
        entries.append((title + ("s" if len(values) > 1 and title in ("Machine", "Commit", "Seed") else ""),
                        ", ".join(escape(v) for v in values)))
    return "".join(f"<div><dt>{title}</dt><dd>{value or DASH}</dd></div>" for title, value in entries)


def _write(path, text):
    """All or nothing: a file beside the target, then a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    return path
