"""A small run and a strict reading of its report, shared by the report's tests."""

import struct
import zlib
from html.parser import HTMLParser

from budgetprune.evaluation import write_report
from budgetprune.evaluation.record import Record, wilson_interval

HOSTILE = '<script>alert("x")</script>&</td>\'`${1}'
WHERE = dict(commit="abc123", torch="2.13.0", device="Some CPU (2 threads)", time="2026-01-02T03:04:05+00:00")
VOID = {"meta", "link", "img", "br", "input", "hr"}


def cell(method, keep, hits, flops=None, ms=None, samples=200, seed=0, task="digits", model="tiny", **more):
    return Record(task=task, model=model, method=method, keep=keep, accuracy=hits / samples, samples=samples, seed=seed,
                  ci95=wilson_interval(hits, samples), prefill_flops=flops, prefill_ms=ms, **WHERE, **more)


RECORDS = [cell("none", 64, 195, 100_000_000, 4.0, kept_recall=1.0, decode_ms_per_token=0.5, peak_bytes=3 << 20),
           cell("random", 4, 60, 20_000_000, 1.5), cell("random", 16, 104, 40_000_000, 2.0),
           cell("learnt", 4, 150, 20_000_000, 1.6, kept_recall=0.7), cell("learnt", 12, 194, 29_000_000, 2.0),
           cell("learnt", 16, 194, 40_000_000, 2.4)]


def png(width, height):
    """A grey PNG of this size, made by hand."""
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    rows = b"".join(b"\0" + bytes((x * 7 + y * 5) % 256 for x in range(width)) for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def picture(method="learnt", keep=4, kept=(0, 1, 5, 15), **more):
    line = {"image": "images/0.png", "task": "digits", "method": method, "keep": keep, "grid": [4, 4],
            "kept": list(kept), "question": "red digit ?", "answer": "7", "prediction": "7", **more}
    return {"right": line["prediction"] == line["answer"], **line}


class Page(HTMLParser):
    """Every element with its attributes and text; unbalanced tags are errors."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {[e['tag'] for e in self.open]}"

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "text": "", "parent": self.open[-1] if self.open else None, **dict(attrs)}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1]["tag"] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag, **attributes):
        return [e for e in self.elements if e["tag"] == tag and
                all(value in e.get(name.rstrip("_"), "").split() for name, value in attributes.items())]

    def rows(self, section="cells"):
        """The cells' texts of every row of the table in a section."""
        rows, home = [], next(e for e in self.elements if e.get("id") == section)
        for element in self.elements:
            if not inside(element, home):
                continue
            if element["tag"] == "tr":
                rows.append([])
            elif element["tag"] in ("td", "th") and rows:
                rows[-1].append(element["text"])
        return rows


def inside(element, other):
    while element is not None and element is not other:
        element = element["parent"]
    return element is other


def report(folder, **options):
    return Page(write_report(folder, **options).read_text())
