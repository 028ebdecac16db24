"""The report's view of promises: of each cell the share of the full model's FLOPs, and of its milliseconds."""

from dataclasses import dataclass
from html import escape
from statistics import fmean

from ..cost import KNOWN, Device, VlmShape, reported_device
from .chart import COLOURS, ticks
from .chart import marker as mark_of
from .predicted import predicted
from .report_table import DASH, _dot, _head, _number, _row
from .summary import FULL, Group, count_of

WIDTH, HEIGHT, LEFT, RIGHT, TOP, FOOT = 350, 320, 46, 14, 14, 48


@dataclass(frozen=True)
class Shares:
    """One method at one budget against the full model of its run, means over seeds, all shares of a prefill's.

    flops, roofline: promised by formula; roofline None where device or model are not known. measured: milliseconds.
    became: of the share of FLOPs that was saved, how much was saved of the time; None where none was saved.
    """

    label: str
    keep: int
    flops: float
    measured: float
    roofline: float | None = None

    @property
    def became(self) -> float | None:
        return (1 - self.measured) / (1 - self.flops) if self.flops < 1 else None


def shares(group: Group, shape: VlmShape | None = None, on: Device | None = None) -> list[Shares]:
    """A row for every method and budget that was timed as the full model was, curve by curve.

    shape, on: for rooflines; where one is None, that of the records, if their names for model and device are known.
    """
    full = [one for one in group.records if one.method == FULL]
    known = shape or model_of(group.model), on or _device(full)
    found = []
    for curve in group.curves:
        for point in curve.points:
            rows = _rows([*full, *point.records], *known)
            if rows:
                roofs = [row.roofline_share for row in rows]
                found.append(Shares(curve.label, point.keep, fmean(row.flops_share for row in rows),
                                    fmean(row.measured_share for row in rows),
                                    None if None in roofs else fmean(roofs)))
    return found


def model_of(name: str) -> VlmShape | None:
    """The shape of a known model by the name of its checkpoint, such as llava-1.5-7b-hf; None: it is not known."""
    plain = name.rpartition("/")[2].lower().removesuffix("-hf").removesuffix("-instruct")
    return KNOWN.get(plain)


def _device(records) -> Device | None:
    names = {one.device for one in records}
    return reported_device(names.pop()) if len(names) == 1 else None


def _rows(records, shape, on):
    try:
        return predicted(records, shape, on)
    except ValueError:  # a method or a count of operations that the formula does not know: no roofline
        return predicted(records)


def section(groups: list[Group], slots: dict[str, int], shape: VlmShape | None = None,
            on: Device | None = None) -> tuple[str, str, str]:
    """(figures, table, note) of all tasks and models; empty texts where nothing was timed beside its full model.

    ValueError: model and hardware are named, and no cell fits them.
    """
    found = [(number, group, shares(group, shape, on)) for number, group in enumerate(groups)]
    every = [row for _, _, rows in found for row in rows]
    if not every:
        return "", "", ""
    roofs = any(row.roofline is not None for row in every)
    if shape is not None and on is not None and not roofs:
        raise ValueError("model must be that of the records, got one whose FLOPs none of their full models has")
    figures = "".join(f'<figure data-group="{number}"><h3>{escape(group.task)} · {escape(group.model)}</h3>'
                      f"{chart(group, rows, slots, number)}</figure>" for number, group, rows in found if rows)
    return figures, _table(found, slots, roofs), _note(found, on) if roofs else ""


def _note(found, on):
    names = {(on or _device([one for one in group.records if one.method == FULL])).name
             for _, group, rows in found if any(row.roofline is not None for row in rows)}
    return (f"The roofline is a bound by formula for {', '.join(sorted(names))}, not measured: each operator at the "
            "slower of its operations and its bytes. ")


