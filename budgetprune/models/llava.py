"""LLaVA-1.5: CLIP (or SigLIP) tower, two-layer projector, Llama."""

from .base import Family, arguments_of


class Llava(Family):
    """LlavaForConditionalGeneration with a CLIP or SigLIP tower."""

    classes = ("LlavaForConditionalGeneration",)
    encoder_arguments = ("image_sizes", "vision_feature_layer", "vision_feature_select_strategy")
    before_projector = True

    def __init__(self, model):
        super().__init__(model)
        self.tower = tower_type(model, "clip_vision_model", "siglip_vision_model")
        if not self.has_cls(model) and model.config.vision_feature_select_strategy != "full":
            raise ValueError("vision_feature_select_strategy must be 'full' for a tower without CLS, or its first "
                             f"patch is lost; got {model.config.vision_feature_select_strategy!r}")

    def projector(self, model):
        return model.model.multi_modal_projector

    def features(self, model):
        vision = model.config.vision_config
        layers = model.config.vision_feature_layer
        side = vision.image_size // vision.patch_size
        width = vision.hidden_size * (len(layers) if isinstance(layers, (list, tuple)) else 1)
        return width, side * side, (side, side)

    def has_cls(self, model):
        return self.tower == "clip_vision_model"

    def keeps_cls(self, model, inputs):
        strategy = inputs.get("vision_feature_select_strategy") or model.config.vision_feature_select_strategy
        return self.has_cls(model) and strategy == "full"

    def encode(self, model, medium, inputs, *, cls=None):
        """cls: whether the projector gets CLS too, in row 0; None: as the model has it."""
        arguments = arguments_of(type(model.model).get_image_features, inputs)
        if cls is not None and self.has_cls(model):
            arguments["vision_feature_select_strategy"] = "full" if cls else "default"
        return model.model.get_image_features(**arguments, return_dict=True)

    def structure(self, model, medium, inputs, features):
        if not self.keeps_cls(model, inputs):
            return None
        patches = [x.new_ones(len(x), dtype=bool) for x in features]
        for row in patches:
            row[0] = False
        return patches


def tower_type(model, *known: str) -> str:
    """The vision tower's model_type; ValueError where it is none of `known`."""
    found = getattr(model.config.vision_config, "model_type", None)
    if found not in known:
        raise ValueError(f"model must have a vision tower of {' or '.join(known)}, got {found}")
    return found
