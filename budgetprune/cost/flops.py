"""Floating-point operations of a vision-language model, 2 per multiply-add, prefill and decode apart.

Counted: every matrix product and the patch convolution. Not counted: norms, activations, softmax, rotary embedding,
biases and residual sums (under 1 % at real widths), and the selection itself unless `selector_flops` names it.
Published figures for one and the same LLaVA-1.5-7B prefill run from 2.98e12 to 10.1e12, because they differ in
sequence length, in multiply-adds against FLOPs, and in counting two or three MLP matrices: compare only as ratios.
"""

from dataclasses import dataclass

from .operators import Operator, decoder_operators, product, projector_operators, tower_operators
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


def flops_of(operators) -> int:
    """The operations of a list of operators."""
    return sum(one.flops for one in operators)


def tower_flops(tower: TowerShape, grids=None) -> int:
    """One run of the whole vision tower over one crop, class token included, or over the packed pictures of `grids`,
    ((frames, rows, columns), ...) in patches."""
    return flops_of(tower_operators(tower, grids=grids))


def projector_flops(shape: VlmShape, tokens: int) -> int:
    """All projector matrices over `tokens` image tokens."""
    return flops_of(projector_operators(shape, tokens))


def decoder_flops(decoder: DecoderShape, lengths, *, attention="full") -> int:
    """Prefill of the decoder layers, without the head.

    Args:
        lengths: tokens that each layer sees: an int for all layers, or one int per layer (pruning inside the LLM).
        attention: "full" counts L x L scores, what scaled_dot_product_attention's math path computes and what
            torch.utils.flop_counter assumes; "causal" counts L (L + 1) / 2, what a causal flash kernel needs, and of
            sliding windows what they see. A prefix LM is full in both.
    """
    _check_choice("attention", attention, ("full", "causal"))
    lengths = per_layer(decoder, lengths)
    return sum(map(flops_of, decoder_operators(decoder, lengths, lengths, attention_as=attention)))


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