def chart(group: Group, rows: list[Shares], slots: dict[str, int], number: int = 0) -> str:
    """Share of the milliseconds over share of the FLOPs; on the diagonal what was saved of both is the same."""
    top = 1.04 * max(1.0, *(max(row.flops, row.measured) for row in rows))
    right, bottom = WIDTH - RIGHT, HEIGHT - FOOT

    def x(share):
        return LEFT + share / top * (right - LEFT)

    def y(share):
        return bottom - share / top * (bottom - TOP)

    label = f"Share of the full model's prefill time over share of its FLOPs, {group.task}, {group.model}"
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="group" tabindex="0" '
             f'aria-label="{escape(label)}"><g class="axis">']
    for at in ticks(0, top, 7):
        parts.append(f'<path class="grid" d="M{LEFT} {y(at):.1f}H{right}"/><text x="{LEFT - 7}" y="{y(at) + 4:.1f}" '
                     f'text-anchor="end">{at:.0%}</text><path class="tick" d="M{x(at):.1f} {bottom}v5"/>'
                     f'<text x="{x(at):.1f}" y="{bottom + 19}" text-anchor="middle">{at:.0%}</text>')
    parts.append(f'<path class="line" d="M{LEFT} {bottom}H{right}"/><text class="name" x="{right}" y="{bottom + 38}" '
                 f'text-anchor="end">FLOPs, of full \u2192</text><text class="name" x="{LEFT}" y="{bottom + 38}">'
                 f'\u2191 Time, of full</text></g><path class="even" d="M{x(0):.1f} {y(0):.1f}L{x(1):.1f} '
                 f'{y(1):.1f}"/>')
    for slot in sorted({slots[row.label] for row in rows}, reverse=True):
        parts.append(f'<g class="curve c{slot % COLOURS}" data-group="{number}" data-slot="{slot}">')
        parts += [f'<g class="pt" data-tip="{escape(_tip(group, row))}"><path class="mark" '
                  f'd="{mark_of(slot, x(row.flops), y(row.measured), 3.6)}"/></g>'
                  for row in rows if slots[row.label] == slot]
        parts.append("</g>")
    return "".join(parts) + "</svg>"


def _tip(group, row):
    point = next(p for curve in group.curves if curve.label == row.label for p in curve.points if p.keep == row.keep)
    lines = [row.label, f"{count_of(point, group.full)} image tokens", f"FLOPs {row.flops:.1%} of full"]
    lines += [] if row.roofline is None else [f"roofline {row.roofline:.1%} of full"]
    return "\n".join([*lines, f"time {row.measured:.1%} of full, measured"])


def _table(found, slots, roofs):
    several = len(found) > 1
    head = [("Method", "")] + ([("Task", ""), ("Model", "")] if several else [])
    head += [("Kept", "tokens"), ("FLOPs", "of full")] + ([("Roofline", "of full")] if roofs else [])
    head += [("Time", "of full"), ("Saved time", "of saved FLOPs")]
    lines = []
    for number, group, rows in found:
        for row in sorted(rows, key=lambda row: slots[row.label]):
            slot = slots[row.label]
            cells = [f'<th scope="row">{_dot(slot)}{escape(row.label)}</th>']
            cells += [f"<td>{escape(text)}</td>" for text in (group.task, group.model)] if several else []
            cells += [_number(row.keep, str(row.keep)), _share(row.flops, "promised")]
            cells += [_share(row.roofline, "promised")] if roofs else []
            cells += [_share(row.measured, ""), _number(row.became, _percent(row.became, 0))]
            lines.append(_row(cells, number, slot, False))
    return _head(head) + f"<tbody>{''.join(lines)}</tbody>"


def _share(value, kind):
    """A cell with a bar under its figure."""
    if value is None:
        return _number(None, DASH)
    return (f'<td class="n share {kind}" data-v="{value!r}" style="--bar:{min(1.0, value):.3f}">'
            f"{_percent(value, 1)}</td>")


def _percent(value, digits):
    return DASH if value is None else f"{value:.{digits}%}".replace("-", "\u2212").replace("%", "\u00a0%")
