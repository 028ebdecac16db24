"""Budgets side by side: one row per number of kept image tokens."""

from dataclasses import dataclass

from .flops import decode_operators, flops_of, layer_lengths, prefill_operators
from .hardware import Device, device, operators_ms
from .memory import kv_bytes
from .shapes import VlmShape


@dataclass(frozen=True)
class CostRow:
    """The cost of one budget; `*_share` are fractions of the same prompt with every image token.

    prefill_roofline_ms, decode_roofline_ms: where a device is named, the sum over operators of the slower of their
        operations and their bytes (operators_ms); decode is of one token behind the prompt.
    layer_mean: image tokens that a decoder layer sees, the mean over its layers.
    """

    keep: int
    sequence: int
    prefill_flops: int
    prefill_share: float
    decode_flops_per_token: int
    kv_bytes: int
    kv_share: float
    prefill_roofline_ms: float | None = None
    decode_roofline_ms: float | None = None
    layer_mean: float | None = None


def table(shape: VlmShape, keeps, text_tokens, *, image_tokens_in=None, prune_layer=None, stages=None, batch=1,
          bytes_per_value=2, attention="full", projected=None, crops=None, grids=None,
          fused=True, on: Device | str | None = None) -> list[CostRow]:
    """One CostRow per budget in `keeps`, in their order.

    image_tokens_in: N; one crop's tokens where None. stages: gives the stages of a method inside the decoder for a
    budget, as prefill_flops takes them. fused: see prefill_operators. The other arguments are those of prefill_flops,
    kv_bytes and operators_ms. `sequence` is what the last layer sees. ValueError: no budget, or one that
    prefill_flops refuses.
    """
    keeps = list(keeps)
    if not keeps:
        raise ValueError("keeps must name at least one budget, got none")
    tokens = shape.tokens_per_crop if image_tokens_in is None else image_tokens_in
    on = device(on) if isinstance(on, str) else on

    def cost(keep):
        later = () if stages is None else tuple(stages(keep))
        kept = tokens if later else keep
        lengths = layer_lengths(shape, tokens, kept, text_tokens, prune_layer, later)
        prefill = prefill_operators(shape, tokens, kept, text_tokens, prune_layer=prune_layer, stages=later,
                                    batch=batch, attention=attention, projected=projected, crops=crops, grids=grids,
                                    fused=fused)
        prefill = [one for part in prefill.values() for one in part]
        cache = sum(kv_bytes(shape.decoder, lengths, batch=batch, bytes_per_value=bytes_per_value))
        mean = sum(lengths) / len(lengths) - text_tokens
        return lengths, prefill, cache, mean

    _, full, full_cache, _ = cost(tokens)
    full_flops = flops_of(full)
    rows = []
    for keep in keeps:
        lengths, prefill, cache, mean = cost(keep)
        decode = decode_operators(shape, [length + 1 for length in lengths], batch=batch, fused=fused)
        times = [None, None] if on is None else [operators_ms(pass_, on, bytes_per_value=bytes_per_value)
                                                 for pass_ in (prefill, decode)]
        rows.append(CostRow(keep, lengths[-1], flops_of(prefill), flops_of(prefill) / full_flops, flops_of(decode),
                            cache, cache / full_cache if full_cache else 1.0, *times, mean))
    return rows
