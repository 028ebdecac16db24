"""How the text_config of a decoder is read; a form of decoder is a subclass, which lists itself."""

from typing import ClassVar

from ..shapes import DecoderShape
from .fields import Fields

_registry: list[type["Decoder"]] = []
# Fields of decoders whose layers are more, or other, than attention and an MLP.
OTHER_FORMS = {"kv_lora_rank": "latent attention", "linear_num_key_heads": "layers of linear attention",
               "mamba_d_state": "layers of a state space", "ssm_state_size": "layers of a state space",
               "cross_attention_layers": "cross-attention to the image", "altup_num_inputs": "layers of other inputs",
               "attention_chunk_size": "attention in chunks", "num_kv_shared_layers": "layers that share their cache",
               "encoder_layers": "an encoder of its own"}


class Decoder:
    """A Llama-type decoder by the usual names of its sizes.

    model_types: of the text configs that it reads. The other attributes are those of DecoderShape.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    gated: ClassVar[bool] = True
    qkv_bias: ClassVar[bool] = False
    tied: ClassVar[bool] = False
    norms: ClassVar[int] = 2
    head_norms: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if cls.model_types:
            _registry.append(cls)

    @classmethod
    def shape(cls, text: Fields, tied_head: bool | None = None) -> DecoderShape:
        text.refuse(OTHER_FORMS)
        heads, hidden = text.count("num_attention_heads"), text.count("hidden_size")
        layers, bias = text.count("num_hidden_layers"), bool(text.get("attention_bias", default=False))
        tied = text.get("tie_word_embeddings", default=cls.tied) if tied_head is None else tied_head
        return DecoderShape(
            layers, hidden, text.count("intermediate_size"), heads, text.count("num_key_value_heads", default=heads),
            text.count("head_dim", default=hidden // heads), text.count("vocab_size"), bool(tied),
            qkv_bias=bias or cls.qkv_bias, out_bias=bias, gated=cls.gated, norms=cls.norms, head_norms=cls.head_norms,
            windows=cls.windows(text, layers), **cls.experts(text, layers))

    @classmethod
    def slides(cls, layer: int, text: Fields) -> bool:
        """Whether a layer has the sliding window, where the configuration does not list it."""
        return True

    @classmethod
    def windows(cls, text: Fields, layers: int) -> tuple[int | None, ...]:
        """The sliding window of each layer; () where none has one."""
        kinds, window = text.get("layer_types", default=None), text.get("sliding_window", default=None)
        if kinds is not None:
            kinds = list(kinds)[:layers]  # some configurations list more than there are
            other = sorted(set(kinds) - {"full_attention", "sliding_attention"})
            if other or len(kinds) < layers:
                raise ValueError(f"{text.name}.layer_types must be full_attention or sliding_attention, once for each "
                                 f"of {layers} layers: no other kind is counted here, got {other or len(kinds)}")
        if window is None or text.get("use_sliding_window", default=True) is False:
            return ()
        slides = [cls.slides(n, text) if kinds is None else kinds[n] == "sliding_attention" for n in range(layers)]
        return tuple(text.count("sliding_window") if slide else None for slide in slides) if any(slides) else ()

    @classmethod
    def experts(cls, text: Fields, layers: int) -> dict:
        """The fields of DecoderShape about experts."""
        count = text.get("num_experts", "num_local_experts", "n_routed_experts", default=None)
        if not count:
            return {}
        width = text.count("moe_intermediate_size", default=None) or text.count("intermediate_size")
        step = text.get("decoder_sparse_step", default=1)
        dense = {n for n in range(layers) if (n + 1) % step} | set(text.get("mlp_only_layers", default=()))
        dense |= set(range(text.get("first_k_dense_replace", default=0)))
        return {"experts": count, "experts_per_token": text.count("num_experts_per_tok"), "expert_mlp": width,
                "shared_mlp": text.get("shared_expert_intermediate_size", default=0)
                or width * text.get("n_shared_experts", default=0), "dense_layers": tuple(sorted(dense))}


class Llama(Decoder):
    model_types = ("llama", "mistral", "mixtral")


class Qwen2(Decoder):
    """Qwen 2 and 2.5, alone or inside Qwen2-VL: the queries, keys and values have biases."""

    model_types = ("qwen2", "qwen2_vl_text", "qwen2_5_vl_text", "qwen2_vl", "qwen2_5_vl")
    qkv_bias = True


class Qwen3(Decoder):
    model_types = ("qwen3", "qwen3_moe", "qwen3_vl_text", "qwen3_vl_moe_text")
    head_norms = True


class Gemma(Decoder):
    """Its head is the embedding table."""

    model_types = ("gemma",)
    tied = True


class Gemma2(Gemma):
    """Every second layer, from the first, sees a window."""

    model_types = ("gemma2",)
    norms = 4

    @classmethod
    def slides(cls, layer, text):
        return layer % 2 == 0


class Gemma3(Gemma2):
    """All but every sixth layer see a window."""

    model_types = ("gemma3_text",)
    head_norms = True

    @classmethod
    def slides(cls, layer, text):
        return (layer + 1) % text.get("sliding_window_pattern", default=6) != 0


class Plain(Decoder):
    """An MLP of two matrices."""

    model_types = ("phi", "starcoder2", "persimmon")
    gated = False


def decoder_of(text, *, tied_head: bool | None = None, notes: bool = False):
    """The shape of a text config, object or JSON object; with `notes`, (shape, what was assumed)."""
    fields = text if isinstance(text, Fields) else Fields(text, "text_config")
    kind = fields.get("model_type", default=None)
    form = next((form for form in _registry if kind in form.model_types), Decoder)
    shape = form.shape(fields, tied_head)
    assumed = (f"text type {kind}: taken as a Llama-type decoder with an MLP of three matrices",)
    return (shape, assumed if form is Decoder and kind is not None else ()) if notes else shape