def _look(shape, image_tokens_in, crops, grids):
    """(runs of the tower, grids): what the encoder sees where N image tokens come out of it."""
    if not shape.packed:
        if grids is not None:
            raise ValueError("grids must be None for a tower that sees crops of one size, crops says how many")
        if crops is None:
            crops, over = divmod(image_tokens_in, shape.tokens_per_crop)
            if over:
                raise ValueError(f"image_tokens_in must be a multiple of {shape.tokens_per_crop}, the tokens of one "
                                 f"crop, or crops must say how often the tower runs; got {image_tokens_in}")
        _check_count("crops", crops, 1 if image_tokens_in else 0)
        return crops, None
    if crops is not None:
        raise ValueError("crops must be None for a tower that packs images of any size, grids says of which")
    side = shape.projector.merge
    if grids is None:
        rows = max((n for n in range(1, int(image_tokens_in**0.5) + 1) if image_tokens_in % n == 0), default=0)
        return 1, ((1, rows * side, image_tokens_in // rows * side),) if rows else ()
    grids = tuple(tuple(grid) for grid in grids)
    for grid in grids:
        if len(grid) != 3 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in grid):
            raise ValueError(f"grids must hold (frames, rows, columns) of patches, got {grid}")
    tokens = sum(t * h * w for t, h, w in grids) // side**2
    if tokens != image_tokens_in:
        raise ValueError(f"grids must give image_tokens_in, {image_tokens_in}, tokens of {side} x {side} patches, "
                         f"got {tokens}")
    return 1, grids


def prefill_operators(shape: VlmShape, image_tokens_in, kept, text_tokens, *, prune_layer=None, stages=(), batch=1,
                      logits="last", attention="full", projected=None, crops=None, grids=None,
                      fused=True) -> dict[str, list[Operator]]:
    """{part: its operators} of a prefill; arguments as prefill_flops takes them.

    fused: attention as a flash kernel does it, and norms, sums and activations inside their neighbours; False: each
    step reads and writes memory by itself.
    """
    lengths = layer_lengths(shape, image_tokens_in, kept, text_tokens, prune_layer, stages)
    _check_count("batch", batch, 1)
    _check_choice("logits", logits, ("last", "all"))
    _check_choice("attention", attention, ("full", "causal"))
    early = shape.projector.selects_before and prune_layer is None
    projected = projected or ("kept" if early else "all")
    _check_choice("projected", projected, ("kept", "all"))
    if prune_layer is not None and projected == "kept":
        raise ValueError("projected must be 'all' with prune_layer: the first layers read every image token")
    runs, grids = _look(shape, image_tokens_in, crops, grids)
    # All that the tower gives is projected, also padding of crops that never reaches the decoder.
    whole = image_tokens_in if shape.packed else runs * shape.tokens_per_crop
    layers = decoder_operators(shape.decoder, lengths, lengths, batch=batch, attention_as=attention, fused=fused)
    # Methods inside the decoder give its output back at the prompt's length.
    scored = lengths[0] if logits == "all" else min(1, lengths[0])
    return {"vision": tower_operators(shape.tower, batch * runs, None if grids is None else grids * batch,
                                      fused=fused) if runs else [],
            "projector": projector_operators(shape, batch * (kept if projected == "kept" else whole)),
            "decoder": [one for layer in layers for one in layer],
            "head": [product("head", batch * scored, shape.decoder.hidden, shape.decoder.vocab)]}


def prefill_flops(shape: VlmShape, image_tokens_in, kept, text_tokens, *, prune_layer=None, stages=(), batch=1,
                  logits="last", attention="full", projected=None, crops=None, grids=None,
                  selector_flops=0) -> PrefillFlops:
    """FLOPs up to the first new token's logits.

    Args:
        image_tokens_in: N, image tokens that the encoder gives.
        kept: K, image tokens that the decoder reads (from `prune_layer` on; with `stages`, at first). A method that
            adds merged tokens counts them too, so K may exceed N only where it is not mid-LLM.
        text_tokens: T, all other tokens of the prompt.
        prune_layer: None where selection comes before the decoder; k where decoder layers k and later see K tokens
            and the first k see N (FastV).
        stages: of methods that act in the decoder once or more, (layer, image tokens from it on) of every stage, as
            Selector.stages gives them; `kept` is N then, or what a method before the decoder leaves.
        logits: "last" as generate() asks for, or "all" as forward() without logits_to_keep computes.
        attention: see decoder_flops.
        projected: "kept" where selection comes before the projector (default for LLaVA), "all" where it needs
            projected features (default for all others, and with prune_layer).
        crops: how often the tower runs; needed where N is not a multiple of one crop (LLaVA-NeXT's row ends and
            unpadding change N).
        grids: of towers that pack images of any size, ((frames, rows, columns), ...) of the patches of one prompt's
            images; None: one picture, as near a square as N tokens can be. `see` gives crops or grids for pixels.
        selector_flops: the selection's own operations per sample, where they are known.

    ValueError and TypeError name the argument.
    """
    _check_count("selector_flops", selector_flops)
    parts = prefill_operators(shape, image_tokens_in, kept, text_tokens, prune_layer=prune_layer, stages=stages,
                              batch=batch, logits=logits, attention=attention, projected=projected, crops=crops,
                              grids=grids)
    return PrefillFlops(**{part: flops_of(operators) for part, operators in parts.items()},
                        selector=batch * selector_flops)


def decode_operators(shape: VlmShape, context, *, batch=1, fused=True) -> list[Operator]:
    """The operators of one new token per sample; arguments as decode_flops_per_token takes them."""
    decoder = shape.decoder
    contexts = per_layer(decoder, context)
    _check_count("batch", batch, 1)
    layers = decoder_operators(decoder, [1] * decoder.layers, contexts, batch=batch, fused=fused)
    return [one for layer in layers for one in layer] + [product("head", batch, decoder.hidden, decoder.vocab)]


def decode_flops_per_token(shape: VlmShape, context, *, batch=1) -> int:
    """FLOPs of one new token per sample.

    context: keys that each layer's query reads, the new token included: an int, or one per layer (FastV); layers with
        a sliding window read at most as many as it holds.
    """
    return flops_of(decode_operators(shape, context, batch=batch))
