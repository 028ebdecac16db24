"""What a compressor is: a trained module between tower and projector that makes K tokens of an image's N."""

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..budget import TokenBudget
from ..checked import flag, shown
from ..plan import MergeLists, TokenPlan
from ..selectors.base import Selector, TokenView, register
from ..selectors.base import _registry as _selectors
from ..selectors.pooling import rectangles
from ..selectors.uniform import lattice

_registry: dict[str, type["Compressor"]] = {}


@dataclass(frozen=True)
class Site:
    """Where a compressor stands: what its model has.

    width: C of what the projector gets. grid: (rows, columns) of the patches, N in all. tower_width: C of a layer of
    the tower. depth: its layers. text_width: C of the language model's states.
    """

    width: int
    grid: tuple[int, int]
    tower_width: int
    depth: int
    text_width: int

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]


class Compressor(nn.Module, Selector):
    """A method that makes new tokens instead of choosing. Options are parameters of the subclass's __init__.

    A subclass defines `make` and `forward`, and may say that it hears the question (`needs`) and layers of the tower
    (`heard`). Its count K is fixed where it enters its model: its weights are made and trained for that one, so that
    several budgets are several compressors. In training as at inference its K tokens stand in the sequence in place of
    the N, so the language model's loss reaches it without gates.

    train_projector: it has a copy of the model's projector, which is trained and saved with it and stands in for the
        model's own, which stays as it was; False: its tokens go through the model's own.
    """

    merges: ClassVar[bool] = True
    trainable: ClassVar[bool] = True
    fixed_count: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs):
        register(cls, _registry, _selectors)  # not among the selectors, which keep any count

    def __init__(self, train_projector: bool = True):
        super().__init__()
        self._options = {"train_projector": flag("train_projector", train_projector)}
        self.site: Site | None = None
        self.count: int | None = None
        self.projector: nn.Module | None = None

    def options(self) -> dict:
        return dict(self._options)

    # What a subclass says.

    def counts(self, site: Site) -> list[int]:
        """The counts that it can be made for, falling."""
        return list(range(site.tokens - 1, 0, -1))

    def heard(self, depth: int) -> tuple[int, ...]:
        """Which hidden states of a tower of `depth` layers it gets as `layers`; 0 would be the embeddings, 1 what the
        first layer gives."""
        return ()

    def make(self, site: Site, keep: int) -> None:
        """Makes the weights for this site and count."""
        raise TypeError(f"{type(self).__name__} must define make")

    def members(self) -> Tensor | None:
        """[N] int64, which token each patch goes into; None: all go into every token."""
        return rectangles(self.count, *self.site.grid)

    def forward(self, patches: Tensor, layers: Tensor | None = None, text: Tensor | None = None) -> Tensor:
        """[B, K, C] from patches [B, N, C]; layers [B, N, L * C'] of the tower where `heard` names L; text [B, C''],
        the state in which the language model has read the question, where `needs` has "text"."""
        raise TypeError(f"{type(self).__name__} must define forward")

    # What follows for all.

    def bind(self, site: Site, keep: int, projector: nn.Module | None = None) -> None:
        """Makes it for a model; nothing where that is done already. ValueError: it cannot have, or has, another count,
        or was made for another model."""
        if self.site is None:
            self.check(site, keep)
            self.make(site, keep)
            if self._options["train_projector"] and projector is not None:
                self.projector = self._copied(projector)
            self.site, self.count = site, keep
        elif self.site != site:
            raise ValueError(f"method must be a {self.name} that is new or was made for this model, got one that was "
                             f"made for {self.site}")
        self.require([keep])

    def bind_shape(self, shape, keep: int) -> None:
        """As bind, for a model of which only a cost.VlmShape is known; without a copy of the projector."""
        self.bind(_site(shape), keep)

    def counts_in(self, shape) -> list[int]:
        """The counts that it can be made for, falling, in a model of which a cost.VlmShape is known."""
        return self.counts(_site(shape))

    def _copied(self, projector):
        weights = list(projector.parameters())
        if any(weight.is_meta for weight in weights):
            raise ValueError(f"train_projector must be False where the projector's weights are kept elsewhere: "
                             f"{self.name} could not copy them")
        # In float32, as all that is trained here: float16 cannot be, and bfloat16 loses small steps.
        return copy.deepcopy(projector).float().requires_grad_(True)

    def check(self, site: Site, keep: int) -> None:
        """ValueError: it cannot be made for that count; those that it can are listed."""
        allowed = self.counts(site)
        if keep not in allowed:
            near = sorted(allowed, key=lambda k: abs(k - keep))[:2]
            told = ", ".join(map(str, allowed)) if len(allowed) < 20 else f"one of its counts, {near[0]} or {near[1]},"
            rows, columns = site.grid
            raise ValueError(f"keep must be {told} for {self.name} on {rows} x {columns} patches, got {keep}")

    def count_of(self, keep, tokens: int) -> int:
        """The one count that a budget means where every image has N = `tokens`."""
        if keep is None or isinstance(keep, (list, tuple)) or hasattr(keep, "tolist"):
            raise ValueError(f"keep must be one count or fraction for {self.name}, whose weights are made for it, got "
                             f"{shown(keep)}")
        return TokenBudget(keep).count(tokens)

    def require(self, keep):
        if self.count is None:
            raise RuntimeError(f"{self.name} has no weights yet: prune a model with it, or call bind first")
        wrong = sorted(set(super().require(keep)) - {self.count})
        if wrong:
            raise ValueError(f"keep must be {self.count}, which this {self.name} is made for, got {wrong[0]}; another "
                             "count is another compressor")
        return keep

    def plan(self, view: TokenView, keep) -> TokenPlan:
        """Which patches go into which token, all with one weight: what a picture can show, the content decides more.

        The positions given as kept are one in the middle of each of K rectangles.
        """
        keep, rows, device = self.require(keep), len(view.tokens), view.tokens.device
        (n, k), member = (self.site.tokens, self.count), self.members()
        if member is None:
            ends = torch.arange(k + 1) * n
            lists = MergeLists(ends.int(), torch.arange(n, dtype=torch.int32).repeat(k), torch.full((k * n,), 1 / n))
            lists = MergeLists(*(part.to(device).expand(rows, -1) for part in lists))
        else:
            weight = (1 / member.bincount()[member]).expand(rows, -1).to(device)
            lists = MergeLists.partition(member.expand(rows, -1).to(device), weight, k)
        kept = torch.tensor(lattice(k, *self.site.grid), dtype=torch.int32, device=device)
        return TokenPlan(kept.expand(len(keep), -1), lists)


def priced(method: Compressor, shape, keep: int, words: int) -> int:
    """FLOPs of compressing one image in a model of this shape (a cost.VlmShape), with reading a question of so many
    words where the method hears one. The method is new, and has no weights worth having behind it."""
    with torch.device("meta"):
        method.bind_shape(shape, keep)
    return method.flops(method.site.tokens, method.site.width, keep) + method.asking_flops(words, shape.decoder)


def linear_flops(module: nn.Module) -> int:
    """2 x multiply-adds of one vector through all linear layers of a module."""
    return 2 * sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))


def available() -> list[str]:
    """The names of all compressors, sorted."""
    return sorted(_registry)


def find(name: str) -> type[Compressor]:
    """The class of a compressor; ValueError lists the known."""
    if name not in _registry:
        raise ValueError(f"unknown compressor {name!r}; known: {', '.join(available())}")
    return _registry[name]


def _site(shape):
    tower = shape.tower
    return Site(shape.projector.matrices[0][0], (tower.side, tower.side), tower.hidden, tower.layers,
                shape.decoder.hidden)
