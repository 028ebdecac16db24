"""What is asked of a family: from its configuration to the sizes that its cost depends on."""

from abc import ABC, abstractmethod
from typing import ClassVar

from ..shapes import ProjectorShape, VlmShape
from .decoders import decoder_of
from .fields import Fields
from .towers import tower_of

_registry: list[type["Family"]] = []


class Family(ABC):
    """One family of models. A new one is one new file with a subclass; nothing else names it.

    model_types: of the configurations that it reads.
    known: {name: the fields of a published config.json that its cost depends on}.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    known: ClassVar[dict[str, dict]] = {}

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if cls.model_types:
            _registry.append(cls)

    @classmethod
    @abstractmethod
    def shape(cls, config: Fields) -> VlmShape:
        """The shape of a configuration."""


def shape_of(config) -> VlmShape:
    """The cost shape of a Hugging Face VLM configuration: a config object, or the JSON object of a config.json.

    Families that are not known are read where they have vision_config and text_config with the usual fields, and the
    shape's `notes` say what was assumed. A config object has the defaults that its JSON may leave out. ValueError
    names a field that is missing, or one that says that the model does what is not counted here.
    """
    fields = Fields(config, "config")
    kind = fields.get("model_type", default=None)
    for family in _registry:
        if kind in family.model_types:
            return family.shape(fields)
    return unknown_family(fields)


def known_shapes() -> dict[str, VlmShape]:
    """The shapes of all published models that families name."""
    found = {name: family.shape(Fields({"model_type": family.model_types[0], **config}, name))
             for family in _registry for name, config in family.known.items()}
    return dict(sorted(found.items()))


def parts(config: Fields):
    """(tower, decoder, names of what was assumed) of a configuration; text fields may lie at its root."""
    tower, notes = tower_of(config.part("vision_config"))
    text = config.part("text_config") if config.has("text_config") else config
    decoder, more = decoder_of(text, tied_head=tied(config, text), notes=True)
    return tower, decoder, (*notes, *more)


def tied(config: Fields, text: Fields) -> bool | None:
    """Whether the head is the embedding table: by the whole model, else by the decoder; None: neither says."""
    found = config.get("tie_word_embeddings", default=None)
    return text.get("tie_word_embeddings", default=None) if found is None else found


def two_layers(width: int, out: int, bias: bool = True) -> tuple[tuple[tuple[int, int], ...], int]:
    """(matrices, biases) of LLaVA's projector."""
    return ((width, out), (out, out)), 2 * out if bias else 0


# Names under which configurations say how many patches become one token: patches on a side, its inverse, tokens.
_MERGE, _SHARE, _TOKENS = ("spatial_merge_size", "scale_factor", "downsample_factor"), "downsample_ratio", (
    "mm_tokens_per_image", "image_seq_length")


def unknown_family(config: Fields) -> VlmShape:
    """Of any other model that is a tower, a projector and a decoder."""
    kind = config.get("model_type", default="without model_type")
    if not config.has("vision_config"):
        raise ValueError(f"{config.name}.vision_config must be there: {kind} is no vision-language model of a form "
                         "that is counted")
    tower, decoder, notes = parts(config)
    merge = config.get(*_MERGE, default=1)
    if config.has(_SHARE):
        merge = round(1 / config.get(_SHARE))
    tokens = config.get(*_TOKENS, default=None)
    if tokens is not None and tower.image_size is not None and merge == 1 and tokens < tower.patches:
        merge = round((tower.patches / tokens) ** 0.5)
    if isinstance(merge, bool) or not isinstance(merge, int) or merge < 1:
        raise ValueError(f"{config.name}.{_MERGE[0]} must be a positive int, got {merge!r}")
    matrices, biases = two_layers(tower.hidden * merge**2, decoder.hidden)
    notes += (f"model type {kind}: its projector is taken as two layers, {merge} x {merge} patches to a token",)
    return VlmShape(tower, decoder, ProjectorShape(matrices, merge, vectors=biases), model_type=str(kind), notes=notes)
