"""Floating-point operations of a vision-language model, 2 per multiply-add, prefill and decode apart.

Counted: every matrix product and the patch convolution. Not counted: norms, activations, softmax, rotary embedding,
biases and residual sums (under 1 % at real widths), and the selection itself unless `selector_flops` names it.
Published figures for one and the same LLaVA-1.5-7B prefill run from 2.98e12 to 10.1e12, because they differ in
sequence length, in multiply-adds against FLOPs, and in counting two or three MLP matrices: compare only as ratios.
"""

from dataclasses import dataclass

from .shapes import DecoderShape, TowerShape, VlmShape


@dataclass(frozen=True)
class PrefillFlops:
    """Where the operations of one prefill go."""

    vision: int
    projector: int
    decoder: int
    head: int
    selector: int = 0

    @property
    def total(self):
        return self.vision + self.projector + self.decoder + self.head + self.selector


def _check_count(name, value, least=0):
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def _check_choice(name, value, choices):
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}")


def tower_flops(tower: TowerShape) -> int:
    """One run of the whole vision tower over one crop, class token included."""
    length, width = tower.patches + 1, tower.hidden
    patch = tower.patches * width * tower.channels * tower.patch_size**2
    linear = length * (4 * width * width + 2 * width * tower.mlp)
    attention = 2 * length * length * width
    return 2 * (patch + tower.layers * (linear + attention))


def projector_flops(shape: VlmShape, tokens: int) -> int:
    """Both projector layers over `tokens` image tokens."""
    out = shape.decoder.hidden
    return 2 * tokens * out * (shape.tower.hidden * shape.feature_layers + out)


def _layer_linear(decoder):
    """Multiply-adds of one decoder layer's seven matrices for one token."""
    heads = 2 * decoder.heads + 2 * decoder.kv_heads
    return decoder.hidden * (heads * decoder.head_dim + 3 * decoder.mlp)


