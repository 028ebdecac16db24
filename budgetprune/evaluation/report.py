"""The report of a run: one HTML file that needs nothing else, and the same results as SVG and Markdown."""

import json
import os
import tempfile
from html import escape
from pathlib import Path
from string import Template

from . import pictures
from .chart import AXES, COLOURS, DARK, LIGHT, chart, curve_order, dash, marker
from .plan_chart import plan_chart
from .record import FILE_NAME, read
from .summary import FULL, TOLERANCE, change, common, count_of, group_records, headline, option_labels, whole_percent

ASSETS = Path(__file__).parent / "report_assets"
DASH = "\u2013"
_CODES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})

# name, unit, what the cell shows, title; the first two columns (method, kept) are written apart
COLUMNS = (
    ("accuracy", "Accuracy", "fraction", lambda r: f"{r.accuracy:.4f}"),
    ("ci95", "95\u00a0% interval", "", lambda r: f"{r.ci95[0]:.4f} to {r.ci95[1]:.4f}"),
    ("kept_recall", "Kept recall", "fraction", lambda r: f"{r.kept_recall:.3f}"),
    ("prefill_flops", "Prefill", "FLOPs", lambda r: f"{r.prefill_flops:,}".replace(",", "\u202f")),
    ("share", "Prefill FLOPs", "vs full", None),
    ("prefill_ms", "Prefill", "ms", lambda r: f"{r.prefill_ms:.3f}"),
    ("decode_ms_per_token", "Decode", "ms/token", lambda r: f"{r.decode_ms_per_token:.3f}"),
    ("peak_bytes", "Peak memory", "MiB", lambda r: f"{r.peak_bytes / 2**20:.1f}"),
    ("samples", "Samples", "", lambda r: str(r.samples)),
    ("seed", "Seed", "", lambda r: str(r.seed)),
)


def _asset(name):
    return (ASSETS / name).read_text(encoding="utf-8")


def _load(run_dir):
    path = Path(run_dir) / FILE_NAME
    records = read(path)
    if not records:
        raise ValueError(f"no records in {path}: `budgetprune eval --out {run_dir}` makes them "
                         "(`make demo` does so for the bundled task)")
    return records


