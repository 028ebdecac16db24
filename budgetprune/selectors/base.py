"""The protocol of a selection method, and the registry that finds them."""

import dataclasses
import re
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..ops import select_topk
from ..plan import TokenPlan

_registry: dict[str, type["Selector"]] = {}


@dataclass(frozen=True)
class TokenView:
    """What a method may look at; fields it did not name in `needs` may be None.

    tokens: [B, N, C] features: vision side, what the projector gets where a family prunes before it, else what it
        gives (always where the method asks for `after_projector`); mid-LLM, what the next decoder layer would see.
    attention: [B, N] attention that each token gets, after a softmax over all keys: vision side from CLS, or, in a
        tower without CLS, the mean over all tokens; mid-LLM from the last prompt token. Mean over heads, or of all
        heads joined to one where the method sets `one_head`.
    keys: [B, H, N, D] of the same attention layer, without CLS.
    text: [B, T, C'] embeddings of the text tokens of the sample's prompt, and text_valid: [B, T] bool.
    valid: [B, N] bool, False where a sample has fewer tokens than N; None: all exist.
    grid: (rows, columns) of the patches, row by row; None where there is no grid.
    key: int64 [2], Philox seed and offset for methods that draw.
    """

    tokens: Tensor
    attention: Tensor | None = None
    keys: Tensor | None = None
    text: Tensor | None = None
    text_valid: Tensor | None = None
    valid: Tensor | None = None
    grid: tuple[int, int] | None = None
    key: Tensor | None = None

    def need(self, name: str) -> Tensor:
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"this method needs {name}, but the model did not provide it")
        return value


class Selector:
    """A method: its formula is `score`, higher is kept. Options are dataclass fields of the subclass.

    name: registry key, the published name in lower case.
    needs: fields of TokenView that the model must fill, beside `tokens`.
    place: "vision", between tower and decoder, or "llm", before decoder layer `layer`.
    after_projector: vision side: `tokens` must be what the decoder would see.
    tower_layer: vision side: the block of the tower that `attention` and `keys` come from, -1 the last.
    one_head: vision side: `attention` joins all heads to one, softmax(q k / sqrt(H D)).
    positions: "compact" (renumbered, as most training-free methods do) or "original" ids for what is kept.
    adaptive_count: whether the method can choose the count itself (`keep=None`).
    trainable: whether it is a torch module that learns through gates in attention.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    place: ClassVar[str] = "vision"
    after_projector: ClassVar[bool] = False
    tower_layer: ClassVar[int] = -1
    one_head: ClassVar[bool] = False
    positions: ClassVar[str] = "compact"
    adaptive_count: ClassVar[bool] = False
    trainable: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        name = cls.__dict__.get("name")
        if name is None:
            return  # a shared base of several methods
        if not re.fullmatch(r"[a-z0-9_]+", name):
            raise ValueError(f"method name must be [a-z0-9_]+, got {name!r}")
        known = _registry.get(name)
        # A dataclass with slots replaces its class; the same class again is not a second method.
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"method {name!r} exists already, in {known.__module__}")
        _registry[name] = cls

    def options(self) -> dict:
        """The options that rebuild this method: build(name, **options())."""
        return dataclasses.asdict(self) if dataclasses.is_dataclass(self) else {}

    def score(self, view: TokenView) -> Tensor:
        """[B, N], higher is kept."""
        raise TypeError(f"{type(self).__name__} must define score or plan")

    def plan(self, view: TokenView, keep: list[int] | None) -> TokenPlan:
        """Decides which tokens stay: keep[b] of sample b, 1 <= keep[b] <= its tokens; None: the method's own count."""
        keep = self.require(keep)
        score = self.score(view)
        if view.valid is not None:
            score = score.masked_fill(~view.valid, -torch.inf)
        return ragged(select_topk(score, keep[0] if len(set(keep)) == 1 else keep), keep)

    def flops(self, tokens: int, width: int, keep: int) -> int:
        """2 x multiply-adds of the selection itself for one sample of N = `tokens` tokens with C = `width` channels."""
        return 0

    def require(self, keep):
        if keep is None:
            raise ValueError(f"keep must be given: {self.name} does not choose the count itself")
        return keep


def ragged(kept: Tensor, counts: list[int]) -> TokenPlan:
    """A plan without merging, from kept positions and host counts."""
    full = len(set(counts)) <= 1
    return TokenPlan(kept, lengths=None if full else torch.tensor(counts, device=kept.device))


def available() -> list[str]:
    """The names of all methods, sorted."""
    return sorted(_registry)


def find(name: str) -> type[Selector]:
    """The class of a method; ValueError lists the known names."""
    if name not in _registry:
        raise ValueError(f"unknown method {name!r}; known: {', '.join(available())}")
    return _registry[name]


def build(name: str, **options) -> Selector:
    """Makes a method by name; ValueError lists the known names, or the options it takes."""
    cls = find(name)
    try:
        return cls(**options)
    except TypeError as error:
        known = [f.name for f in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []
        raise ValueError(f"{name} takes the options {known}, got {sorted(options)}: {error}") from error
