"""PaliGemma: SigLIP, one linear layer, Gemma, whose prompt's tokens see each other in both directions."""

from .base import Family
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

    def features(self, model):
        vision = model.config.vision_config
        side = vision.image_size // vision.patch_size
        return model.config.text_config.hidden_size, side * side, (side, side)

    def has_cls(self, model):
        return False