def write_report(run_dir, out=None, *, command=None) -> Path:
    """Write the report of `run_dir`/records.jsonl and, where it exists, pictures.jsonl; returns its path.

    out: the HTML file, `run_dir`/report.html where None; replaced in one step, never half-written.
    command: what the footer names as the command that made the run.
    ValueError: no records (the message names the command that makes them), or a line or image that cannot be used.
    """
    run_dir = Path(run_dir)
    groups = group_records(_load(run_dir))
    records = [record for group in groups for record in group.records]
    first = headline(groups[0])
    shots = pictures.read(run_dir)
    wanted = (first.point.records[0].method, first.point.keep) if first.point else None
    cards, hero, data = pictures.section(run_dir, shots, wanted) if shots else ("", "", [])
    page = Template(_asset("page.html")).substitute(
        title=escape(f"{groups[0].task}, {groups[0].model}: image token budgets"),
        style=_palette() + _asset("chart.css") + _asset("style.css"),
        script=_asset("script.js"),
        eyebrow=escape(f"{groups[0].task} · {groups[0].model}"),
        sentence=escape(first.sentence), tiles=_tiles(groups[0], first), hero=hero,
        charts="".join(_charts(i, group, len(groups) > 1) for i, group in enumerate(groups)),
        table=_table(groups), pictures_hidden="" if cards else "hidden", cards=cards,
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


def markdown_table(records) -> str:
    """The records as a Markdown table, one row per cell, the full model first; a dash where nothing was measured."""
    head = ("method", "kept tokens", "accuracy", "95 % interval", "kept recall", "prefill GFLOPs", "vs full",
            "prefill ms", "decode ms/token")
    lines = [f"| {' | '.join(head)} |", "|---|" + "--:|" * (len(head) - 1)]
    groups = group_records(records)
    for group in groups:
        if len(groups) > 1:
            lines.append(f"| **{_cell(group.task)}, {_cell(group.model)}** |" + " |" * 8)
        labels = option_labels(group.records)
        for r in _rows(group):
            share = _share(r, group)
            lines.append("| " + " | ".join([
                _cell(labels[r.key()]), str(r.keep) + _over_layers(r), f"{r.accuracy:.3f}",
                f"{r.ci95[0]:.3f} to {r.ci95[1]:.3f}",
                _known(r.kept_recall, ".3f"), _known(r.prefill_flops and r.prefill_flops / 1e9, ".3f"),
                DASH if share is None else _percent(share), _known(r.prefill_ms, ".2f"),
                _known(r.decode_ms_per_token, ".2f")]) + " |")
    return "\n".join(lines) + "\n"


def _known(value, form):
    return DASH if value is None else format(value, form)


def _over_layers(record):
    """Behind K: what papers on pruning inside the language model call the number of tokens."""
    return "" if record.layer_mean is None else f" ({record.layer_mean:.1f} over layers)"


def _cell(text):
    return escape(text, quote=False).replace("|", "\\|").replace("\n", " ")


def _percent(ratio):
    return "0\u00a0%" if abs(ratio) < 5e-4 else f"{ratio:+.1%}".replace("-", "\u2212").replace("%", "\u00a0%")


def _rows(group):
    """The full model first, then curve by curve, by budget and seed."""
    labels = option_labels(group.records)
    place = {curve.label: i for i, curve in enumerate(curve_order(group))}
    return sorted(group.records, key=lambda r: (place.get(labels[r.key()], -1), r.keep, r.seed, r.samples))


def _share(record, group):
    return change(record.prefill_flops, group.full.prefill_flops) if group.full else None


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


def _charts(number, group, several):
    figures = []
    for axis, (_, unit, _) in AXES.items():
        wide = chart(group, axis)
        what = "FLOPs" if unit == "FLOPs" else "time"
        if wide is None:
            figures.append(f'<p class="missing">Prefill {what}: not recorded.</p>')
        else:
            figures.append(f'<figure><h3>Accuracy over prefill {what}</h3><div class="wide">{wide}</div>'
                           f'<div class="narrow">{chart(group, axis, 350, 310)}</div></figure>')
    keys = "".join(
        f'<button type="button" data-curve="{slot}" aria-pressed="false"><svg class="c{slot % COLOURS}" '
        f'viewBox="0 0 30 14" aria-hidden="true"><path class="run" d="M1 7h28" stroke-dasharray="{dash(slot)}"/>'
        f'<path class="mark" d="{marker(slot, 15, 7, 4.2)}"/></svg>{escape(curve.label)}</button>'
        for slot, curve in enumerate(curve_order(group)))
    head = (f'<h3 class="pair">{escape(group.task)} · {escape(group.model)}</h3>'
            f'<p>{escape(headline(group).sentence)}</p>' if several else "")
    return (f'<div class="group" id="group-{number}">{head}<div class="keys" role="group" '
            f'aria-label="Methods; press to single one out">{keys}</div>'
            f'<div class="pairing">{"".join(figures)}</div></div>')


def _table(groups):
    several = len(groups) > 1
    averaged = any(r.kept_mean not in (None, r.keep) for g in groups for r in g.records)
    head = [("Method", "")] + ([("Task", ""), ("Model", "")] if several else [])
    head += [("Kept", "tokens")] + ([("Mean kept", "tokens")] if averaged else [])
    head += [(title, unit) for _, title, unit, _ in COLUMNS]
    words = ' class="words"'
    cells = "".join(f'<th scope="col" aria-sort="none"{words if title in ("Task", "Model", "Method") else ""}>'
                    f'<button type="button">{title}'
                    f'{f"<small>{unit}</small>" if unit else ""}</button></th>' for title, unit in head)
    rows = []
    for group in groups:
        labels = option_labels(group.records)
        place = {curve.label: i for i, curve in enumerate(curve_order(group))}
        for record in _rows(group):
            label = labels[record.key()]
            slot = place.get(label)
            dot = f'<i class="c{slot % COLOURS}"></i>' if slot is not None else "<i></i>"
            note = " <small>full model</small>" if record.method == FULL else ""
            row = [f'<th scope="row">{dot}{escape(label)}{note}</th>']
            row += [f"<td>{escape(text)}</td>" for text in (record.task, record.model)] if several else []
            row.append(_number(record.keep, f"{record.keep}<small>{_over_layers(record)}</small>"
                               if record.layer_mean is not None else str(record.keep)))
            if averaged:
                row.append(_number(record.kept_mean, _known(record.kept_mean, ".2f")))
            for name, _, _, show in COLUMNS:
                value = _share(record, group) if name == "share" else getattr(record, name)
                text = DASH if value is None else _percent(value) if name == "share" else show(record)
                row.append(_number(value[0] if name == "ci95" else value, text))
            rows.append(f'<tr{" class=full" if record.method == FULL else ""}>{"".join(row)}</tr>')
    return f"<thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody>"


def _number(value, text):
    return f'<td class="n" data-v="{"" if value is None else repr(value)}">{text}</td>'


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
