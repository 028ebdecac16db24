"""LLaVA-1.5: CLIP tower, two-layer projector, Llama."""

import inspect

from .base import Family


class Llava(Family):
    """LlavaForConditionalGeneration with a CLIP tower."""

    classes = ("LlavaForConditionalGeneration",)
    image_arguments = ("pixel_values", "image_sizes", "vision_feature_layer", "vision_feature_select_strategy")

    def __init__(self, model):
        tower = getattr(model.config.vision_config, "model_type", None)
        if tower != "clip_vision_model":
            raise ValueError(f"model must have a CLIP vision tower (clip_vision_model), got {tower}")
        if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
            raise ValueError("model.forward must take mm_encoder_outputs: transformers 5.23 or newer is needed")

    def image_token_id(self, model):
        return model.config.image_token_id

    def projector(self, model):
        return model.model.multi_modal_projector

    def decoder(self, model):
        return model.model.language_model

    def tower_attention(self, model):
        return model.model.vision_tower.encoder.layers[-1].self_attn

    def features(self, model):
        vision = model.config.vision_config
        layers = model.config.vision_feature_layer
        side = vision.image_size // vision.patch_size
        width = vision.hidden_size * (len(layers) if isinstance(layers, (list, tuple)) else 1)
        return width, side * side, (side, side)

    def has_cls(self, model):
        return True

    def keeps_cls(self, model, inputs):
        strategy = inputs.get("vision_feature_select_strategy") or model.config.vision_feature_select_strategy
        return strategy == "full"

    def encode(self, model, inputs, *, cls):
        arguments = {name: inputs[name] for name in self.image_arguments if inputs.get(name) is not None}
        arguments["vision_feature_select_strategy"] = "full" if cls else "default"
        return model.model.get_image_features(**arguments, return_dict=True)
