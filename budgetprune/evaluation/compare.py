"""Cells of one run or of two, question by question: which is better, by how much, and whether that may be chance."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from . import answers, record
from .paired import Paired, holm, paired
from .record import LABEL, Record
from .summary import FULL

FILE_NAME = "compare.json"
_CELL = re.compile(r"(?P<method>[^@()]+)(\((?P<options>[^()]*)\))?(@(?P<budget>[^@/]+(/[^@/]+)?))?")


@dataclass(frozen=True)
class Example:
    """A question that one of the two cells answered better."""

    sample: str
    image: str | None
    question: str | None
    answer: str | None
    a: str
    b: str
    score_a: bool | float
    score_b: bool | float


@dataclass(frozen=True)
class Comparison:
    """Two cells. holm: p, adjusted for all comparisons made with this one. examples: of both kinds in turn."""

    a: Record
    b: Record
    result: Paired
    holm: float
    examples: tuple[Example, ...]

    def values(self) -> dict:
        """As JSON has it."""
        cells = {side: {"task": r.task, "model": r.model, "method": r.method, "keep": r.keep, "samples": r.samples,
                        "seed": r.seed, "method_options": r.method_options,
                        **({} if r.layers is None else {"layers": r.layers})}
                 for side, r in (("a", self.a), ("b", self.b))}
        found = asdict(self.result)
        return {**cells, "accuracy_a": found.pop("a"), "accuracy_b": found.pop("b"), **found, "holm": self.holm,
                "examples": [asdict(example) for example in self.examples]}


NOTHING = {"task": None, "method": None, "keep": None}


def compare(run_a, run_b=None, *, a: str | None = None, b: str | None = None, task: str | None = None,
            method: str | None = None, keep: str | None = None,
            examples: int = 5) -> tuple[list[Comparison], list[str]]:
    """(comparisons, notes on what could not be compared) of folders with records.jsonl and answers.jsonl.

    Two runs: every cell that both have. One run: cell `a`, the full model unless it is named, against every other. A
    cell is METHOD@K, with a fraction or own for K, METHOD@K/n where n layers run, or METHOD(option=value)@K; with `b`
    named as well, just these two are compared, in each task. task, method, keep: only those cells. examples: of each
    kind, of every comparison.

    ValueError: a folder without records or answers; no such cell, or several; nothing to compare, or other questions.
    """
    runs = [_records(run_a)]
    runs.append(runs[0] if run_b is None else _records(run_b))
    everything = [r for records in runs for r in records]
    for name, text, of in (("task", task, lambda r: r.task), ("method", method, lambda r: r.method),
                           ("keep", keep, lambda r: _budget(r) + _depth(r))):
        if text is not None and not any(_wanted(r, **(NOTHING | {name: text})) for r in everything):
            raise ValueError(f"{name} must be one that the runs have, {', '.join(dict.fromkeys(map(of, everything)))}; "
                             f"got {text!r}")
    kept = [[r for r in records if _wanted(r, task, None, None)] for records in runs]
    if a is None and b is None and run_b is not None:
        pairs, notes = _shared(*([r for r in side if _wanted(r, None, method, keep)] for side in kept))
    else:
        named = [_named(kept[0], "a", a or FULL), kept[1] if b is None else _named(kept[1], "b", b)]
        named[1] = [r for r in named[1] if _wanted(r, None, method, keep)]
        pairs, notes = _against(*named, several=b is None)
    said = [answers.read(run, {pair[side].key() for pair in pairs})
            for side, run in enumerate((run_a, run_a if run_b is None else run_b))]
    found = []
    for one, other in pairs:
        lines = [_answers(said[0], one, run_a), _answers(said[1], other, run_a if run_b is None else run_b)]
        found.append(_compared(one, other, *lines, examples, notes))
    adjusted = holm([c.result.p for c in found])
    return [replace(c, holm=p) for c, p in zip(found, adjusted, strict=True)], notes


def write_json(comparisons: Sequence[Comparison], notes: Sequence[str], runs, path) -> Path:
    """All of it as one JSON file, written beside and renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.part")
    aside.write_text(json.dumps({"runs": [str(run) for run in runs], "notes": list(notes),
                                 "comparisons": [c.values() for c in comparisons]}, indent=1, ensure_ascii=False))
    aside.replace(path)
    return path


def cell_label(r: Record, shown: Sequence[str] = ()) -> str:
    """METHOD(options)@K as `compare` takes it, or METHOD(options)@K/n; options: the label of a pruner that has one, and
    those in `shown`."""
    options = ",".join(f"{name}={_text(r.method_options[name])}" for name in dict.fromkeys((LABEL, *shown))
                       if name in r.method_options)
    return f"{r.method}{f'({options})' if options else ''}@{_budget(r)}{_depth(r)}"


def _depth(r):
    return "" if r.layers is None else f"/{r.layers}"


def _records(run):
    path = Path(run) / record.FILE_NAME
    found = record.latest(record.read(path))
    if not found:
        raise ValueError(f"no records in {path}: `budgetprune eval` makes them")
    return found


def _budget(r):
    if r.method_options.get("count") == "own":
        return "own"
    return f"{r.method_options['fraction']:g}" if "fraction" in r.method_options else str(r.keep)


def _text(value):
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _wanted(r, task, method, keep):
    tasks = (r.task, re.split("[:,]", r.task)[0])
    return (task is None or task in tasks) and (method is None or r.method == method) and (
        keep is None or _same_budget(keep, r))


