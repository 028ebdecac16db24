"""Published vision-language models at their real sizes, with random weights: time does not depend on the weights.

    model = build(MODELS["llava-1.5-7b"], "cuda", torch.bfloat16)
    inputs = MODELS["llava-1.5-7b"].inputs(8, "cuda", torch.bfloat16)

Nothing is downloaded. Sizes come from budgetprune.cost where it knows the model. `layers` cuts tower and decoder to
that many layers, each as wide as in the real model, for machines on which the whole would take minutes.
transformers is imported late: cases are listed on machines that have none.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from shapes import SHAPES

from budgetprune.cost import VlmShape, known

IMAGE_TOKEN = 32000  # LLaVA's
QWEN_IMAGE, QWEN_VIDEO, QWEN_START, QWEN_END = 151655, 151656, 151652, 151653


@dataclass(frozen=True)
class RealModel:
    """config(layers or None) makes the configuration, images(rows, device, dtype, ids) the image arguments.

    tokens: N, image tokens of one prompt. crops: how often the tower runs for them, None where it packs one square
    picture. text: T, all other tokens.
    encoder_end: the module whose output are the image tokens. shape: of a configuration, what its cost depends on.
    """

    name: str
    config: Callable
    images: Callable
    tokens: int
    crops: int | None
    text: int
    image_token: int = IMAGE_TOKEN
    encoder_end: str = "model.multi_modal_projector"
    shape: Callable = VlmShape.from_config

    @property
    def keeps(self):
        """The budgets: 64, 128 and 192 of LLaVA-1.5's 576 tokens, and the same shares of others."""
        return self.tokens // 9, 2 * self.tokens // 9, self.tokens // 3

    @property
    def first(self):
        """The column of the first image token."""
        return self.text // 2

    def inputs(self, rows, device, dtype):
        """Forward arguments of `rows` prompts without padding: half of the text, one image, the rest of the text."""
        words = torch.arange(rows * self.text, device=device).view(rows, -1) % 997 + 3
        image = torch.full((rows, self.tokens), self.image_token, device=device)
        ids = torch.cat([words[:, :self.first], image, words[:, self.first:]], dim=1)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **self.images(rows, device, dtype, ids)}


def clip_and_llama(name, layers):
    """(CLIPVisionConfig, LlamaConfig) of a model that budgetprune.cost knows."""
    from transformers import CLIPVisionConfig, LlamaConfig

    shape = known(name)
    tower, decoder = shape.tower, shape.decoder
    vision = CLIPVisionConfig(hidden_size=tower.hidden, intermediate_size=tower.mlp, num_attention_heads=tower.heads,
                              num_hidden_layers=layers or tower.layers, image_size=tower.image_size,
                              patch_size=tower.patch_size, projection_dim=768)
    text = LlamaConfig(vocab_size=decoder.vocab, hidden_size=decoder.hidden, intermediate_size=decoder.mlp,
                       num_hidden_layers=layers or decoder.layers, num_attention_heads=decoder.heads,
                       num_key_value_heads=decoder.kv_heads, head_dim=decoder.head_dim, max_position_embeddings=4096,
                       bos_token_id=1, eos_token_id=None, pad_token_id=0)
    return vision, text


def llava(name):
    def config(layers):
        from transformers import LlavaConfig

        vision, text = clip_and_llama(name, layers)
        return LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN, vision_feature_layer=-2,
                           vision_feature_select_strategy="default")

    def images(rows, device, dtype, ids):
        return {"pixel_values": torch.randn(rows, 3, 336, 336, device=device, dtype=dtype)}

    shape = SHAPES["llava15"]
    return RealModel(name, config, images, tokens=shape.N, crops=1, text=shape.T)


def llava_next(name):
    """A picture of 672 x 672: four tiles and the whole, 24 x 24 patches each, and one row end for each of 48 rows."""
    def config(layers):
        from transformers import LlavaNextConfig

        vision, text = clip_and_llama(name, layers)
        return LlavaNextConfig(vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN,
                               vision_feature_layer=-2, vision_feature_select_strategy="default",
                               image_grid_pinpoints=[[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]])

    def images(rows, device, dtype, ids):
        return {"pixel_values": torch.randn(rows, 5, 3, 336, 336, device=device, dtype=dtype),
                "image_sizes": torch.full((rows, 2), 672, device=device)}

    shape = SHAPES["llava_next"]
    return RealModel(name, config, images, tokens=shape.N + 48, crops=5, text=shape.T)


def qwen25vl(name):
    """A picture of 1792 x 1792; sizes as in the published config.json of Qwen2.5-VL-7B-Instruct."""
    shape = SHAPES["qwen25vl"]

    def config(layers):
        from transformers import Qwen2_5_VLConfig

        text = {"hidden_size": shape.C, "intermediate_size": 18944, "num_hidden_layers": layers or shape.L,
                "num_attention_heads": shape.H, "num_key_value_heads": shape.G, "vocab_size": 152064,
                "max_position_embeddings": 128000, "bos_token_id": 151643, "eos_token_id": None, "pad_token_id": 151643,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}}
        vision = {"depth": layers or 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
                  "out_hidden_size": shape.C, "fullatt_block_indexes": [layers - 1] if layers else [7, 15, 23, 31]}
        return Qwen2_5_VLConfig(text_config=text, vision_config=vision, image_token_id=QWEN_IMAGE,
                                video_token_id=QWEN_VIDEO, vision_start_token_id=QWEN_START,
                                vision_end_token_id=QWEN_END)

    def images(rows, device, dtype, ids):
        side = 1792 // 14
        return {"pixel_values": torch.randn(rows * side * side, 3 * 2 * 14 * 14, device=device, dtype=dtype),
                "image_grid_thw": torch.tensor([[1, side, side]] * rows, device=device),
                "mm_token_type_ids": (ids == QWEN_IMAGE).int()}

    return RealModel(name, config, images, tokens=shape.N, crops=None, text=shape.T, image_token=QWEN_IMAGE,
                     encoder_end="model.visual")


MODELS = {model.name: model for model in (llava("llava-1.5-7b"), llava("llava-1.5-13b"), llava_next("llava-next-7b"),
                                          qwen25vl("qwen2.5-vl-7b"))}


@torch.no_grad()
def build(real, device, dtype, layers=None):
    """The model with random weights, made where it will run."""
    from transformers import AutoModelForImageTextToText
    from transformers.initialization import no_init_weights

    with torch.device(device), no_init_weights():  # its own initialisation takes minutes on a CPU
        model = AutoModelForImageTextToText.from_config(real.config(layers), dtype=dtype)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and name.endswith("bias"):
            parameter.zero_()
        elif parameter.dim() == 1 and name.endswith("weight"):  # of a norm
            parameter.fill_(1)
        else:  # standard deviation 0.02: attention is neither flat nor on one token
            parameter.uniform_(-0.0346, 0.0346)
    if torch.device(device).type == "cpu":
        # In bfloat16 torch's CPU product of one strided row copies the whole head, which takes longer than the prefill.
        model.lm_head.register_forward_pre_hook(lambda module, args: (args[0].clone(),))
    return model.eval().requires_grad_(False)
