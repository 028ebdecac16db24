"""LLaVA-NeXT (1.6): the whole picture and its crops, a learned row end after every row of patches."""

from ..tiling import Tiling
from .llava import CLIP_L_336, VICUNA_7B, VICUNA_13B, Llava

PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
MISTRAL_7B = {"model_type": "mistral", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336,
              "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32064}


class LlavaNext(Llava):
    model_types = ("llava_next",)
    selects_before = False
    # From the published config.json of llava-hf/llava-v1.6-vicuna-7b-hf, -vicuna-13b-hf and -mistral-7b-hf.
    known = {name: {"vision_config": CLIP_L_336, "text_config": text, "image_grid_pinpoints": PINPOINTS}
             for name, text in (("llava-next-7b", VICUNA_7B), ("llava-next-13b", VICUNA_13B),
                                ("llava-next-mistral-7b", MISTRAL_7B))}

    @classmethod
    def more_vectors(cls, config, decoder):
        return decoder.hidden

    @classmethod
    def tiling(cls, config):
        return Tiling(tuple(map(tuple, config.get("image_grid_pinpoints"))))
