"""Teaches budgetprune a model that it does not know: ViP-LLaVA, a LLaVA that projects several layers of its tower.

    python examples/new_family.py                                          # a small random one
    python examples/new_family.py --model llava-hf/vip-llava-7b-hf

A family says where a model keeps its parts and how its images become tokens. Methods, caches, generate(), training
and saving then work as in the others. Inside the package it would be one file in budgetprune/models/.
"""

import argparse

import torch

import budgetprune
from budgetprune.models.base import Family


class VipLlava(Family):
    """VipLlavaForConditionalGeneration, with a CLIP tower; pruned behind its projector."""

    classes = ("VipLlavaForConditionalGeneration",)
    encoder_arguments = ("vision_feature_layer",)  # of forward, besides the pixels
    one_tensor = frozenset({"image"})  # the model wants all images' features in one tensor

    def has_cls(self, model):
        return True

    def features(self, model):
        vision = model.config.vision_config
        side = vision.image_size // vision.patch_size
        return model.config.text_config.hidden_size, side * side, (side, side)


def small():
    """A random model of this family: 16 patches an image."""
    from transformers import CLIPVisionConfig, LlamaConfig, VipLlavaConfig, VipLlavaForConditionalGeneration

    torch.manual_seed(0)
    tower = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
                             image_size=28, patch_size=7)
    text = LlamaConfig(vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=4,
                       num_attention_heads=4, pad_token_id=0)
    return VipLlavaForConditionalGeneration(VipLlavaConfig(vision_config=tower, text_config=text, image_token_id=100,
                                                           vision_feature_layer=[-2, -3])).eval()


@torch.no_grad()
def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a name on the hub or a folder; default: a small random one")
    parser.add_argument("--keep", type=int, default=6)
    options = parser.parse_args(arguments)
    if options.model is None:
        model = small()
    else:
        from transformers import VipLlavaForConditionalGeneration

        model = VipLlavaForConditionalGeneration.from_pretrained(options.model, dtype="auto").eval()
    vision, image = model.config.vision_config, model.config.image_token_id
    patches = (vision.image_size // vision.patch_size) ** 2
    ids = torch.tensor([[1, *[image] * patches, 5, 6, 7]])
    pixels = torch.randn(1, 3, vision.image_size, vision.image_size, dtype=model.dtype)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    print(f"{type(model).__name__}: {ids.shape[1]} tokens, {patches} of the image")
    for method in ("uniform", "visionzip", "divprune", "fastv"):
        with budgetprune.prune(model, method, keep=options.keep) as pruning:
            model(**inputs)
            print(f"{method}: kept patches {pruning.plan.kept[0].tolist()}")
            model.generate(**inputs, max_new_tokens=4, do_sample=False)


if __name__ == "__main__":
    main()
