"""LLaVA-OneVision: SigLIP, crops as in LLaVA-NeXT, large pictures shrunk to at most so many crops' patches."""

from ..tiling import Tiling
from .llava_next import LlavaNext

# SigLIP so400m at 384 pixels, whose last layer was removed.
SIGLIP = {"model_type": "siglip_vision_model", "num_hidden_layers": 26, "hidden_size": 1152,
          "intermediate_size": 4304, "num_attention_heads": 16, "image_size": 384, "patch_size": 14,
          "vision_use_head": False}
QWEN2_7B = {"model_type": "qwen2", "num_hidden_layers": 28, "hidden_size": 3584, "intermediate_size": 18944,
            "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064}


class LlavaOnevision(LlavaNext):
    model_types = ("llava_onevision",)
    # Of llava-hf/llava-onevision-qwen2-7b-ov-hf: SigLIP as its conversion has it, Qwen2-7B with Qwen's own vocabulary.
    known = {"llava-onevision-7b": {
        "vision_config": SIGLIP, "text_config": QWEN2_7B, "vision_feature_layer": -1, "tie_word_embeddings": False,
        "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_9",
        "image_grid_pinpoints": [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]}}

    @classmethod
    def tiling(cls, config):
        most = str(config.get("vision_aspect_ratio", default="anyres_max_9")).rpartition("_")[2]
        if not most.isdecimal():
            raise ValueError(f"{config.name}.vision_aspect_ratio must end in a number, as anyres_max_9 does, got "
                             f"{most!r}")
        return Tiling(super().tiling(config).pinpoints, int(most))
