"""One evaluation cell is one JSON line: what was run, what came out, and where.

A file of records only grows. A run that was cut off leaves at most one torn last line, which reading drops with a
warning; a rerun of a cell appends a second line, and `latest` keeps the newer one.
"""

import json
import math
import os
import subprocess
import warnings
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path

from .interval import wilson_interval

FILE_NAME = "records.jsonl"
LABEL = "label"  # of a record's options: what the user calls this pruner of several that one method has
_TEXTS = ("task", "model", "method", "commit", "torch", "device", "time")
_COUNTS = ("keep", "layers", "samples", "seed", "prefill_flops", "kv_bytes", "peak_bytes", "latency_batch")
_NUMBERS = ("accuracy", "kept_recall", "kept_mean", "layer_mean", "prefill_ms", "decode_ms_per_token")
_NOT_ALWAYS_WRITTEN = {"layers", "kept_mean", "layer_mean", "kv_bytes", "latency_batch", "metrics"}
_OPTIONAL = {"kept_recall", "prefill_flops", "prefill_ms", "decode_ms_per_token", "peak_bytes"} | _NOT_ALWAYS_WRITTEN


@dataclass(frozen=True)
class Record:
    """The result of one task x model x method x budget cell.

    keep: K, image tokens kept, an exact count; `kept_mean` is what a method with a count of its own kept on average.
    layers: n, those of the language model that run, of a method that spares layers; None: nothing spares them.
    layer_mean: of a method inside the language model, the image tokens that a layer sees, the mean over the layers;
        papers on such methods give this as their number of tokens.
    accuracy, kept_recall: fractions; accuracy is the mean score of the answers, kept_recall the share of the tokens
        that matter (where the task knows them) that was kept.
    metrics: what the task reports of all answers together, {name: number}.
    ci95: [low, high] around accuracy. prefill_flops: per sample; kv_bytes: of its prompt's keys and values in all
        layers, by formula too. time: ISO 8601.
    latency_batch: prompts in the batch that prefill_ms, decode_ms_per_token and peak_bytes are of.
    Unmeasured values are None. ValueError or TypeError names the field that is out of its range or kind.
    """

    task: str
    model: str
    method: str
    keep: int
    accuracy: float
    ci95: tuple[float, float]
    samples: int
    seed: int
    method_options: dict = field(default_factory=dict)
    layers: int | None = None
    kept_recall: float | None = None
    kept_mean: float | None = None
    layer_mean: float | None = None
    prefill_flops: int | None = None
    kv_bytes: int | None = None
    prefill_ms: float | None = None
    decode_ms_per_token: float | None = None
    peak_bytes: int | None = None
    latency_batch: int | None = None
    metrics: dict | None = None
    commit: str = ""
    torch: str = ""
    device: str = ""
    time: str = ""

    def __post_init__(self):
        for name in _TEXTS:
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name} must be a str, got {type(getattr(self, name)).__name__}")
        for name in ("task", "model", "method"):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty")
        for name in _COUNTS + _NUMBERS:
            self._check_number(name, getattr(self, name), name in _COUNTS)
        for name in ("accuracy", "kept_recall"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value}")
        if not isinstance(self.method_options, dict):
            raise TypeError(f"method_options must be a dict, got {type(self.method_options).__name__}")
        try:
            _options_text(self.method_options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"method_options must hold JSON values only: {error}") from None
        if self.metrics is not None and not isinstance(self.metrics, dict):
            raise TypeError(f"metrics must be a dict, got {type(self.metrics).__name__}")
        for name, value in (self.metrics or {}).items():
            self._check_number(f"metrics[{name!r}]", value, False)
        ci95 = self.ci95
        if not isinstance(ci95, (list, tuple)) or len(ci95) != 2:
            raise ValueError(f"ci95 must be [low, high], got {ci95!r}")
        for bound in ci95:
            self._check_number("ci95", bound, False)
        if not 0 <= ci95[0] <= self.accuracy <= ci95[1] <= 1:
            raise ValueError(f"ci95 must enclose accuracy {self.accuracy} within [0, 1], got {list(ci95)}")
        object.__setattr__(self, "ci95", tuple(ci95))
        if self.time:
            datetime.fromisoformat(self.time.replace("Z", "+00:00"))

    @staticmethod
    def _check_number(name, value, whole):
        if value is None and name in _OPTIONAL:
            return
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise TypeError(f"{name} must be {'an int' if whole else 'a number'}, got {type(value).__name__}")
        if not math.isfinite(value) or (value < 0 and name != "seed"):
            raise ValueError(f"{name} must be finite and at least 0, got {value}")

    @property
    def named(self) -> str:
        """The method, with the label of its pruner where it has one."""
        return f"{self.method} ({LABEL}={self.method_options[LABEL]})" if LABEL in self.method_options else self.method

    def key(self):
        """What tells this cell from every other; a run skips the cells whose key is already in the file."""
        return cell_key(self.task, self.model, self.method, self.keep, self.samples, self.seed, self.method_options,
                        self.layers)

    @property
    def keeps_tokens(self) -> bool:
        """Whether it spares layers alone; one that spares tokens, too, is called after both."""
        return self.layers is not None and "+" not in self.method

    @property
    def spares(self) -> str:
        """The method as `named`, and how many layers run where it spares some: what of one K tells cells apart."""
        return self.named if self.layers is None else f"{self.named} in {in_layers(self.layers)}"

    def to_json(self) -> str:
        """One line without its end."""
        values = asdict(self)
        for name in _NOT_ALWAYS_WRITTEN:
            if values[name] is None:
                del values[name]
        return json.dumps(values | {"ci95": list(self.ci95)}, allow_nan=False, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str):
        """The inverse of to_json. ValueError names a missing or unknown field."""
        values = json.loads(line)
        if not isinstance(values, dict):
            raise ValueError(f"a record must be a JSON object, got {type(values).__name__}")
        names = {f.name for f in fields(cls)}
        required = names - _NOT_ALWAYS_WRITTEN
        if missing := sorted(required - values.keys()):
            raise ValueError(f"missing {', '.join(missing)}")
        if unknown := sorted(values.keys() - names):
            raise ValueError(f"unknown {', '.join(unknown)}")
        return cls(**values)


