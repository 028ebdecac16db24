"""The sizes of a vision-language model that its cost depends on, as plain integers."""

from dataclasses import dataclass, fields


def _check_counts(shape):
    for field in fields(shape):
        value = getattr(shape, field.name)
        if field.type is int and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{type(shape).__name__}.{field.name} must be a positive int, got {value!r}")


@dataclass(frozen=True)
class TowerShape:
    """A CLIP vision transformer: one class token before the patches, biases in every linear layer."""

    layers: int
    hidden: int
    mlp: int
    heads: int
    image_size: int
    patch_size: int
    channels: int = 3

    def __post_init__(self):
        _check_counts(self)

    @property
    def patches(self):
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class DecoderShape:
    """A Llama-type decoder: grouped-query attention, gated MLP of three matrices, no bias in the MLP."""

    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied_head: bool = False
    qkv_bias: bool = False
    out_bias: bool = False

    def __post_init__(self):
        _check_counts(self)
        if self.heads % self.kv_heads:
            raise ValueError(f"heads must be a multiple of kv_heads, got {self.heads} and {self.kv_heads}")

    @classmethod
    def from_config(cls, text, *, tied_head: bool | None = None):
        """The shape of a Hugging Face text config; attributes are read, nothing is imported."""
        bias = bool(getattr(text, "attention_bias", False))
        qwen = getattr(text, "model_type", None) == "qwen2"
        tied = getattr(text, "tie_word_embeddings", False) if tied_head is None else tied_head
        return cls(text.num_hidden_layers, text.hidden_size, text.intermediate_size, text.num_attention_heads,
                   getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
                   getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
                   text.vocab_size, bool(tied), qkv_bias=bias or qwen, out_bias=bias)


@dataclass(frozen=True)
class VlmShape:
    """Tower, a two-layer projector and decoder.

    feature_layers: how many tower layers are concatenated as the projector's input (LLaVA: 1). The whole tower runs
        whatever the layer: `vision_feature_layer=-2` does not spare the last block.
    keep_class_token: the class token is projected too (vision_feature_select_strategy="full").
    image_newline: the decoder has one learned row-end vector (LLaVA-NeXT).
    """

    tower: TowerShape
    decoder: DecoderShape
    feature_layers: int = 1
    keep_class_token: bool = False
    projector_bias: bool = True
    image_newline: bool = False

    def __post_init__(self):
        _check_counts(self)

    @property
    def tokens_per_crop(self):
        """Image tokens that one tower run gives to the decoder."""
        return self.tower.patches + self.keep_class_token

    @classmethod
    def from_config(cls, config):
        """The shape of a Hugging Face LlavaConfig or LlavaNextConfig; attributes are read, nothing is imported.

        ValueError names the model type where tower or decoder is not of the form that is counted here.
        """
        vision, text = config.vision_config, config.text_config
        _check_type("vision_config", vision, {"clip_vision_model"})
        _check_type("text_config", text, {"llama", "mistral", "qwen2"})
        layer = getattr(config, "vision_feature_layer", -2)
        tower = TowerShape(vision.num_hidden_layers, vision.hidden_size, vision.intermediate_size,
                           vision.num_attention_heads, vision.image_size, vision.patch_size,
                           getattr(vision, "num_channels", 3))
        tied = getattr(config, "tie_word_embeddings", False) or getattr(text, "tie_word_embeddings", False)
        decoder = DecoderShape.from_config(text, tied_head=bool(tied))
        return cls(tower, decoder, 1 if isinstance(layer, int) else len(layer),
                   getattr(config, "vision_feature_select_strategy", "default") == "full",
                   bool(getattr(config, "multimodal_projector_bias", True)),
                   hasattr(config, "image_grid_pinpoints"))


def _check_type(name, config, wanted):
    kind = getattr(config, "model_type", None)
    if kind is not None and kind not in wanted:
        raise ValueError(f"{name}.model_type must be {' or '.join(sorted(wanted))}, got {kind!r}")


_CLIP_L_336 = TowerShape(layers=24, hidden=1024, mlp=4096, heads=16, image_size=336, patch_size=14)
_VICUNA_7B = DecoderShape(layers=32, hidden=4096, mlp=11008, heads=32, kv_heads=32, head_dim=128, vocab=32064)
_VICUNA_13B = DecoderShape(layers=40, hidden=5120, mlp=13824, heads=40, kv_heads=40, head_dim=128, vocab=32064)

# From the published config.json of llava-hf/llava-1.5-7b-hf, llava-1.5-13b-hf and llava-v1.6-vicuna-7b-hf.
KNOWN = {
    "llava-1.5-7b": VlmShape(_CLIP_L_336, _VICUNA_7B),
    "llava-1.5-13b": VlmShape(_CLIP_L_336, _VICUNA_13B),
    "llava-next-7b": VlmShape(_CLIP_L_336, _VICUNA_7B, image_newline=True),
}


def known(name):
    """The shape called `name`; ValueError lists the names there are."""
    if name not in KNOWN:
        raise ValueError(f"model must be one of {', '.join(KNOWN)}, got {name!r}")
    return KNOWN[name]
