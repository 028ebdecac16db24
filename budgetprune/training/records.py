"""The rows of a training set where they lie: a JSON or JSONL file by byte offsets, or a Hugging Face data set.

Only an index is held in memory: where a row begins, whether it has an image, how many answers it has. Millions of rows
are read one by one, by as many processes as there are.
"""

import json
import re
from abc import ABC, abstractmethod
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from .conversations import ROLES

IMAGE_COLUMNS = ("image", "images")
TURN_COLUMNS = ("conversations", "messages", "texts")
HUB = "hub:"
BETWEEN = re.compile(r"[\s,]*")


class Records(ABC):
    """Rows by number. has_image [n] bool and answers [n] int, at least 1: of rows that are not as they should be, too,
    for what is wrong with a row is said when its turn has come."""

    has_image: np.ndarray
    answers: np.ndarray

    def __len__(self):
        return len(self.has_image)

    @abstractmethod
    def __getitem__(self, number: int):
        """The row as its file has it; ValueError where it cannot be read."""


def open_records(path) -> Records:
    """A .json file with a list, a .jsonl file, a .parquet file, a folder that `datasets` has saved, or a data set of
    the Hugging Face Hub: hub:owner/name, hub:owner/name:config, hub:owner/name:config:split; the split is train, and
    the configuration the set's own, where they are not named or empty.

    FileNotFoundError: nothing there. ValueError: nothing that can be read, or no rows, or `datasets` is needed for it
    and not installed, or the set cannot be loaded.
    """
    if str(path).startswith(HUB):
        records = HubRecords(_named(str(path)))
    elif not (path := Path(path)).exists():
        raise FileNotFoundError(f"data must be a file or folder with conversations, got {path}, which is not there; a "
                                f"data set of the Hub begins with {HUB}")
    else:
        json_rows = path.suffix in (".json", ".jsonl") and path.is_file()
        records = JsonRecords(path) if json_rows else HubRecords(_local(path))
    if not len(records):
        raise ValueError(f"data must hold rows, got none in {path}")
    return records


class JsonRecords(Records):
    """A list in a .json file, or one object per line of a .jsonl file."""

    def __init__(self, path: Path):
        self.path = path
        found = self._lines() if path.suffix == ".jsonl" else self._elements()
        rows = [(start, stop, _has_image(row), _answers(row)) for start, stop, row in found]
        columns = np.array(rows, dtype=np.int64).reshape(-1, 4)
        self.starts, self.stops, self.answers = columns[:, 0], columns[:, 1], columns[:, 3]
        self.has_image = columns[:, 2].astype(bool)

    def __getitem__(self, number):
        start, stop = int(self.starts[number]), int(self.stops[number])
        with self.path.open("rb") as file:  # opened anew: an open file that two processes share has one position
            file.seek(start)
            return json.loads(file.read(stop - start))

    def _lines(self):
        start = 0
        with self.path.open("rb") as file:
            for line in file:
                if line.strip():
                    try:
                        row = json.loads(line)
                    except ValueError:
                        row = None  # said when its turn has come
                    yield start, start + len(line), row
                start += len(line)

    def _elements(self):
        # As latin-1 a character is a byte, and all that JSON itself is made of is the same.
        text = self.path.read_bytes().decode("latin-1")
        decode, at = json.JSONDecoder().raw_decode, len(BETWEEN.match(text)[0])
        if text[at:at + 1] != "[":
            raise ValueError(f"data must be a list of rows, {self.path} begins with {text[at:at + 20]!r}")
        at = BETWEEN.match(text, at + 1).end()
        while text[at:at + 1] != "]":
            try:
                row, stop = decode(text, at)
            except ValueError as error:
                raise ValueError(f"data must be JSON, {self.path} is not at byte {at}: {error}") from None
            yield at, stop, row
            at = BETWEEN.match(text, stop).end()


