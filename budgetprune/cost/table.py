"""Budgets side by side: one row per number of kept image tokens."""

from dataclasses import dataclass

from .flops import decode_flops_per_token, layer_lengths, prefill_flops
from .hardware import Device, roofline_ms
from .memory import kv_bytes, parameters
from .shapes import VlmShape


@dataclass(frozen=True)
class CostRow:
    """The cost of one budget; `*_share` are fractions of the same prompt with every image token.

    prefill_floor_ms, decode_floor_ms: rooflines where a device is named: the operations against reading the weights
        once and writing (prefill) or reading (decode) the cache.
    layer_mean: image tokens that a decoder layer sees, the mean over its layers.
    """

    keep: int
    sequence: int
    prefill_flops: int
    prefill_share: float
    decode_flops_per_token: int
    kv_bytes: int
    kv_share: float
    prefill_floor_ms: float | None = None
    decode_floor_ms: float | None = None
    layer_mean: float | None = None


def table(shape: VlmShape, keeps, text_tokens, *, image_tokens_in=None, prune_layer=None, stages=None, batch=1,
          bytes_per_value=2, attention="full", crops=None, on: Device | str | None = None) -> list[CostRow]:
    """One CostRow per budget in `keeps`, in their order.

    image_tokens_in: N; one crop's tokens where None. stages: gives the stages of a method inside the decoder for a
    budget, as prefill_flops takes them. The other arguments are those of prefill_flops, kv_bytes and
    roofline_ms. `sequence` is what the last layer sees. ValueError: no budget, or one that prefill_flops refuses.
    """
    keeps = list(keeps)
    if not keeps:
        raise ValueError("keeps must name at least one budget, got none")
    tokens = shape.tokens_per_crop if image_tokens_in is None else image_tokens_in
    parts = parameters(shape)
    # Of an untied embedding table only the prompt's rows are read; decode leaves tower and projector alone.
    lookup = 0 if shape.decoder.tied_head else shape.decoder.vocab * shape.decoder.hidden
    decode_weights = (parts["decoder"] - lookup) * bytes_per_value
    prefill_weights = decode_weights + (parts["tower"] + parts["projector"]) * bytes_per_value

    def cost(keep):
        later = () if stages is None else tuple(stages(keep))
        kept = tokens if later else keep
        lengths = layer_lengths(shape, tokens, kept, text_tokens, prune_layer, later)
        flops = prefill_flops(shape, tokens, kept, text_tokens, prune_layer=prune_layer, stages=later, batch=batch,
                              attention=attention, crops=crops).total
        cache = sum(kv_bytes(shape.decoder, lengths, batch=batch, bytes_per_value=bytes_per_value))
        decode = decode_flops_per_token(shape, [length + 1 for length in lengths], batch=batch)
        mean = sum(lengths) / len(lengths) - text_tokens
        return lengths[-1], flops, decode, cache, mean

    _, full_flops, _, full_cache, _ = cost(tokens)
    rows = []
    for keep in keeps:
        sequence, flops, decode, cache, mean = cost(keep)
        floors = (None, None)
        if on is not None:
            floors = (roofline_ms(flops, prefill_weights + cache, on),
                      roofline_ms(decode, decode_weights + cache, on))
        rows.append(CostRow(keep, sequence, flops, flops / full_flops, decode, cache,
                            cache / full_cache if full_cache else 1.0, *floors, mean))
    return rows
