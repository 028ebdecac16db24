"""How the vision_config of a tower is read; a tower is a subclass, which lists itself."""

from typing import ClassVar

from ..shapes import TowerShape
from .fields import Fields

_registry: list[type["Tower"]] = []
# Fields of towers that are no stack of equal blocks over one sequence.
OTHER_FORMS = {"depths": "a tower in stages of different width", "global_attn_indexes": "attention in SAM's windows",
               "num_global_layers": "a second stack of layers", "conv_kernel_size": "convolutions inside the blocks",
               "hybrid_layer_pattern": "layers of different kinds"}


class Tower:
    """model_types: of the vision configs that it reads. class_token, conv_bias: whether there is one."""

    model_types: ClassVar[tuple[str, ...]] = ()
    class_token: ClassVar[bool] = False
    conv_bias: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if cls.model_types:
            _registry.append(cls)

    @classmethod
    def shape(cls, vision: Fields) -> TowerShape:
        """A vision transformer by the usual names of its sizes."""
        vision.refuse(OTHER_FORMS)
        sizes = dict(layers=vision.count("num_hidden_layers", "depth"), hidden=vision.count("hidden_size", "embed_dim"),
                     mlp=vision.count("intermediate_size"), heads=vision.count("num_attention_heads", "num_heads"),
                     image_size=vision.count("image_size"), patch_size=vision.count("patch_size"),
                     channels=vision.count("num_channels", "in_channels", default=3))
        bare = TowerShape(**sizes, class_token=cls.class_token)
        return TowerShape(**sizes, class_token=cls.class_token, pooling_head=cls.pooling_head(vision),
                          vectors=cls.vectors(vision, bare))

    @classmethod
    def pooling_head(cls, vision: Fields) -> bool:
        return False

    @classmethod
    def vectors(cls, vision: Fields, tower: TowerShape) -> int:
        """Parameters in no product: biases and norms of every block, position vectors, the class token, a norm at the
        end."""
        width = tower.hidden
        block = 4 * width + tower.mlp + width + 4 * width
        rows = tower.patches + 2 * cls.class_token
        return tower.layers * block + (rows + cls.conv_bias) * width + 2 * width


class Clip(Tower):
    """CLIP: a norm before the blocks as well."""

    model_types = ("clip_vision_model",)
    class_token, conv_bias = True, False

    @classmethod
    def vectors(cls, vision, tower):
        return super().vectors(vision, tower) + 2 * tower.hidden


class Siglip(Tower):
    """SigLIP: no class token; its pooling head runs where `vision_use_head` does not forbid it."""

    model_types = ("siglip_vision_model",)

    @classmethod
    def pooling_head(cls, vision):
        return bool(vision.get("vision_use_head", default=True))

    @classmethod
    def vectors(cls, vision, tower):
        head = 8 * tower.hidden + tower.mlp if cls.pooling_head(vision) else 0
        return super().vectors(vision, tower) + head


def tower_of(vision: Fields) -> tuple[TowerShape, tuple[str, ...]]:
    """(shape, what was assumed) of a vision config."""
    kind = vision.get("model_type", default=None)
    for tower in _registry:
        if kind in tower.model_types:
            return tower.shape(vision), ()
    return Tower.shape(vision), (f"vision type {kind}: taken as a plain vision transformer without class token",)
