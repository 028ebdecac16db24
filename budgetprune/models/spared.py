"""What a folder holds that spares image tokens, layers, or both, and the weights of the model tuned along with it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..catalog import find
from ..checked import integer
from ..pruners.depth import schedulers
from . import adapter, depth_adapter
from .adapter import from_pretrained, read_config
from .base import family_of
from .depth import refuse_prefix_lm
from .depth_adapter import depth_from_pretrained, read_depth_config
from .pruning import Pruning
from .tuned import TUNED, tune_of, tuned

EVERYTHING = "none"
STEPS = 4  # parts of the range of layers, where none are named


def parts(name: str) -> tuple[str, str | None]:
    """(what spares tokens, what spares layers) of a name: "adaptive+adallava", "adallava" or "adaptive"."""
    if not isinstance(name, str):  # whoever looks it up says so
        return name, None
    tokens, _, depth = name.rpartition("+")
    return (tokens or EVERYTHING, depth) if depth in schedulers() else (name, None)


@dataclass(frozen=True)
class Spared:
    """tokens, depth: the saved configuration of what spares image tokens and layers, one of them not None. tune: what
    of the model itself was trained along."""

    folder: Path
    tokens: dict | None
    depth: dict | None
    tune: str

    @property
    def name(self) -> str:
        return "+".join(one["method"] for one in (self.tokens, self.depth) if one is not None)

    @property
    def plain(self) -> bool:
        """Whether from_pretrained() is all it takes."""
        return self.depth is None and self.tune == "frozen"

    @property
    def options(self) -> dict:
        """Of both, those of the layers under one name: some are called alike."""
        return {**(self.tokens or {}).get("options", {}), **({} if self.depth is None else
                                                             {"depth": self.depth["options"]})}

    @property
    def weights(self) -> list[Path]:
        """The files that decide what comes out."""
        names = (adapter.WEIGHTS, "adapter_model.safetensors", depth_adapter.WEIGHTS, TUNED)
        return [self.folder / name for name in names if (self.folder / name).is_file()]

    def layers(self, model: nn.Module, wanted=()) -> list[int | None]:
        """The counts of layers that `model` is asked with: those wanted, else about a fifth each of what there is
        between the prefix and all; [None] where no layer is spared.

        ValueError: a count outside of that, or a model whose layers cannot be spared.
        """
        if self.depth is None:
            return [None]
        refuse_prefix_lm(model)
        most, least = len(family_of(model).decoder(model).layers), self.depth["options"]["prefix"]
        if wanted:
            for n in wanted:
                if not least <= integer("layers", n) <= most:
                    raise ValueError(f"layers must be in [{least}, {most}] for {self.folder}, where {least} always "
                                     f"run, got {n}")
            return list(dict.fromkeys(wanted))
        return sorted({least + round(i * (most - least) / STEPS) for i in range(STEPS + 1)})

    @contextmanager
    def entered(self, model: nn.Module, keep=None, layers: int | None = None) -> Iterator[Pruning | None]:
        """Within, the model is what was saved, at a budget; the pruning of its tokens, if they are. Afterwards the
        model is what it was, bit for bit."""
        with tuned(model, self.folder):  # first: what is hooked must be the layers that there are in the end
            pruning = self.tokens and from_pretrained(model, self.folder, keep=keep)
            try:
                if self.depth is None:
                    yield pruning
                    return
                with depth_from_pretrained(model, self.folder, budget=1.0) as depth:
                    if layers is not None:
                        depth.set_budget(depth.scheduler.of_layers(layers))
                    yield pruning
            finally:
                if pruning:
                    pruning.remove()


def read_spared(folder) -> Spared:
    """What was saved in `folder`, or trained into it.

    FileNotFoundError: nothing, or a run that has not finished. ValueError: it cannot be read, or does not go together.
    """
    folder = Path(folder)
    tune, _ = tune_of(folder)
    depth = read_depth_config(folder) if (folder / depth_adapter.CONFIG).is_file() else None
    tokens = read_config(folder) if depth is None or (folder / adapter.CONFIG).is_file() else None
    if depth is not None and tokens is not None:
        inside = [name for name in tokens["method"].split("+") if find(name).place == "llm"]
        if inside:
            raise ValueError(f"{folder} must hold a method that acts before the language model beside one that spares "
                             f"its layers, got {inside[0]}")
    if depth is not None and (folder / "adapter_config.json").is_file():
        raise ValueError(f"{folder} must hold tuned weights of the run that spares layers, got an adapter of another")
    return Spared(folder, tokens, depth, tune)
