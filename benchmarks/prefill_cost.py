"""Arithmetic of end-to-end figures: FLOPs of what was really read, and the share of the ideal speed-up."""

from dataclasses import dataclass, replace

from budgetprune.cost import DecoderShape, decoder_flops, prefill_flops, projector_flops


@dataclass(frozen=True)
class PackedShape:
    """A model whose encoder takes pictures of any size: its decoder, and the encoder's FLOPs for one prompt."""

    decoder: DecoderShape
    encoder_flops: int


def qwen25_encoder_flops(vision, patches):
    """2 x multiply-adds of Qwen2.5-VL's tower and merger on one picture of whole windows, so many patches in all."""
    width, group = vision.hidden_size, vision.spatial_merge_size**2
    window = (vision.window_size // vision.patch_size) ** 2
    pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    linear = 4 * width * width + 3 * width * vision.intermediate_size
    seen = sum(patches if block in vision.fullatt_block_indexes else window for block in range(vision.depth))
    merged = group * width * (group * width + vision.out_hidden_size)
    return 2 * (patches * (width * pixels + vision.depth * linear + 2 * seen * width) + patches // group * merged)


def seen_flops(shape, real, rows, seen, selector_flops=0):
    """FLOPs of a prefill of `rows` prompts whose parts read what `seen` says. The tower always runs whole.

    Attention is counted causal, as flash kernels compute it: half of it would be no work that pruning could spare.
    """
    decoder = rows * decoder_flops(shape.decoder, seen.lengths, attention="causal")
    if isinstance(shape, PackedShape):
        head = 2 * shape.decoder.hidden * shape.decoder.vocab
        return decoder + rows * (shape.encoder_flops + head + selector_flops)
    whole = prefill_flops(shape, real.tokens, real.tokens, real.text, batch=rows, crops=real.crops, attention="causal",
                          selector_flops=selector_flops)
    return replace(whole, projector=projector_flops(shape, seen.projected), decoder=decoder).total


def ideal_share(stock_ms, ms, stock_flops, flops):
    """Measured speed-up over the speed-up that the FLOPs promise: 1 where time falls as the work does."""
    for name, value in (("stock_ms", stock_ms), ("ms", ms), ("stock_flops", stock_flops), ("flops", flops)):
        if value <= 0:
            raise ValueError(f"{name} must be above 0, got {value}")
    return (stock_ms / ms) / (stock_flops / flops)
