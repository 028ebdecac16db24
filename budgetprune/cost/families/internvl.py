"""InternVL 2 and 3 in the form of transformers: InternViT on tiles, pixel shuffle, two layers."""

from ..shapes import ProjectorShape, VlmShape
from ..tiling import Tiling
from .base import Family, parts, two_layers
from .towers import Tower

INTERNVIT_300M = {"model_type": "internvl_vision", "num_hidden_layers": 24, "hidden_size": 1024,
                  "intermediate_size": 4096, "num_attention_heads": 16, "image_size": [448, 448],
                  "patch_size": [14, 14], "attention_bias": True, "use_qk_norm": False, "use_mean_pooling": True}
QWEN25_7B = {"model_type": "qwen2", "num_hidden_layers": 28, "hidden_size": 3584, "intermediate_size": 18944,
             "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 151674, "tie_word_embeddings": False}


class InternVit(Tower):
    """Every block scales its two branches by learned vectors."""

    model_types = ("internvl_vision",)
    class_token = True

    @classmethod
    def vectors(cls, vision, tower):
        width = tower.hidden
        block = (3 * width if vision.get("attention_bias", default=False) else 0) + width + tower.mlp + width
        block += 2 * width + (4 if vision.get("norm_type", default="layer_norm") == "layer_norm" else 2) * width
        block += 2 * width if vision.get("use_qk_norm", default=False) else 0
        places = (tower.patches + 1) * width if vision.get("use_absolute_position_embeddings", default=True) else 0
        once = 2 * width + (width if vision.get("use_mask_token", default=False) else 0)  # patch bias, class token
        return tower.layers * block + places + once + (0 if vision.get("use_mean_pooling", default=True) else 2 * width)


class InternVl(Family):
    """A picture becomes up to twelve tiles, which is what its processor does by default."""

    model_types = ("internvl",)
    # From the published config.json of OpenGVLab/InternVL3-8B-hf.
    known = {"internvl3-8b": {"vision_config": INTERNVIT_300M, "text_config": QWEN25_7B, "downsample_ratio": 0.5}}

    @classmethod
    def shape(cls, config):
        tower, decoder, notes = parts(config)
        merge = round(1 / config.get("downsample_ratio", default=0.5))
        wide = tower.hidden * merge**2
        matrices, biases = two_layers(wide, decoder.hidden)
        return VlmShape(tower, decoder, ProjectorShape(matrices, merge, vectors=biases + 2 * wide),
                        tiling=Tiling(most_crops=12), model_type=config.get("model_type"), notes=notes)
