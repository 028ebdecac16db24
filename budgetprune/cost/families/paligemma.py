"""PaliGemma 1 and 2: SigLIP, one matrix, Gemma as a prefix language model."""

from dataclasses import replace

from ..shapes import ProjectorShape, VlmShape
from .base import Family, parts

GEMMA_2B = {"model_type": "gemma", "num_hidden_layers": 18, "hidden_size": 2048, "intermediate_size": 16384,
            "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 257216}
GEMMA2_2B = {"model_type": "gemma2", "num_hidden_layers": 26, "hidden_size": 2304, "intermediate_size": 9216,
             "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 257216,
             "sliding_window": 4096}


def _vision(size):
    return {"model_type": "siglip_vision_model", "num_hidden_layers": 27, "hidden_size": 1152,
            "intermediate_size": 4304, "num_attention_heads": 16, "image_size": size, "patch_size": 14,
            "vision_use_head": False}


class PaliGemma(Family):
    model_types = ("paligemma",)
    # From the published config.json of google/paligemma-3b-mix-224 and -448, and of google/paligemma2-3b-mix-448.
    known = {"paligemma-3b-224": {"vision_config": _vision(224), "text_config": GEMMA_2B},
             "paligemma-3b-448": {"vision_config": _vision(448), "text_config": GEMMA_2B},
             "paligemma2-3b-448": {"vision_config": _vision(448), "text_config": GEMMA2_2B}}

    @classmethod
    def shape(cls, config):
        tower, decoder, notes = parts(config)
        projector = ProjectorShape(((tower.hidden, decoder.hidden),), vectors=decoder.hidden)
        return VlmShape(tower, replace(decoder, prefix_lm=True), projector, model_type=config.get("model_type"),
                        notes=notes)
