"""LLaVA-1.5 in vLLM with fewer image tokens, all that the encoder hands over being pruned already.

vLLM gives an image its placeholders before the encoder runs, so the count is the same for every image; it keeps
encoded images and prompt prefixes by the image's hash, so the question can have no say. FixedCount holds to both.
"""

import torch
from vllm.distributed import tensor_model_parallel_all_gather
from vllm.model_executor.layers.attention import MMEncoderAttention
from vllm.model_executor.models.clip import CLIPEncoderLayer, CLIPVisionModel
from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaImageEmbeddingInputs,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from .fixed_count import FixedCount


def pruner_of(config) -> FixedCount:
    """What hf_overrides asks for: budgetprune={"method": .., "keep": ..} and the method's options."""
    wanted = getattr(config, "budgetprune", None)
    if not isinstance(wanted, dict) or "method" not in wanted:
        raise ValueError("hf_overrides must hold budgetprune={'method': .., 'keep': ..} beside the architecture, "
                         f"got budgetprune={wanted!r}")
    if config.vision_config.model_type != "clip_vision_model":
        raise ValueError(f"model must have a CLIP vision tower, got {config.vision_config.model_type}")
    if config.vision_feature_select_strategy != "default":
        raise ValueError("vision_feature_select_strategy must be 'default' (patches without CLS), got "
                         f"{config.vision_feature_select_strategy!r}")
    if not isinstance(config.vision_feature_layer, int):
        raise ValueError(f"vision_feature_layer must be one layer, got {config.vision_feature_layer!r}")
    return FixedCount(**wanted)


class PrunedLlavaInfo(LlavaProcessingInfo):
    """Tells vLLM how many placeholders an image gets."""

    def get_num_image_tokens(self, *, image_width: int, image_height: int) -> int:
        tokens = super().get_num_image_tokens(image_width=image_width, image_height=image_height)
        return pruner_of(self.get_hf_config()).count(tokens)


@MULTIMODAL_REGISTRY.register_processor(LlavaMultiModalProcessor, info=PrunedLlavaInfo,
                                        dummy_inputs=LlavaDummyInputsBuilder)
class PrunedLlava(LlavaForConditionalGeneration):
    """The stock model, with a choice between its tower and its projector."""

    def __init__(self, *, vllm_config, prefix: str = ""):
        config = vllm_config.model_config.hf_config
        pruner = pruner_of(config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.pruner = pruner
        if pruner.looks and isinstance(self.vision_tower, CLIPVisionModel):  # else this process encodes no images
            _deepen(self.vision_tower, config.vision_config, vllm_config.quant_config, prefix, self._looked_into)

    def _process_image_pixels(self, inputs) -> torch.Tensor:
        if self.pruner.looks:
            return self.pruner(*self._look(inputs["pixel_values"]))
        features = super()._process_image_pixels(inputs)
        return features if self.pruner.after_projector else self.pruner(features, self._grid)

    def _process_image_input(self, image_input):
        features = super()._process_image_input(image_input)
        if not self.pruner.after_projector or isinstance(image_input, LlavaImageEmbeddingInputs):
            return features
        return self.pruner(features, self._grid)

    @property
    def _looked_into(self) -> int:
        """Number of the tower's block that the method looks into, from 0."""
        return self.config.vision_config.num_hidden_layers + self.pruner.layer

    @property
    def _grid(self):
        vision = self.config.vision_config
        return (vision.image_size // vision.patch_size,) * 2

    def _look(self, pixels):
        """What the tower gives, its grid, queries and keys [B, H, P + N, D] of the block that the method looks into."""
        attention = self.vision_tower.vision_model.encoder.layers[self._looked_into].self_attn
        seen = []
        handle = attention.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True)
        try:
            features = self.vision_tower(pixels, select_layers=[self.config.vision_feature_layer],
                                         feature_select_strategy=self.config.vision_feature_select_strategy)
        finally:
            handle.remove()
        queries, keys, _ = attention.qkv_proj(seen[0])[0].chunk(3, dim=-1)
        if attention.tp_size > 1:  # every process has some of the heads, and all must choose the same
            queries, keys = (tensor_model_parallel_all_gather(x.contiguous()) for x in (queries, keys))
        queries, keys = (x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for x in (queries, keys))
        return features, self._grid, queries, keys


def _deepen(tower: CLIPVisionModel, config, quant_config, prefix: str, last: int) -> None:
    """Adds blocks behind the feature layer, which vLLM leaves out, up to number `last`, which the method looks into."""
    blocks = tower.vision_model.encoder.layers
    name = f"{prefix}." if prefix else ""
    while len(blocks) <= last:
        blocks.append(CLIPEncoderLayer(config, quant_config, attn_cls=MMEncoderAttention,
                                       prefix=f"{name}vision_tower.vision_model.encoder.layers.{len(blocks)}"))