def decoder_flops(decoder: DecoderShape, lengths, *, attention="full") -> int:
    """Prefill of the decoder layers, without the head.

    Args:
        lengths: tokens that each layer sees: an int for all layers, or one int per layer (pruning inside the LLM).
        attention: "full" counts L x L scores, what scaled_dot_product_attention's math path computes and what
            torch.utils.flop_counter assumes; "causal" counts L (L + 1) / 2, what a causal flash kernel needs.
    """
    _check_choice("attention", attention, ("full", "causal"))
    lengths = per_layer(decoder, lengths)
    linear = sum(lengths) * _layer_linear(decoder)
    pairs = sum(n * n if attention == "full" else n * (n + 1) // 2 for n in lengths)
    return 2 * (linear + 2 * pairs * decoder.heads * decoder.head_dim)


def per_layer(decoder: DecoderShape, lengths) -> list[int]:
    """`lengths` as one token count per decoder layer."""
    if isinstance(lengths, int) and not isinstance(lengths, bool):
        lengths = [lengths] * decoder.layers
    elif not isinstance(lengths, (list, tuple)):
        raise TypeError(f"lengths must be an int or a sequence of ints, got {type(lengths).__name__}")
    if len(lengths) != decoder.layers:
        raise ValueError(f"lengths must have one count per layer, {decoder.layers}, got {len(lengths)}")
    for length in lengths:
        _check_count("lengths", length)
    return list(lengths)


def layer_lengths(shape: VlmShape, image_tokens_in, kept, text_tokens, prune_layer=None, stages=()) -> list[int]:
    """Tokens that each decoder layer sees: `kept` image tokens, and fewer from the layer of each stage on; with
    `prune_layer` all image tokens before that layer, `kept` from it on."""
    for name, value in (("image_tokens_in", image_tokens_in), ("kept", kept), ("text_tokens", text_tokens)):
        _check_count(name, value)
    layers, entering = shape.decoder.layers, kept
    if prune_layer is not None:
        _check_count("prune_layer", prune_layer)
        if stages:
            raise ValueError("prune_layer must be None with stages, which say more")
        if prune_layer > layers:
            raise ValueError(f"prune_layer must be at most the number of layers, {layers}, got {prune_layer}")
        if kept > image_tokens_in:
            raise ValueError(f"kept must be at most image_tokens_in, {image_tokens_in}, with prune_layer, got {kept}")
        entering, stages = image_tokens_in, ((prune_layer, kept),)
    lengths = [entering + text_tokens] * layers
    before = (0, entering)
    for layer, left in stages:
        _check_count("stages", layer)
        _check_count("stages", left)
        if not before[0] <= layer <= layers or left > before[1]:
            raise ValueError("stages must be (layer, image tokens from it on), the layers ascending and at most "
                             f"{layers}, the tokens never more than before ({before[1]}), got {(layer, left)}")
        lengths[layer:] = [left + text_tokens] * (layers - layer)
        before = layer, left
    return lengths


def _crops(shape, image_tokens_in, crops):
    if crops is not None:
        _check_count("crops", crops, 1 if image_tokens_in else 0)
        return crops
    if image_tokens_in % shape.tokens_per_crop:
        raise ValueError(f"image_tokens_in must be a multiple of {shape.tokens_per_crop}, the tokens of one crop, "
                         f"or crops must say how often the tower runs; got {image_tokens_in}")
    return image_tokens_in // shape.tokens_per_crop


def prefill_flops(shape: VlmShape, image_tokens_in, kept, text_tokens, *, prune_layer=None, stages=(), batch=1,
                  logits="last", attention="full", projected=None, crops=None, selector_flops=0) -> PrefillFlops:
    """FLOPs up to the first new token's logits.

    Args:
        image_tokens_in: N, image tokens that the tower gives.
        kept: K, image tokens that the decoder reads (from `prune_layer` on; with `stages`, at first). A method that
            adds merged tokens counts them too, so K may exceed N only where it is not mid-LLM.
        text_tokens: T, all other tokens of the prompt.
        prune_layer: None where selection comes before the decoder; k where decoder layers k and later see K tokens
            and the first k see N (FastV).
        stages: of methods that act in the decoder once or more, (layer, image tokens from it on) of every stage, as
            Selector.stages gives them; `kept` is N then, or what a method before the decoder leaves.
        logits: "last" as generate() asks for, or "all" as forward() without logits_to_keep computes.
        attention: see decoder_flops.
        projected: "kept" where selection comes before the projector (default), "all" where it needs projected
            features (default with prune_layer).
        crops: how often the tower runs; needed where N is not a multiple of one crop (LLaVA-NeXT's row ends and
            unpadding change N).
        selector_flops: the selection's own operations per sample, where they are known.

    ValueError and TypeError name the argument.
    """
    lengths = layer_lengths(shape, image_tokens_in, kept, text_tokens, prune_layer, stages)
    _check_count("batch", batch, 1)
    _check_count("selector_flops", selector_flops)
    _check_choice("logits", logits, ("last", "all"))
    projected = projected or ("kept" if prune_layer is None else "all")
    _check_choice("projected", projected, ("kept", "all"))
    if prune_layer is not None and projected == "kept":
        raise ValueError("projected must be 'all' with prune_layer: the first layers read every image token")
    runs = _crops(shape, image_tokens_in, crops)
    scored = lengths[-1] if logits == "all" else min(1, lengths[-1])
    return PrefillFlops(
        vision=batch * runs * tower_flops(shape.tower),
        projector=batch * projector_flops(shape, kept if projected == "kept" else image_tokens_in),
        decoder=batch * decoder_flops(shape.decoder, lengths, attention=attention),
        head=batch * 2 * scored * shape.decoder.hidden * shape.decoder.vocab,
        selector=batch * selector_flops,
    )


def decode_flops_per_token(shape: VlmShape, context, *, batch=1) -> int:
    """FLOPs of one new token per sample.

    context: keys that each layer's query reads, the new token included: an int, or one per layer (FastV).
    """
    decoder = shape.decoder
    contexts = per_layer(decoder, context)
    _check_count("batch", batch, 1)
    linear = decoder.layers * _layer_linear(decoder) + decoder.hidden * decoder.vocab
    return 2 * batch * (linear + 2 * sum(contexts) * decoder.heads * decoder.head_dim)
