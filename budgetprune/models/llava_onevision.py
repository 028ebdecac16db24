"""LLaVA-OneVision: SigLIP, images in crops, videos in pooled frames."""

import torch

from .llava import tower_type
from .llava_next import LlavaNext


class LlavaOnevision(LlavaNext):
    """LlavaOnevisionForConditionalGeneration with a SigLIP tower. A video is chosen from as one image of many rows.

    Where the model shrinks a large image by interpolation, scores and keys are interpolated as the features are.
    """

    classes = ("LlavaOnevisionForConditionalGeneration",)
    media = {"image": "pixel_values", "video": "pixel_values_videos"}
    encoder_arguments = (*LlavaNext.encoder_arguments, "image_sizes_videos", "vision_aspect_ratio", "batch_num_images")
    one_tensor = frozenset({"video"})

    def __init__(self, model):
        super(LlavaNext, self).__init__(model)
        tower_type(model, "siglip_vision_model")
        if model.config.vision_feature_select_strategy != "full":
            raise ValueError("vision_feature_select_strategy must be 'full' for a tower without CLS, "
                             f"got {model.config.vision_feature_select_strategy!r}")

    def has_cls(self, model):
        return False

    def crops(self, model, inputs):
        crops, each = super().crops(model, inputs), inputs.get("batch_num_images")
        if each is None:
            return crops
        alone = [int(n) == 1 for n in each for _ in range(int(n))]
        return [n if single else 1 for n, single in zip(crops, alone, strict=True)]

    def images(self, model, medium, inputs):
        if medium == "image":
            return super().images(model, medium, inputs)
        videos, frames = inputs["pixel_values_videos"].shape[:2]
        return [(frames * self._pooled_side(model) ** 2, frames)] * videos

    def pack(self, model, medium, inputs, values):
        newline = values.new_full((values.shape[-1],), torch.nan)
        if medium == "video":
            frames = inputs["pixel_values_videos"].shape[1]
            pooled = model.model.apply_pooling(values).unflatten(0, (-1, frames)).flatten(1, 2)
            return [torch.cat([video, newline[None]]) for video in pooled]
        ratio = inputs.get("vision_aspect_ratio") or model.config.vision_aspect_ratio
        packed, _ = model.model.pack_image_features(values.split(self.crops(model, inputs)), inputs["image_sizes"],
                                                    image_newline=newline, vision_aspect_ratio=ratio)
        return packed

    def structure(self, model, medium, inputs, features):
        if medium == "image":
            return super().structure(model, medium, inputs, features)
        return [torch.arange(len(x), device=x.device) < len(x) - 1 for x in features]

    def grids(self, model, medium, inputs, lengths):
        if medium == "image":
            return super().grids(model, medium, inputs, lengths)
        side = self._pooled_side(model)
        return [(n // side, side) for n in lengths]

    @staticmethod
    def _pooled_side(model):
        return -(-(model.config.vision_config.image_size // model.config.vision_config.patch_size) // 2)