def _same_budget(text, r):
    text, slash, layers = text.partition("/")
    if slash and slash + layers != _depth(r):
        return False
    try:
        return float(text) == float(_budget(r)) and ("." in text) == ("fraction" in r.method_options)
    except ValueError:
        return text == _budget(r)


def _named(records, side, text):
    """The cells that one text means: at most one of a task's questions."""
    match = _CELL.fullmatch(text)
    if match is None:
        raise ValueError(f"{side} must be a cell such as fastv@64, fastv(layer=3)@0.25 or none, got {text!r}")
    options = dict(one.partition("=")[::2] for one in (match["options"] or "").replace(" ", "").split(",") if one)
    found = [r for r in records if _wanted(r, None, match["method"], match["budget"])
             and all(_text(r.method_options.get(name)) == value for name, value in options.items())]
    if not found:
        there = ", ".join(dict.fromkeys(cell_label(r) for r in records)) or "none"
        raise ValueError(f"{side} must be one of the cells {there}; got {text!r}")
    return found


def _questions(r):
    return r.task, r.samples, r.seed


def _against(ones, others, several):
    """Each of `others` with the only one of `ones` that is asked the same questions."""
    at, pairs, counted = {}, [], {}
    for r in ones:
        at.setdefault(_questions(r), []).append(r)
    for questions, members in at.items():
        if len(members) > 1:
            raise ValueError(f"a must name one cell of {questions[0]}, got {_variants(members)}")
    for r in others:
        for one in at.get(_questions(r), ()):
            if one is not r:  # of one run the same cell is on both sides
                pairs.append((one, r))
                counted.setdefault(_questions(r), []).append(r)
    if not several:
        for questions, members in counted.items():
            if len(members) > 1:
                raise ValueError(f"b must name one cell of {questions[0]}, got {_variants(members)}")
    notes = [f"{cell_label(r)} of {_asked(r)}: nothing asks the same questions" for r in others
             if _questions(r) not in at]
    if not pairs:
        raise ValueError(f"a and b must be different cells that were asked the same questions, got "
                         f"{_differing(ones, others)}")
    return pairs, notes


def _shared(ones, others):
    """The cells that both runs have: alike in all, else the only ones of one method and budget on both sides."""
    left, right = ({r.key(): r for r in side} for side in (ones, others))
    pairs = [(left.pop(key), right.pop(key)) for key in list(left) if key in right]
    for r in list(left.values()):
        alike = [x for x in left.values() if (_questions(x), cell_label(x)) == (_questions(r), cell_label(r))]
        same = [x for x in right.values() if (_questions(x), cell_label(x)) == (_questions(r), cell_label(r))]
        if len(alike) == len(same) == 1:
            pairs.append((left.pop(r.key()), right.pop(same[0].key())))
    if not pairs:
        raise ValueError(f"the runs must share a cell, got {_differing(ones, others)}")
    return pairs, [f"{cell_label(r)} of {_asked(r)}: only in the {which} run"
                   for which, side in (("first", left), ("second", right)) for r in side.values()]


def _asked(r):
    return f"{r.task} ({r.samples} questions of seed {r.seed})"


def _variants(records):
    return "; ".join(f"{cell_label(r, sorted(r.method_options))} of {r.model}" for r in records)


def _differing(ones, others):
    sides = ["; ".join(dict.fromkeys(_asked(r) for r in side)) or "no cell" for side in (ones, others)]
    return f"{sides[0]} against {sides[1]}" if sides[0] != sides[1] else f"none beside each other in {sides[0]}"


def _answers(said, r, run):
    lines = said.get(r.key())
    if not lines:
        path = Path(run) / answers.FILE_NAME
        raise ValueError(f"{path} must hold the answers of {cell_label(r)}, {r.task}, got none")
    return lines


def _compared(one, other, a, b, examples, notes):
    if a.keys() != b.keys():
        odd = sorted(a.keys() ^ b.keys())
        raise ValueError(f"{cell_label(one)} and {cell_label(other)} must have answered the same questions of "
                         f"{one.task}, but {len(odd)} are in one of them only, such as {odd[0]!r}")
    for name, said in a.items():
        for field in ("question", "image"):
            first, second = getattr(said, field), getattr(b[name], field)
            if first is not None and second is not None and first != second:
                raise ValueError(f"{cell_label(one)} and {cell_label(other)} must have been asked the same, but "
                                 f"question {name!r} of {one.task} has the {field} {first!r} and {second!r}")
    images = [a[name].image or b[name].image for name in a]
    if None in images:
        notes.append(f"{one.task}: the answers do not name their images, so every question counts by itself")
        images = None
    result = paired([said.score for said in a.values()], [b[name].score for name in a], images)
    return Comparison(one, other, result, 1.0, _examples(a, b, examples))


def _examples(a, b, most):
    better = {side: sorted((name for name in a if side * (float(b[name].score) - float(a[name].score)) > 0),
                           key=lambda name: -abs(float(b[name].score) - float(a[name].score)))[:most]
              for side in (-1, 1)}
    return tuple(Example(name, a[name].image or b[name].image, a[name].question or b[name].question,
                         a[name].answer or b[name].answer, a[name].prediction, b[name].prediction, a[name].score,
                         b[name].score) for side in (-1, 1) for name in better[side])
