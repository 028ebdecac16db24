"""What decides which of a language model's later layers run under a budget: how the budget is counted, and its name."""

from numbers import Integral
from typing import ClassVar

from torch import nn

from ..checked import integer, number, one_of

_registry: dict[str, type["DepthScheduler"]] = {}
FORMS = ("layers", "heads")


def schedulers() -> list[str]:
    """The names that prune_depth() knows."""
    return sorted(_registry)


def scheduler(name: str) -> type["DepthScheduler"]:
    """The class of a name; ValueError lists the known ones."""
    return _registry[one_of("method", name, schedulers())]


class DepthScheduler(nn.Module):
    """A budget becomes a token of the prompt; what the first layers make of it says which of the others run.

    layers: of the decoder. heads: of each. prefix: the first layers, which always run; default half of them, as
    published for 7B (16 of 32) and 13B (20 of 40). form: "layers", whole ones are skipped; "heads", units of `rank`
    attention heads and `rank` groups of the MLP's neurons of one layer are.

    A budget is an int, layers (units in form "heads") that run, those of the prefix included; or a float, their
    fraction, rounded to the nearest.
    """

    name: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if cls.name:
            if cls.name in _registry:
                raise ValueError(f"method {cls.name!r} is defined twice")
            _registry[cls.name] = cls

    def __init__(self, layers: int, heads: int, *, form: str = "layers", prefix: int | None = None, rank: int = 8):
        super().__init__()
        self.form, self.heads = one_of("form", form, FORMS), heads
        self.prefix = integer("prefix", layers // 2 if prefix is None else prefix, 1, layers - 1)
        self.switchable, self.rank = layers - self.prefix, integer("rank", rank, 1)
        if form == "heads" and heads % rank:
            raise ValueError(f"rank must divide the {heads} heads of a layer, got {rank}")
        each = heads // rank if form == "heads" else 1
        self.always, self.units = self.prefix * each, self.switchable * each

    def count(self, budget: int | float) -> int:
        """n, the layers or units beyond the prefix that a budget pays for. ValueError: less than the prefix, or more
        than there are."""
        total = self.always + self.units
        what = "layers" if self.form == "layers" else f"units of {self.rank} heads"
        if isinstance(budget, Integral) and not isinstance(budget, bool):
            wanted = int(budget)
        else:
            wanted = round(total * number("budget", budget, 0, 1))
        if not self.always <= wanted <= total:
            raise ValueError(f"budget must be in [{self.always}, {total}] {what}, of which {self.always} always run, "
                             f"or a fraction of {total} of at least {self.always / total:.4g}; got {budget}")
        return wanted - self.always

    def of_layers(self, layers: int) -> int:
        """The budget that whole layers are: in form "heads" a layer is so many units."""
        return layers * self.always // self.prefix

    def options(self) -> dict:
        """What `prune_depth` was told, as JSON has it."""
        return {"form": self.form, "prefix": self.prefix, "rank": self.rank}
