"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL and its mixture of experts: packed pictures, merged patches, deepstack."""

from ..shapes import ProjectorShape, TowerShape, VlmShape
from .base import Family, tied
from .decoders import decoder_of
from .fields import Fields

QWEN25_7B = {"num_hidden_layers": 28, "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28,
             "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False}
QWEN25_VISION = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14,
                 "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112,
                 "fullatt_block_indexes": [7, 15, 23, 31]}
QWEN3_8B = {"model_type": "qwen3_vl_text", "num_hidden_layers": 36, "hidden_size": 4096, "intermediate_size": 12288,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
            "tie_word_embeddings": False}
QWEN3_30B = {**QWEN3_8B, "model_type": "qwen3_vl_moe_text", "num_hidden_layers": 48, "hidden_size": 2048,
             "intermediate_size": 6144, "num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8,
             "moe_intermediate_size": 768}
QWEN3_VISION = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "patch_size": 16,
                "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 2304,
                "deepstack_visual_indexes": [8, 16, 24]}


class Qwen2Vl(Family):
    """The merger brings squares of patches through two layers; it belongs to the tower, so all of it always runs."""

    model_types = ("qwen2_vl",)
    # From the published config.json of Qwen/Qwen2-VL-2B-Instruct and -7B-Instruct.
    known = {"qwen2-vl-2b": {"text_config": {**QWEN25_7B, "model_type": "qwen2_vl_text", "hidden_size": 1536,
                                             "intermediate_size": 8960, "num_attention_heads": 12,
                                             "num_key_value_heads": 2, "vocab_size": 151936,
                                             "tie_word_embeddings": True},
                             "vision_config": {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16,
                                               "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}}}
    known["qwen2-vl-7b"] = {**known["qwen2-vl-2b"], "text_config": {**QWEN25_7B, "model_type": "qwen2_vl_text"}}

    @classmethod
    def shape(cls, config):
        vision = config.part("vision_config")
        text = config.part("text_config") if config.has("text_config") else config
        decoder, notes = decoder_of(text, tied_head=tied(config, text), notes=True)
        tower, merge = cls.tower(vision), vision.count("spatial_merge_size", default=2)
        return VlmShape(tower, decoder, cls.merger(vision, tower.hidden, decoder.hidden, merge),
                        model_type=config.get("model_type"), notes=notes)

    @classmethod
    def tower(cls, vision: Fields) -> TowerShape:
        width = vision.count("embed_dim")
        mlp = int(width * vision.get("mlp_ratio", default=4))
        return cls._tower(vision, width, mlp, vectors=4 * width + mlp + width + 4 * width)

    @classmethod
    def merger(cls, vision, width, out, merge) -> ProjectorShape:
        wide = width * merge**2
        return ProjectorShape(((wide, wide), (wide, out)), merge, vectors=wide + out + 2 * width)

    @classmethod
    def _tower(cls, vision, width, mlp, *, vectors, once=0, **options):
        """vectors: parameters in no product of one block; once: of the rest."""
        layers = vision.count("depth")
        return TowerShape(layers, width, mlp, vision.count("num_heads"), None, vision.count("patch_size"),
                          vision.count("in_channels", "in_chans", default=3), class_token=False,
                          frames=vision.count("temporal_patch_size", default=2), vectors=layers * vectors + once,
                          **options)


class Qwen25Vl(Qwen2Vl):
    """Most blocks see windows only, and MLPs have three matrices."""

    model_types = ("qwen2_5_vl",)
    # From the published config.json of Qwen/Qwen2.5-VL-3B-Instruct and -7B-Instruct.
    known = {"qwen2.5-vl-3b": {"text_config": {**QWEN25_7B, "model_type": "qwen2_5_vl_text", "num_hidden_layers": 36,
                                               "hidden_size": 2048, "intermediate_size": 11008,
                                               "num_attention_heads": 16, "num_key_value_heads": 2,
                                               "vocab_size": 151936, "tie_word_embeddings": True},
                               "vision_config": QWEN25_VISION},
             "qwen2.5-vl-7b": {"text_config": {**QWEN25_7B, "model_type": "qwen2_5_vl_text"},
                               "vision_config": QWEN25_VISION}}

    @classmethod
    def tower(cls, vision):
        width, mlp = vision.count("hidden_size"), vision.count("intermediate_size")
        merge = vision.count("spatial_merge_size", default=2)
        window = vision.count("window_size") // merge // vision.count("patch_size") * merge
        return cls._tower(vision, width, mlp, vectors=4 * width + 2 * mlp + width + 2 * width, gated=True,
                          window=window, whole_layers=tuple(vision.get("fullatt_block_indexes")))

    @classmethod
    def merger(cls, vision, width, out, merge):
        wide = width * merge**2
        return ProjectorShape(((wide, wide), (wide, out)), merge, vectors=wide + out + width)


class Qwen3Vl(Qwen2Vl):
    """Deepstack: a merger more for each of some inner blocks, whose output joins the decoder's first layers."""

    model_types = ("qwen3_vl", "qwen3_vl_moe")
    # From the published config.json of Qwen/Qwen3-VL-8B-Instruct and Qwen3-VL-30B-A3B-Instruct.
    known = {"qwen3-vl-8b": {"text_config": QWEN3_8B, "vision_config": QWEN3_VISION},
             "qwen3-vl-30b-a3b": {"text_config": QWEN3_30B, "vision_config": QWEN3_VISION}}

    @classmethod
    def tower(cls, vision):
        width, mlp = vision.count("hidden_size"), vision.count("intermediate_size")
        return cls._tower(vision, width, mlp, vectors=4 * width + mlp + width + 4 * width,
                          once=(vision.count("num_position_embeddings") + 1) * width)

    @classmethod
    def merger(cls, vision, width, out, merge):
        wide, deep = width * merge**2, len(vision.get("deepstack_visual_indexes"))
        return ProjectorShape(((wide, wide), (wide, out)) * (1 + deep), merge,
                              vectors=wide + out + 2 * width + deep * (wide + out + 2 * wide))
