"""InternVL: InternViT on crops of the image, four patches to a token."""

from .base import Family
from .llava import tower_type


class InternVl(Family):
    """InternVLForConditionalGeneration. The crops of one image, which stand together in the prompt, are one image."""

    classes = ("InternVLForConditionalGeneration",)
    encoder_arguments = ("vision_feature_layer", "vision_feature_select_strategy")
    one_tensor = frozenset({"image"})

    def __init__(self, model):
        super().__init__(model)
        tower_type(model, "internvl_vision")
        if model.config.vision_feature_select_strategy != "default":
            raise ValueError("vision_feature_select_strategy must be 'default', CLS has no place among the patches; "
                             f"got {model.config.vision_feature_select_strategy!r}")

    def blocks(self, model):
        return model.model.vision_tower.encoder.layer

    def tower_attention(self, model, layer):
        return self.blocks(model)[layer].attention

    def has_cls(self, model):
        return True

    def encode(self, model, medium, inputs):
        outputs = super().encode(model, medium, inputs)
        outputs.pooler_output = self._by_image(model, inputs, outputs.pooler_output)
        return outputs

    def pack(self, model, medium, inputs, values):
        side = round(values.shape[1] ** 0.5)
        shuffled = model.model.pixel_shuffle(values.unflatten(1, (side, side)), model.config.downsample_ratio)
        merged = shuffled.flatten(1, 2).unflatten(2, (-1, values.shape[2])).mean(2)
        return self._by_image(model, inputs, merged)

    def grids(self, model, medium, inputs, lengths):
        vision = model.config.vision_config
        side = int(vision.image_size[0] // vision.patch_size[0] * model.config.downsample_ratio)
        return [(side, side) if n == side * side else None for n in lengths]

    def _by_image(self, model, inputs, values):
        """[crops, n, C] as one [N_i, C] per image: its crops' placeholders follow each other without a gap."""
        is_image = inputs["input_ids"] == model.config.image_token_id
        before = is_image.roll(1, dims=1)
        before[:, 0] = False
        runs = is_image.flatten().cumsum(0)[(is_image & ~before).flatten()] - 1
        flat = values.flatten(0, 1)
        starts = [*runs.tolist(), len(flat)]
        lengths = [end - start for start, end in zip(starts, starts[1:])]
        if not lengths or min(lengths) <= 0 or int(is_image.sum()) != len(flat):
            lengths = [values.shape[1]] * len(values)  # the prompt does not fit, and will be told so
        return list(flat.split(lengths))
