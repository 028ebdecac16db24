"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: images of any size in one row, four patches to a token, mrope, deepstack."""

import torch

from .base import Family, arguments_of


class QwenVl(Family):
    """Qwen2VL-, Qwen2_5_VL- and Qwen3VLForConditionalGeneration.

    Position ids of what stays are always the original ones: they say where in the image a token is.
    """

    classes = ("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration",
               "Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration")
    media = {"image": "pixel_values", "video": "pixel_values_videos"}
    encoder_arguments = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    mrope = True

    def vision_tower(self, model):
        return model.model.visual

    def behind_tower(self, model):
        return []  # its mergers are inside

    def images(self, model, medium, inputs):
        each = model.model.visual.spatial_merge_size ** 2
        return [(t * h * w // each, t) for t, h, w in inputs[f"{medium}_grid_thw"].tolist()]

    def blocks(self, model):
        return model.model.visual.blocks

    def tower_attention(self, model, layer):
        blocks = self.blocks(model)
        whole = getattr(model.model.visual, "fullatt_block_indexes", None)
        wanted = range(len(blocks))[layer]
        if whole:  # the others see windows of the image
            wanted = max((i for i in whole if i <= wanted), default=min(whole))
        return blocks[wanted].attn

    def has_cls(self, model):
        return False

    def pack(self, model, medium, inputs, values):
        visual, grid = model.model.visual, inputs[f"{medium}_grid_thw"]
        each = visual.spatial_merge_size ** 2
        merged = values.flatten(0, 1).unflatten(0, (-1, each)).float().mean(1)
        if getattr(visual, "fullatt_block_indexes", None):  # blocks see the tokens window by window
            from transformers.vision_utils import get_vision_window_index

            order, _ = get_vision_window_index(grid, spatial_merge_size=visual.spatial_merge_size,
                                               window_size=visual.window_size, patch_size=visual.patch_size)
            merged = torch.empty_like(merged).index_copy(0, order.to(merged.device), merged)
        return list(merged.split((grid.prod(-1) // each).tolist()))

    def grids(self, model, medium, inputs, lengths):
        side = model.model.visual.spatial_merge_size
        return [(t * h // side, w // side) for t, h, w in inputs[f"{medium}_grid_thw"].tolist()]

    def position_ids(self, model, inputs):
        given = inputs.get("position_ids")
        if given is not None:
            return given if given.dim() == 3 else given.expand(3, -1, -1)
        arguments = arguments_of(type(model.model).get_rope_index, inputs)
        if "mm_token_type_ids" not in arguments:
            raise ValueError("mm_token_type_ids must be given, as the processor makes them: without them the model "
                             "cannot tell where in an image a token is")
        where, model.model.rope_deltas = model.model.get_rope_index(**arguments)
        return where
