"""The protocol of a selection method, and the registry that finds them."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import ClassVar

import torch
from torch import Tensor

from ..checked import number, shown
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
        heads joined to one where the method sets `one_head`. Mid-LLM methods may name other rows, see `rows`.
    keys: [B, H, N, D] of the same attention layer, without CLS.
    text: [B, T, C'] embeddings of the text tokens of the sample's prompt, and text_valid: [B, T] bool. Mid-LLM: of
        the tokens behind the last image, which see all of it.
    text_states: [B, T, C] and text_keys: [B, H, T, D], mid-LLM: what `tokens` and `keys` are, of the same text tokens.
    valid: [B, N] bool, False where a sample has fewer tokens than N; None: all exist.
    grid: (rows, columns) of the patches, row by row; None where there is no grid.
    key: int64 [2], or in training [B, 2], one per sample: Philox seed and offset for methods that draw.
    budget: [B, C''] what the tower made of its budget token, vision side, for methods with `budget_in_tower`.
    """

    tokens: Tensor
    attention: Tensor | None = None
    keys: Tensor | None = None
    text: Tensor | None = None
    text_valid: Tensor | None = None
    text_states: Tensor | None = None
    text_keys: Tensor | None = None
    valid: Tensor | None = None
    grid: tuple[int, int] | None = None
    key: Tensor | None = None
    budget: Tensor | None = None

    def need(self, name: str) -> Tensor:
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"this method needs {name}, but the model did not provide it")
        return value


