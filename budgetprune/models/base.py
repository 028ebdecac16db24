"""What is particular to a family of vision-language models: where its image tokens come from and go to."""

import inspect
from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

_registry: list[type["Family"]] = []


class Family(ABC):
    """One family of models. A new family is one new file with a subclass; nothing else names it.

    classes: names of the transformers classes it serves, subclasses of them included.
    media: {"image" or "video": the forward argument with its pixels}.
    encoder_arguments: the other forward arguments that belong to the encoder and end there.
    before_projector: whether methods choose among what the projector gets, so that it works on fewer tokens; otherwise
        among what the encoder hands to the decoder.
    one_tensor: media whose features the model wants as one tensor [B, n, C], not as a list of [n, C].
    first_position: position id of the first token where the model counts by itself.
    mrope: whether `position_ids` gives positions of its own, several per token.
    prefix_lm: whether the prompt's tokens see each other in both directions.
    """

    classes: ClassVar[tuple[str, ...]] = ()
    media: ClassVar[dict[str, str]] = {"image": "pixel_values"}
    encoder_arguments: ClassVar[tuple[str, ...]] = ()
    before_projector: ClassVar[bool] = False
    one_tensor: ClassVar[frozenset[str]] = frozenset()
    first_position: ClassVar[int] = 0
    mrope: ClassVar[bool] = False
    prefix_lm: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if cls.classes:
            _registry.append(cls)

    def __init__(self, model: nn.Module):
        """Raises ValueError where a model of the family cannot be pruned, with the reason."""
        if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
            raise ValueError("model.forward must take mm_encoder_outputs: transformers 5.23 or newer is needed")

    # Where things are. All take the model, so that a copy of it is never mistaken for the original.

    def decoder(self, model) -> nn.Module:
        """The text model: its `layers` are the decoder layers, each with `self_attn`."""
        return model.model.language_model

    def token_ids(self, model) -> dict[str, int]:
        """{medium: id of its placeholder in input_ids}."""
        return {name: getattr(model.config, f"{name}_token_id") for name in self.media}

    def is_placeholder(self, model, ids: Tensor) -> Tensor:
        """[B, L] bool, True where input_ids hold an image's or a video's token."""
        found = [ids == token for token in self.token_ids(model).values()]
        return found[0] if len(found) == 1 else found[0] | found[1]

    def blocks(self, model) -> nn.ModuleList:
        """The tower's blocks."""
        return model.model.vision_tower.encoder.layers

    def tower_attention(self, model, layer: int) -> nn.Module:
        """The attention module of the tower's block `layer`, -1 the last; one that sees the whole image."""
        return self.blocks(model)[layer].self_attn

    def vision_tower(self, model) -> nn.Module:
        """The vision tower."""
        return model.model.vision_tower

    def behind_tower(self, model) -> list[nn.Module]:
        """The modules outside of the tower that get its states, one row of tokens for each run of the tower."""
        return [model.model.multi_modal_projector]

    def state_width(self, model) -> int | None:
        """The width of the tower's states there; None: that of its tokens."""
        layers = getattr(model.config, "vision_feature_layer", -1)
        return model.config.vision_config.hidden_size * len(layers) if isinstance(layers, (list, tuple)) else None

    @abstractmethod
    def has_cls(self, model) -> bool:
        """Whether the tower has a CLS token, row 0 of what its attention sees."""

    def features(self, model) -> tuple[int, int | None, tuple[int, int] | None]:
        """(C, N, (rows, columns)) of what methods choose among, of one image; None where images differ in N."""
        return model.config.text_config.hidden_size, None, None

    # How images become tokens.

    def images(self, model, medium: str, inputs: dict) -> list[tuple[int, int]]:
        """(patches that methods choose among, rows of the tower) of each image, known before the tower has run."""
        patches = self.features(model)[1]
        if patches is None:
            raise ValueError(f"fusion must be 'post' in {type(model).__name__}: how many patches an image has is not "
                             "known before its tower has seen it")
        return [(patches, 1)] * len(inputs[self.media[medium]])

    def encode(self, model, medium: str, inputs: dict):
        """The model's own encoder on the images (or videos) of `inputs`: its output, with `pooler_output`."""
        function = f"get_{medium}_features"
        arguments = arguments_of(getattr(type(model.model), function), inputs)
        return getattr(model.model, function)(**arguments, return_dict=True)

    def pack(self, model, medium: str, inputs: dict, values: Tensor) -> list[Tensor]:
        """Brings numbers per patch of the tower, [R, n, C], to where `encode` puts the patches: [N_i, C] per image.

        NaN marks tokens that are no patch (line ends).
        """
        return list(values)  # one row of the tower is one image

    def crops(self, model, inputs: dict) -> list[int] | None:
        """How many times the tower sees each image; None where that follows from its tokens."""
        return None

    def structure(self, model, medium: str, inputs: dict, features: list[Tensor]) -> list[Tensor] | None:
        """Per image [N_i] bool, True where a token is a patch of the image; None: all are. The others go when
        anything goes, but for CLS (`keeps_cls`)."""
        return None

    def grids(self, model, medium: str, inputs: dict, lengths: list[int]) -> list[tuple[int, int] | None]:
        """(rows, columns) of the patches of images with `lengths` of them, where they form one grid."""
        return [self.features(model)[2]] * len(lengths)

    def position_ids(self, model, inputs: dict) -> Tensor | None:
        """Position ids of the whole prompt where the model has more than one per token, [3, B, L]; else None."""
        return None

    def keeps_cls(self, model, inputs: dict) -> bool:
        """Whether the language model gets CLS as its first image token."""
        return False


def family_of(model: nn.Module) -> Family:
    """The family of a model; TypeError lists what is supported."""
    names = {cls.__name__ for cls in type(model).__mro__}
    for family in _registry:
        if names & set(family.classes):
            return family(model)
    known = ", ".join(name for family in _registry for name in family.classes)
    inside = "; prune the model inside it, get_base_model()" if hasattr(model, "get_base_model") else ""
    raise TypeError(f"model must be one of {known}, got {type(model).__name__}{inside}")


def arguments_of(function, inputs: dict) -> dict:
    """Those of `inputs` that `function` takes and that are given."""
    names = inspect.signature(function).parameters
    return {name: inputs[name] for name in names if inputs.get(name) is not None}
