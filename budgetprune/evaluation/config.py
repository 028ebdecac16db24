"""What is evaluated, and which cells that makes."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..budget import TokenBudget
from ..catalog import find
from ..checked import LARGEST_SEED, integer
from ..models.adapter import read_config
from ..models.spared import parts, read_spared
from .record import LABEL
from .summary import FULL

_LABELLED = re.compile(r"([\w.-]+)=(.+)")


def kind(method: str):
    """The class of what spares tokens in a method; of one that spares layers alone the full model's."""
    return find(parts(method)[0])


@dataclass(frozen=True)
class EvalConfig:
    """What is evaluated.

    methods: names; "adallava" spares layers, "adaptive+adallava" tokens too, as their folder in `pruners` says.
    budgets: counts K or fractions of the image's tokens, one cell each; None: the method's own count, where it has one.
        The full model (`none`) has one cell, all tokens, and a compressor one, what it is made for.
    pruners: folder of the trained weights of each trainable method. options: options of each method.
    labels: what records call the pruner of a method, to tell it from another pruner of that method in their folder.
    layers: how many run, each count with every budget, of methods that spare layers; () takes a few of their range.
    samples: questions of the test split, drawn from `seed`; None: all of them. batch: prompts at a time, new_tokens:
        longest answer; None: as the task has it.
    latency_batch: prompts of the timed batch, which is never larger than `batch`; 0 leaves time and memory out.
    images: pictures for the report.
    """

    methods: Sequence[str]
    budgets: Sequence[int | float | None]
    pruners: dict[str, Path] = field(default_factory=dict)
    options: dict[str, dict] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    samples: int | None = 768
    seed: int = 0
    batch: int | None = None
    new_tokens: int | None = None
    latency_batch: int = 32
    images: int = 6
    layers: Sequence[int] = ()

    def __post_init__(self):
        for name, least in (("samples", 1), ("batch", 1), ("new_tokens", 1), ("latency_batch", 0), ("images", 0)):
            if getattr(self, name) is not None or name in ("latency_batch", "images"):
                integer(name, getattr(self, name), least)
        integer("seed", self.seed, most=LARGEST_SEED)
        if isinstance(self.methods, str) or not self.methods:
            raise ValueError(f"methods must be a sequence of at least one name, got {self.methods!r}")
        for method in self.methods:
            if (kind(method).trainable or parts(method)[1]) and method not in self.pruners:
                maker = "train-joint" if parts(method)[1] else "train"
                raise ValueError(f"{method} is trained: name the folder of its weights (`budgetprune {maker}` makes "
                                 "one)")
        for method, folder in self.pruners.items():
            if method not in self.methods:
                raise ValueError(f"pruners must be of methods that are evaluated, {', '.join(self.methods)}; got "
                                 f"{folder}, which is of {method}")
        for n in self.layers:
            integer("layers", n, 1)
        if self.layers and not any(parts(method)[1] for method in self.methods):
            raise ValueError("layers must come with a pruner that spares layers (`budgetprune train-joint` makes one), "
                             f"got {', '.join(map(str, self.layers))} for {', '.join(self.methods)}")
        pruned = [method for method in self.methods if parts(method)[0] != FULL]
        if not self.budgets and not all(kind(method).fixed_count for method in pruned):
            raise ValueError("budgets must name at least one count, got none")
        for keep in self.budgets:
            if isinstance(keep, float):
                if not 0 < keep <= 1:
                    raise ValueError(f"budgets must be in (0, 1] where they are fractions, got {keep}")
            elif keep is not None:
                integer("budgets", keep, 1)
        if pruned and set(self.budgets) == {None} and not any(
                kind(method).adaptive_count or kind(method).fixed_count for method in pruned):
            raise ValueError(f"budgets must name a count where no method has its own, got only their own of "
                             f"{', '.join(pruned)}")

    def options_of(self, method: str) -> dict:
        """What tells this method's cells apart: its options, and of a trained one its saved options and its weights.

        FileNotFoundError: no pruner in its folder. ValueError: the folder holds another method.
        """
        if method not in self.pruners:
            return dict(self.options.get(method, {}))
        saved = read_spared(self.pruners[method])
        if saved.name != method:
            raise ValueError(f"{saved.folder} holds a pruner of {saved.name}, not of {method}")
        weights = hashlib.sha256(b"".join(file.read_bytes() for file in saved.weights)).hexdigest()
        label = {LABEL: self.labels[method]} if method in self.labels else {}
        return {**saved.options, "weights": weights[:8], **label}

    def cells(self, tokens: int | None) -> list[tuple[str, int | float | None]]:
        """(method, K) of every cell; a method without a count of its own has no cell for None.

        tokens: N where every image has as many, and a fraction is a count; None: where images differ, the full
        model's K is None, fractions stay what they are, and a count beyond an image keeps all of it.
        """
        found = []
        for method in self.methods:
            if parts(method)[0] == FULL:
                found.append((method, tokens))
                continue
            fixed = [read_config(self.pruners[method])["keep"]] if kind(method).fixed_count else self.budgets
            for keep in fixed:
                if keep is None and not kind(method).adaptive_count:
                    continue
                if isinstance(keep, float) and tokens is not None:
                    keep = TokenBudget.from_ratio(tokens, keep)
                if keep is not None and tokens is not None and not 1 <= keep <= tokens:
                    raise ValueError(f"budgets must be in [1, N={tokens}], got {keep}")
                if (method, keep) not in found:  # a fraction may be a count that is there
                    found.append((method, keep))
        return found


def rounds_of(pruners: Sequence[Path]) -> list[tuple[dict[str, Path], dict[str, str]]]:
    """({method: folder}, {method: label}) of trained pruners, given as FOLDER or LABEL=FOLDER: at least one round, and
    as many as one method has pruners, the first of each method in the first.

    FileNotFoundError: a folder has none. ValueError: two of one method are not told apart, or one cannot be read.
    """
    named: dict[str, list[Path]] = {}
    for pruner in map(str, pruners):
        match = None if Path(pruner).is_dir() else _LABELLED.fullmatch(pruner)
        label, folder = match.groups() if match else ("", pruner)
        named.setdefault(label, []).append(Path(folder))
    each = [(label, *one) for label, folders in named.items() for one in pruners_in(folders).items()]
    rounds: list[tuple[dict[str, Path], dict[str, str]]] = [({}, {})]
    for label, method, folder in each:
        free = next((one for one in rounds if method not in one[0]), None)
        if free is None:
            rounds.append(free := ({}, {}))
        free[0][method] = folder
        if label:
            free[1][method] = label
    return rounds


def pruners_in(folders: Sequence[Path]) -> dict[str, Path]:
    """{method: folder} of trained pruners.

    FileNotFoundError: a folder has none. ValueError: two have one method, or one cannot be read.
    """
    found: dict[str, Path] = {}
    for folder in map(Path, folders):
        method = read_spared(folder).name
        if method in found:
            raise ValueError(f"pruners must be of different methods or have names, A={found[method]} and B={folder}: "
                             f"both are {method}")
        found[method] = folder
    return found
