"""Bytes that a prefill leaves behind (KV cache) and that the weights take.

Activations are left out: their peak depends on the attention kernel, the allocator and what the framework frees, so
a formula would be a guess. Measure them (`peak_bytes` of an evaluation record).
"""

from .flops import _check_count, per_layer
from .shapes import DecoderShape, VlmShape


def kv_bytes(decoder: DecoderShape, lengths, *, batch=1, bytes_per_value=2) -> list[int]:
    """Bytes of keys and values that each decoder layer stores.

    lengths: cached tokens, an int for all layers or one int per layer (with FastV early layers hold every image
        token, late ones the kept ones). The sum of the result is the cache. Layers with a sliding window hold what
        the next token can see beside itself: as many as the window less one.
    """
    _check_count("batch", batch, 1)
    _check_count("bytes_per_value", bytes_per_value, 1)
    row = 2 * decoder.kv_heads * decoder.head_dim * bytes_per_value * batch
    lengths = per_layer(decoder, lengths)
    windows = decoder.windows or (None,) * decoder.layers
    return [row * (n if window is None else min(n, window - 1)) for n, window in zip(lengths, windows, strict=True)]


def parameters(shape: VlmShape) -> dict[str, int]:
    """Weights by part: tower, projector, decoder (embedding and head included; a tied head counts once)."""
    tower, decoder, projector = shape.tower, shape.decoder, shape.projector
    vision = tower.pixels * tower.hidden + tower.layers * _values(tower.matrices) + tower.vectors
    if tower.pooling_head:
        vision += _values(tower.matrices)
    layers = sum(_layer(decoder, decoder.sparse(layer)) for layer in range(decoder.layers))
    embeddings = decoder.vocab * decoder.hidden * (1 if decoder.tied_head else 2)
    return {"tower": vision, "projector": _values(projector.matrices) + projector.vectors,
            "decoder": layers + embeddings + decoder.hidden}


def _values(matrices):
    return sum(inputs * outputs for inputs, outputs in matrices)


def _layer(decoder, sparse):
    """Parameters of one decoder layer, with or without experts."""
    hidden, inner, kv = decoder.hidden, decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    own = hidden * (2 * inner + 2 * kv) + decoder.norms * hidden
    own += (inner + 2 * kv if decoder.qkv_bias else 0) + (hidden if decoder.out_bias else 0)
    own += 2 * decoder.head_dim if decoder.head_norms else 0
    width = decoder.experts * decoder.expert_mlp + decoder.shared_mlp if sparse else decoder.mlp
    return own + (2 + decoder.gated) * hidden * width + (hidden * decoder.experts if sparse else 0)


def weight_bytes(shape: VlmShape, *, bytes_per_value=2) -> int:
    """Bytes of all weights in one precision."""
    _check_count("bytes_per_value", bytes_per_value, 1)
    return sum(parameters(shape).values()) * bytes_per_value
