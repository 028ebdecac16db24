"""The report's tables: every cell of a run, and every method in one line; and every cell as Markdown."""

from html import escape

from .chart import COLOURS, curve_order, number, unit_of
from .record import in_layers
from .report_data import areas, common_range, front
from .summary import FULL, TOLERANCE, change, group_records, option_labels

DASH = "\u2013"

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
                _cell(labels[r.key()]), str(r.keep) + _over_layers(r) + _in_layers(r), f"{r.accuracy:.3f}",
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


def _in_layers(record):
    return "" if record.layers is None else f" in {in_layers(record.layers)}"


def _cell(text):
    return escape(text, quote=False).replace("|", "\\|").replace("\n", " ")


def _percent(ratio):
    return "0\u00a0%" if abs(ratio) < 5e-4 else f"{ratio:+.1%}".replace("-", "\u2212").replace("%", "\u00a0%")


def _rows(group, slots=None):
    """The full model first, then curve by curve, by budget and seed."""
    labels = option_labels(group.records)
    slots = slots or {curve.label: i for i, curve in enumerate(curve_order(group))}
    return sorted(group.records, key=lambda r: (slots.get(labels[r.key()], -1), r.keep, r.layers or 0, r.seed,
                                                r.samples))


def _share(record, group):
    return change(record.prefill_flops, group.full.prefill_flops) if group.full else None


def cells_table(groups, slots) -> str:
    """<thead> and <tbody> of every cell, with a column for each metric that a task reports."""
    several = len(groups) > 1
    records = [r for group in groups for r in group.records]
    spared = any(r.layers is not None for r in records)
    averaged = any(r.kept_mean not in (None, r.keep) for r in records)
    metrics = list(dict.fromkeys(name for r in records for name in r.metrics or {}))
    head = [("Method", "")] + ([("Task", ""), ("Model", "")] if several else [])
    head += [("Kept", "tokens")] + ([("Layers", "run")] if spared else [])
    head += [("Mean kept", "tokens")] if averaged else []
    head += [(title, unit) for _, title, unit, _ in COLUMNS]
    head[-2:-2] = [(name.replace("_", " "), "metric") for name in metrics]
    rows = []
    for number_, group in enumerate(groups):
        labels = option_labels(group.records)
        for record in _rows(group, slots):
            label = labels[record.key()]
            slot = slots.get(label)
            note = " <small>full model</small>" if record.method == FULL else ""
            row = [f'<th scope="row">{_dot(slot)}{escape(label)}{note}</th>']
            row += [f"<td>{escape(text)}</td>" for text in (record.task, record.model)] if several else []
            row.append(_number(record.keep, f"{record.keep}<small>{_over_layers(record)}</small>"
                               if record.layer_mean is not None else str(record.keep)))
            if spared:
                row.append(_number(record.layers, "all" if record.layers is None else str(record.layers)))
            if averaged:
                row.append(_number(record.kept_mean, _known(record.kept_mean, ".2f")))
            values = []
            for name, _, _, show in COLUMNS:
                value = _share(record, group) if name == "share" else getattr(record, name)
                text = DASH if value is None else _percent(value) if name == "share" else show(record)
                values.append(_number(value[0] if name == "ci95" else value, text))
            known = [(record.metrics or {}).get(name) for name in metrics]
            values[-2:-2] = [_number(value, _known(value, ".4g" if value and value > 1 else ".4f")) for value in known]
            rows.append(_row(row + values, number_, slot, record.method == FULL))
    return _head(head) + f"<tbody>{''.join(rows)}</tbody>"


def methods_table(groups, slots) -> str:
    """A table of every method in one line, the largest area first; "" where no task has two points of a curve."""
    several, rows = len(groups) > 1, []
    for number_, group in enumerate(groups):
        found = areas(group)
        flops = {id(point) for point in front(group, "prefill_flops")}
        for curve in sorted(group.curves, key=lambda c: -found.get(c.label, -1)):
            slot, area = slots[curve.label], found.get(curve.label)
            best = max(curve.points, key=lambda p: (p.accuracy, -p.keep))
            near = [p.keep for p in curve.points
                    if group.full and p.accuracy >= group.full.accuracy - TOLERANCE - 1e-9]
            on_front = [p.place for p in curve.points if id(p) in flops]
            row = [f'<th scope="row">{_dot(slot)}{escape(curve.label)}</th>']
            row += [f"<td>{escape(text)}</td>" for text in (group.task, group.model)] if several else []
            row += [_number(area, _known(area, ".4f")), _number(min(near, default=None), str(min(near, default=DASH))),
                    _number(len(on_front) or None, ", ".join(on_front) or DASH),
                    _number(best.accuracy, f"{best.accuracy:.4f}<small> at {best.place}</small>")]
            rows.append(_row(row, number_, slot, False))
    if not rows:
        return ""
    head = [("Method", "")] + ([("Task", ""), ("Model", "")] if several else [])
    head += [("Area under curve", "accuracy over log FLOPs"), ("Fewest tokens", f"within {TOLERANCE:g} of full"),
             ("On the Pareto front", "at tokens kept"), ("Best accuracy", "at tokens kept")]
    return _head(head) + f"<tbody>{''.join(rows)}</tbody>"


def ranges_note(groups) -> str:
    """Between which costs the areas are, in words."""
    ranges = {}
    for group in groups:
        if at := common_range(group):
            prefix, size = unit_of(at, "prefill_flops")
            said = f"{number(at[0] / size)} to {number(at[1] / size)} {prefix}FLOPs"
            ranges.setdefault(said, []).append(f"{group.task}, {group.model}")
    said = [words + (f" ({', '.join(where)})" if len(ranges) > 1 else "") for words, where in ranges.items()]
    if not said:
        return "No area: no method has two cells with known FLOPs."
    return (f"The area is the mean accuracy between {'; '.join(said)}, where halving the cost counts as much "
            "everywhere; the range is chosen so that as many methods as possible span as much of it as possible. A "
            "dash: the method's cells do not span it.")


def _dot(slot):
    return f'<i class="c{slot % COLOURS}"></i>' if slot is not None else "<i></i>"


def _row(cells, group, slot, full):
    mark = f' data-slot="{slot}"' if slot is not None else ""
    return f'<tr data-group="{group}"{mark}{" class=full" if full else ""}>{"".join(cells)}</tr>'


def _head(head):
    words = ' class="words"'
    cells = "".join(f'<th scope="col" aria-sort="none"{words if title in ("Task", "Model", "Method") else ""}>'
                    f'<button type="button">{escape(title)}'
                    f'{f"<small>{unit}</small>" if unit else ""}</button></th>' for title, unit in head)
    return f"<thead><tr>{cells}</tr></thead>"


def _number(value, text):
    return f'<td class="n" data-v="{"" if value is None else repr(value)}">{text}</td>'
