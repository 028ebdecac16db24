"""Bytes that a prefill leaves behind (KV cache) and that the weights take.

Activations are left out: their peak depends on the attention kernel, the allocator and what the framework frees, so
a formula would be a guess. Measure them (`peak_bytes` of an evaluation record).
"""

from .flops import _check_count, per_layer
from .shapes import DecoderShape, VlmShape


def kv_bytes(decoder: DecoderShape, lengths, *, batch=1, bytes_per_value=2) -> list[int]:
    """Bytes of keys and values that each decoder layer stores.

    lengths: cached tokens, an int for all layers or one int per layer (with FastV early layers hold every image
        token, late ones the kept ones). The sum of the result is the cache.
    """
    _check_count("batch", batch, 1)
    _check_count("bytes_per_value", bytes_per_value, 1)
    row = 2 * decoder.kv_heads * decoder.head_dim * bytes_per_value * batch
    return [row * length for length in per_layer(decoder, lengths)]


def parameters(shape: VlmShape) -> dict[str, int]:
    """Weights by part: tower, projector, decoder (embedding and head included; a tied head counts once)."""
    tower, decoder = shape.tower, shape.decoder
    width, hidden = tower.hidden, decoder.hidden
    block = 4 * (width * width + width) + 2 * width * tower.mlp + tower.mlp + width + 4 * width
    vision = (width + width * tower.channels * tower.patch_size**2 + (tower.patches + 1) * width
              + tower.layers * block + 4 * width)
    bias = 2 * hidden if shape.projector_bias else 0
    projector = hidden * (width * shape.feature_layers + hidden) + bias
    inner, kv = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    layer = hidden * (2 * inner + 2 * kv + 3 * decoder.mlp) + 2 * hidden
    layer += (inner + 2 * kv if decoder.qkv_bias else 0) + (hidden if decoder.out_bias else 0)
    embeddings = decoder.vocab * hidden * (1 if decoder.tied_head else 2)
    language = decoder.layers * layer + embeddings + hidden
    return {"tower": vision, "projector": projector + (hidden if shape.image_newline else 0), "decoder": language}


def weight_bytes(shape: VlmShape, *, bytes_per_value=2) -> int:
    """Bytes of all weights in one precision."""
    _check_count("bytes_per_value", bytes_per_value, 1)
    return sum(parameters(shape).values()) * bytes_per_value