def _options_text(options):
    return json.dumps(options, sort_keys=True, allow_nan=False)


def cell_key(task, model, method, keep, samples, seed, method_options=None, layers=None) -> tuple:
    """The key of a cell that has not run yet; equal to `Record.key()` of its record."""
    key = task, model, method, keep, samples, seed, _options_text(method_options or {})
    return key if layers is None else (*key, layers)  # answers of earlier versions name their cells by the former


def in_layers(count: int) -> str:
    return f"{count} layer{'s' * (count != 1)}"


def append(path, record: Record):
    """Add one line and force it to disk.

    A torn last line left by a crash is cut off first, so that the new record does not run into it. One writer at a
    time: concurrent appends are serialised by a lock where the system has flock.
    """
    append_lines(path, [record.to_json()], Record.from_json)


def append_lines(path, lines, parse):
    """Add lines to a JSON-lines file as `append` does; `parse` tells whether a last line without its end is whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        _lock(file)
        file.seek(0)
        content = file.read()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            if _parses(content[end:], parse):
                file.write(b"\n")  # whole but for its end: a crash between the line and its end
            else:
                warnings.warn(f"{path}: cut off a torn last line of {len(content) - end} bytes", stacklevel=3)
                file.truncate(end)
        file.write("".join(line + "\n" for line in lines).encode())
        file.flush()
        os.fsync(file.fileno())


def _lock(file):
    try:
        import fcntl
    except ImportError:
        return
    fcntl.flock(file, fcntl.LOCK_EX)


def _parses(line, parse):
    try:
        parse(line.decode())
    except (ValueError, TypeError):
        return False
    return True


def read(path) -> list[Record]:
    """All records in order; an absent file is an empty list. Torn and bad lines: see read_lines."""
    return read_lines(path, Record.from_json)


def read_lines(path, parse) -> list:
    """`parse(line)` of every line of a JSON-lines file; an absent file is an empty list.

    A last line that is not ended and does not parse is dropped with a warning; any other bad line is a ValueError
    that names file, line and field.
    """
    path = Path(path)
    if not path.exists():
        return []
    values, lines = [], path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values.append(parse(line.decode()))
        except (ValueError, TypeError) as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number}: {error}") from None
            warnings.warn(f"{path}: dropped a torn last line of {len(line)} bytes", stacklevel=3)
    return values


def latest(records) -> list[Record]:
    """One record per cell, the last one appended, in order of each cell's first appearance."""
    cells = {}
    for record in records:
        cells[record.key()] = record
    return list(cells.values())


def environment(device=None) -> dict:
    """`commit`, `torch`, `device` and `time` of a record, as they are now.

    commit: of the checkout that holds this file, "-dirty" if tracked files differ; outside one, the package version.
    device: a torch device, its name is taken; None for the first GPU, else the processor.
    """
    import torch

    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {"commit": _commit(), "torch": torch.__version__, "device": name,
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds")}


def _processor():
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name} ({os.cpu_count()} threads)"


def _commit():
    here = Path(__file__).resolve()

    def git(*arguments):
        return subprocess.run(["git", "-C", str(here.parent), *arguments], capture_output=True, text=True, timeout=10,
                              check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # a repository that merely surrounds site-packages says nothing
        changed = git("--no-optional-locks", "status", "--porcelain", "-uno")
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        from importlib.metadata import PackageNotFoundError, version

        try:
            return f"budgetprune {version('budgetprune')}"
        except PackageNotFoundError:
            return "unknown"


__all__ = ["Record", "append", "append_lines", "cell_key", "environment", "latest", "read", "read_lines",
           "wilson_interval"]
