"""Arithmetic of end-to-end figures: FLOPs of what was really read, and the share of the ideal speed-up."""

from dataclasses import replace

from budgetprune.cost import decoder_flops, prefill_flops, projector_flops


def seen_flops(shape, real, rows, seen, selector_flops=0):
    """FLOPs of a prefill of `rows` prompts whose parts read what `seen` says. The tower always runs whole, and so
    does the merger of towers that pack pictures, which is a part of them.

    Attention is counted causal, as flash kernels compute it: half of it would be no work that pruning could spare.
    """
    whole = prefill_flops(shape, real.tokens, real.tokens, real.text, batch=rows, crops=real.crops, attention="causal",
                          selector_flops=selector_flops)
    decoder = rows * decoder_flops(shape.decoder, seen.lengths, attention="causal")
    projector = whole.projector if shape.packed else projector_flops(shape, seen.projected)
    return replace(whole, projector=projector, decoder=decoder).total


def ideal_share(stock_ms, ms, stock_flops, flops):
    """Measured speed-up over the speed-up that the FLOPs promise: 1 where time falls as the work does."""
    for name, value in (("stock_ms", stock_ms), ("ms", ms), ("stock_flops", stock_flops), ("flops", flops)):
        if value <= 0:
            raise ValueError(f"{name} must be above 0, got {value}")
    return (stock_ms / ms) / (stock_flops / flops)
