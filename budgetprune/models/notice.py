"""One line at INFO that says what a budget saves, the first time it is spent."""

import logging

import torch

from ..cost import DecoderShape, decoder_flops

log = logging.getLogger(__name__)


def wanted(pruner) -> bool:
    """Whether there is something to say and somebody to hear it; what it says has to be read back from the device."""
    return not torch.compiler.is_compiling() and not pruner.told and log.isEnabledFor(logging.INFO)


def tell(pruner, config, images: int, tokens: int, kept: int, before: list, after: list) -> None:
    """`kept` of `tokens` image tokens, over so many `images`.

    config: of the text model. before, after: the prompts' lengths, in all decoder layers or a list of one per layer.
    """
    pruner.told = True
    mean = "" if images == 1 else f" (mean of {images})"
    log.info("%s kept %s of %s image tokens%s%s", pruner.selector.name, _number(kept / images),
             _number(tokens / images), mean, _saved(config, before, after))


def _saved(config, before, after) -> str:
    try:
        shape = DecoderShape.from_config(config)
    except ValueError:  # a decoder that the formula does not know is pruned all the same
        return ""
    flops = [sum(decoder_flops(shape, lengths) for lengths in prompts) for prompts in (before, after)]
    return f", decoder prefill FLOPs {100 * (flops[1] / flops[0] - 1):+.0f} %"


def _number(x: float) -> str:
    return f"{x:.0f}" if x == round(x) else f"{x:.1f}"
