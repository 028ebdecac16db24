"""LLaVA-NeXT: the image as a whole and in crops, packed without its padding, a line end after every row."""

import torch

from .base import Family
from .llava import tower_type


class LlavaNext(Family):
    """LlavaNextForConditionalGeneration with a CLIP tower.

    Line ends are no patches: K counts patches, and where any patch goes, the line ends go too.
    """

    classes = ("LlavaNextForConditionalGeneration",)
    encoder_arguments = ("image_sizes", "vision_feature_layer", "vision_feature_select_strategy")

    def __init__(self, model):
        super().__init__(model)
        tower_type(model, "clip_vision_model")
        if model.config.vision_feature_select_strategy != "default":
            raise ValueError("vision_feature_select_strategy must be 'default', or crops with CLS cannot be packed; "
                             f"got {model.config.vision_feature_select_strategy!r}")

    def has_cls(self, model):
        return True

    def crops(self, model, inputs) -> list[int]:
        """How many times the tower sees each image: once as a whole, and once per crop."""
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

        config = model.config
        return [image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size)
                for size in inputs["image_sizes"]]

    def images(self, model, medium, inputs):
        patches = self.structure(model, medium, inputs, [inputs["pixel_values"]])
        return list(zip([int(row.sum()) for row in patches], self.crops(model, inputs), strict=True))

    def pack(self, model, medium, inputs, values):
        newline = values.new_full((values.shape[-1],), torch.nan)
        packed, _ = model.model.pack_image_features(
            values.split(self.crops(model, inputs)), inputs["image_sizes"], image_newline=newline,
            vision_feature_select_strategy="default")
        return packed

    def structure(self, model, medium, inputs, features):
        vision = model.config.vision_config
        blank = features[0].new_zeros(sum(self.crops(model, inputs)), (vision.image_size // vision.patch_size) ** 2, 1)
        return [~row[:, 0].isnan() for row in self.pack(model, medium, inputs, blank)]

    def grids(self, model, medium, inputs, lengths):
        side = model.config.vision_config.image_size // model.config.vision_config.patch_size
        return [(side, side) if n == side * side else None for n in lengths]