class Selector:
    """A method: its formula is `score`, higher is kept. Options are dataclass fields of the subclass.

    name: registry key, the published name in lower case.
    needs: fields of TokenView that the model must fill, beside `tokens`.
    place: "vision", between tower and decoder, or "llm", before the decoder layers that `layers` names.
    after_projector: vision side: `tokens` must be what the decoder would see.
    tower_layer: vision side: the block of the tower that `attention` and `keys` come from, -1 the last.
    one_head: vision side: `attention` joins all heads to one, softmax(q k / sqrt(H D)).
    normed: mid-LLM: `tokens` and `text_states` have passed the norm that stands behind the decoder's last layer.
    positions: "compact" (renumbered, as most training-free methods do) or "original" ids for what is kept.
    merges: whether a token that comes out may be a sum of tokens; otherwise each is one of the kept, unchanged.
    adaptive_count: whether the method can choose the count itself (`keep=None`).
    budget_in_tower: whether the tower sees the budget, as tokens that the method's `budget_token` makes.
    trainable: whether it is a torch module that learns.
    fixed_count: whether it is made for one count, which training has too (compress.Compressor).
    acts_on: what training does with its choice, see selectors.adaptive.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    place: ClassVar[str] = "vision"
    after_projector: ClassVar[bool] = False
    tower_layer: ClassVar[int] = -1
    one_head: ClassVar[bool] = False
    normed: ClassVar[bool] = False
    positions: ClassVar[str] = "compact"
    merges: ClassVar[bool] = False
    adaptive_count: ClassVar[bool] = False
    budget_in_tower: bool = False
    trainable: ClassVar[bool] = False
    fixed_count: ClassVar[bool] = False
    acts_on: str = "attention"

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        register(cls, _registry)

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
        return ragged(select_topk(score, keep[0] if equal(keep) else keep), keep)

    # Methods inside the language model act before one decoder layer or several. Each time is a stage: it gets a view
    # of the image tokens that are still there, and plans which of them the next layers see. A stage that merges lists
    # its output tokens in the order of `kept`: token m of the lists takes the place of image token kept[m].

    def layers(self, depth: int) -> tuple[int, ...]:
        """The layers of a decoder of `depth` layers before which it acts, ascending, each at least 1."""
        return (self.layer,) if self.place == "llm" else ()

    def stage_keep(self, keep: int, stage: int, tokens: int) -> int:
        """Image tokens that stage number `stage` leaves of `tokens`, where `keep` are left after the last stage."""
        return keep

    def rows(self, view: TokenView) -> Tensor | None:
        """[B, T] bool, the text tokens whose attention to the image is summed in `attention`; None: the prompt's last.

        Asked once a prompt, of the embeddings that the first decoder layer sees. A sample without any row gets the
        row of its last token.
        """
        return None

    def stages(self, tokens: int, keep: int, depth: int) -> tuple[tuple[int, int], ...]:
        """(layer, image tokens that it and the next layers see) of every stage; none for methods before the decoder."""
        return tuple((layer, min(tokens, self.stage_keep(keep, stage, tokens)))
                     for stage, layer in enumerate(self.layers(depth)))

    def average(self, tokens: int, keep: int, depth: int) -> float:
        """Image tokens that a layer sees, the mean over a decoder's `depth` layers: what papers on pruning inside the
        language model call the number of tokens, where `keep` is what is left after the last stage."""
        total, seen, start = 0, tokens if self.place == "llm" else keep, 0
        for layer, left in self.stages(tokens, keep, depth):
            total, seen, start = total + seen * (layer - start), left, layer
        return (total + seen * (depth - start)) / depth

    def flops(self, tokens: int, width: int, keep: int) -> int:
        """2 x multiply-adds of the selection itself for one sample of N = `tokens` tokens with C = `width` channels."""
        return 0

    def asking_flops(self, words: int, decoder) -> int:
        """Of the language model (a cost.DecoderShape) where it reads `words` tokens for the method, in one sample."""
        return 0

    def require(self, keep):
        if keep is None:
            raise ValueError(f"keep must be given: {self.name} does not choose the count itself")
        return keep


def register(cls: type[Selector], *registries: dict[str, type[Selector]]) -> None:
    """Enters a class that has a name into the first registry; none of them may know another class of that name."""
    name = cls.__dict__.get("name")
    if name is None:
        return  # a shared base of several methods
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise ValueError(f"method name must be [a-z0-9_]+, got {name!r}")
    for registry in registries:
        known = registry.get(name)
        # A dataclass with slots replaces its class; the same class again is not a second method.
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"method {name!r} exists already, in {known.__module__}")
    registries[0][name] = cls


def ragged(kept: Tensor, counts: list[int]) -> TokenPlan:
    """A plan without merging, from kept positions and host counts."""
    return TokenPlan(kept, lengths=None if equal(counts) else torch.tensor(counts, device=kept.device))


def equal(counts: list[int]) -> bool:
    """Whether all counts are one. Not by a set of them: torch.compile would make a graph for every count."""
    return all(count == counts[0] for count in counts)


def spread(at: tuple[float, ...], depth: int) -> tuple[int, ...]:
    """Layers at these fractions of a decoder's depth: ascending, from 1 on, one for each fraction.

    In a decoder so shallow that two fall on one layer, the later moves up.
    """
    layers = []
    for fraction in at:
        layers.append(max(round(fraction * depth), layers[-1] + 1 if layers else 1))
    if layers[-1] >= depth:
        raise ValueError(f"at must name {len(at)} different layers behind the first, got {list(at)} for a decoder of "
                         f"{depth} layers")
    return tuple(layers)


def fractions(at) -> tuple[float, ...]:
    """`at` as a tuple, once it is known to ascend within (0, 1)."""
    if isinstance(at, str) or not isinstance(at, Sequence):
        raise TypeError(f"at must be a sequence of fractions of the decoder's depth, got {shown(at)}")
    at = tuple(number(f"at[{i}]", fraction) for i, fraction in enumerate(at))
    if not at or list(at) != sorted(set(at)) or not 0 < at[0] <= at[-1] < 1:
        raise ValueError(f"at must be ascending fractions of the decoder's depth in (0, 1), got {list(at)}")
    return at


def settle(method: Selector, **options) -> None:
    """Sets options of a frozen dataclass, in its __post_init__, to what they are once they are checked."""
    for name, value in options.items():
        object.__setattr__(method, name, value)


def available() -> list[str]:
    """The names of all methods, sorted."""
    return sorted(_registry)


def find(name: str) -> type[Selector]:
    """The class of a method. ValueError: an unknown name; the known are listed. TypeError: no name."""
    if not isinstance(name, str):
        raise TypeError(f"method must be a name of a method, got {shown(name)}")
    if name not in _registry:
        raise ValueError(f"unknown method {name!r}; known: {', '.join(available())}")
    return _registry[name]


def build(name: str, /, **options) -> Selector:
    """Makes a method by name; ValueError lists the known names, or the options it takes.

    TypeError, ValueError: what the method says of the value of an option.
    """
    return made(find(name), **options)


def made(cls: type[Selector], /, **options) -> Selector:
    """A method of this class; errors are those of `build`."""
    known = signature(cls)
    try:
        known.bind(**options)
    except TypeError as error:
        wrong = sorted(options.keys() - known.parameters.keys()) or sorted(options)
        raise ValueError(f"{cls.name} takes the options {list(known.parameters)}, got {wrong}: {error}") from None
    return cls(**options)
