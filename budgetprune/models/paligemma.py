"""PaliGemma: SigLIP, one linear layer, Gemma, whose prompt's tokens see each other in both directions."""

from .base import Family, arguments_of, split_patches
from .llava import tower_type


class PaliGemma(Family):
    """PaliGemmaForConditionalGeneration (1 and 2)."""

    classes = ("PaliGemmaForConditionalGeneration",)
    one_tensor = frozenset({"image"})
    first_position = 1
    prefix_lm = True

    def __init__(self, model):
        super().__init__(model)
        tower_type(model, "siglip_vision_model")

    def tower_attention(self, model, layer):
        return model.model.vision_tower.encoder.layers[layer].self_attn

    def tower_depth(self, model):
        return len(model.model.vision_tower.encoder.layers)

    def features(self, model):
        vision = model.config.vision_config
        side = vision.image_size // vision.patch_size
        return model.config.text_config.hidden_size, side * side, (side, side)

    def has_cls(self, model):
        return False

    def encode(self, model, medium, inputs):
        arguments = arguments_of(type(model.model).get_image_features, inputs)
        return model.model.get_image_features(**arguments, return_dict=True)

    def pack(self, model, medium, inputs, values):
        return split_patches(values, [values.shape[1]] * len(values))
