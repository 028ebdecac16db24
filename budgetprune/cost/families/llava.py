"""LLaVA-1.5 and its like: CLIP or SigLIP, two layers, any decoder."""

from ..shapes import ProjectorShape, VlmShape
from .base import Family, parts, two_layers

CLIP_L_336 = {"model_type": "clip_vision_model", "num_hidden_layers": 24, "hidden_size": 1024,
              "intermediate_size": 4096, "num_attention_heads": 16, "image_size": 336, "patch_size": 14}
VICUNA_7B = {"model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11008,
             "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064}
VICUNA_13B = {**VICUNA_7B, "num_hidden_layers": 40, "hidden_size": 5120, "intermediate_size": 13824,
              "num_attention_heads": 40, "num_key_value_heads": 40}


class Llava(Family):
    """`selects_before`: budgetprune prunes what its projector gets."""

    model_types = ("llava",)
    selects_before = True
    # From the published config.json of llava-hf/llava-1.5-7b-hf and -13b-hf.
    known = {"llava-1.5-7b": {"vision_config": CLIP_L_336, "text_config": VICUNA_7B},
             "llava-1.5-13b": {"vision_config": CLIP_L_336, "text_config": VICUNA_13B}}

    @classmethod
    def shape(cls, config):
        tower, decoder, notes = parts(config)
        layer = config.get("vision_feature_layer", "vision_feature_layers", default=-2)
        width = tower.hidden * (1 if isinstance(layer, int) else len(layer))
        bias = config.get("multimodal_projector_bias", default=True)
        matrices, vectors = two_layers(width, decoder.hidden, bias)
        projector = ProjectorShape(matrices, selects_before=cls.selects_before,
                                   vectors=vectors + cls.more_vectors(config, decoder))
        whole = config.get("vision_feature_select_strategy", default="default") == "full"
        return VlmShape(tower, decoder, projector, whole and tower.class_token, cls.tiling(config),
                        config.get("model_type"), notes)

    @classmethod
    def more_vectors(cls, config, decoder) -> int:
        return 0

    @classmethod
    def tiling(cls, config):
        return None
