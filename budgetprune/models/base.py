"""What is particular to a family of vision-language models: where its image tokens come from and go to."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import nn

_registry: list[type["Family"]] = []


class Family(ABC):
    """One family of models. A new family is one new file with a subclass; nothing else names it.

    classes: names of the transformers classes it serves, subclasses of them included.
    image_arguments: forward arguments that belong to the encoder and end there.
    """

    classes: ClassVar[tuple[str, ...]] = ()
    image_arguments: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        _registry.append(cls)

    @abstractmethod
    def __init__(self, model: nn.Module):
        """Raises ValueError where a model of the family cannot be pruned, with the reason."""

    # Where things are. All take the model, so that a copy of it is never mistaken for the original.

    @abstractmethod
    def image_token_id(self, model) -> int:
        """The id of the image placeholder in input_ids."""

    @abstractmethod
    def projector(self, model) -> nn.Module:
        """The module between tower and decoder."""

    @abstractmethod
    def decoder(self, model) -> nn.Module:
        """The text model: its `layers` are the decoder layers, each with `self_attn`."""

    @abstractmethod
    def tower_attention(self, model) -> nn.Module:
        """The attention module of the tower's last block."""

    @abstractmethod
    def features(self, model) -> tuple[int, int, tuple[int, int]]:
        """(C, N, (rows, columns)) of the patch features that the projector gets for one image."""

    @abstractmethod
    def has_cls(self, model) -> bool:
        """Whether the tower has a CLS token."""

    @abstractmethod
    def keeps_cls(self, model, inputs: dict) -> bool:
        """Whether the language model gets CLS as its first image token."""

    @abstractmethod
    def encode(self, model, inputs: dict, *, cls: bool):
        """Runs tower and projector on the images of `inputs`; `cls`: the projector gets CLS too, in row 0."""


def family_of(model: nn.Module) -> Family:
    """The family of a model; TypeError lists what is supported."""
    names = {cls.__name__ for cls in type(model).__mro__}
    for family in _registry:
        if names & set(family.classes):
            return family(model)
    known = ", ".join(name for family in _registry for name in family.classes)
    raise TypeError(f"model must be one of {known}, got {type(model).__name__}")