def _has_image(row) -> bool:
    if not isinstance(row, dict):
        return True  # wrong, and wrong rows are looked at among the others
    return any(row.get(column) not in (None, "", []) for column in IMAGE_COLUMNS)


def _answers(row) -> int:
    turns = next((row[column] for column in TURN_COLUMNS if row.get(column)), None) if isinstance(row, dict) else None
    if not isinstance(turns, list):
        return 1
    roles = [str(turn.get("from") or turn.get("role") or "gpt").lower() for turn in turns if isinstance(turn, dict)]
    return max(1, sum(ROLES.get(role) == "assistant" for role in roles))


class HubRecords(Records):
    """Rows of a `datasets.Dataset`; images stay undecoded until a row is asked for."""

    def __init__(self, rows):
        self.rows = rows
        for column in set(IMAGE_COLUMNS) & set(self.rows.column_names):
            self.rows = self.rows.cast_column(column, _undecoded(self.rows.features[column]))
        without = [name for name in self.rows.column_names if name not in IMAGE_COLUMNS]
        texts = self.rows.select_columns([name for name in TURN_COLUMNS if name in without])
        self.answers = np.array([_answers(row) for row in texts], dtype=np.int64)
        if not texts.column_names:
            self.answers = np.ones(len(self.rows), dtype=np.int64)
        self.has_image = np.zeros(len(self.rows), dtype=bool)
        for column in set(IMAGE_COLUMNS) & set(self.rows.column_names):
            self.has_image |= _filled(self.rows, column)

    def __getitem__(self, number):
        return self.rows[int(number)]


def _datasets(what):
    """The package. ValueError: it is not installed."""
    if find_spec("datasets") is None:
        raise ValueError(f"datasets must be installed to read {what}: pip install datasets; a .json or .jsonl file "
                         "needs nothing more")
    import datasets

    return datasets


def _local(path: Path):
    """The rows of a .parquet file, of a folder of them, or of a folder that `datasets` has saved."""
    datasets = _datasets(path)
    if not path.is_dir() or any(path.rglob("*.parquet")):
        files = sorted(map(str, path.rglob("*.parquet"))) if path.is_dir() else [str(path)]
        if Path(files[0]).suffix != ".parquet":
            raise ValueError(f"data must be .json, .jsonl, .parquet or a folder, got {path}")
        return datasets.load_dataset("parquet", data_files=files, split="train")
    rows = datasets.load_from_disk(str(path))
    if isinstance(rows, datasets.DatasetDict):
        if "train" not in rows:
            raise ValueError(f"data must have a split named train, {path} has {', '.join(rows)}")
        rows = rows["train"]
    return rows


def _named(text: str):
    """The rows of a data set by its name on the Hub, all of them here: order and resuming need any row at any time."""
    name, config, split = [*text.removeprefix(HUB).split(":", 2), "", ""][:3]
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ValueError(f"data must be {HUB}owner/name, {HUB}owner/name:config or {HUB}owner/name:config:split, got "
                         f"{text!r}")
    datasets = _datasets(text)
    try:
        return datasets.load_dataset(name, config or None, split=split or "train")
    except (OSError, ValueError) as error:  # no such set, configuration or split, or no connection
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"data must be a set of the Hub that can be loaded, got {text}: {said}") from error


def _undecoded(feature):
    """The same column, with images as their bytes: a broken one must not stop the reading of its row."""
    import datasets

    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    inner = getattr(feature, "feature", None)
    return type(feature)(_undecoded(inner)) if inner is not None else feature


def _filled(rows, column) -> np.ndarray:
    """[n] bool, rows with something in a column, told without reading the images in it."""
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = rows.flatten_indices() if rows._indices is not None else rows
    values = rows.data.column(column)
    filled = values.is_valid()
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        filled = pc.and_(filled, pc.greater(pc.fill_null(pc.list_value_length(values), 0), 0))
    return filled.to_numpy().astype(bool)
