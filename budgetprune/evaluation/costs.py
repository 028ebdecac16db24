"""What a cell costs: FLOPs by formula, milliseconds and bytes by measurement."""

from collections import Counter
from statistics import fmean

from ..cost import VlmShape, prefill_flops
from ..cost.flops import projector_flops
from . import measure


def shape_of_model(config) -> VlmShape | None:
    """The shape that the formula needs, None for towers and decoders that it does not know."""
    try:
        return VlmShape.from_config(config)
    except ValueError:
        return None


def cost_of(model, family, active, pruning, heard, prompts, config, tokens: int | None) -> dict:
    """heard: what each sample gave, see run.Heard. tokens: N where every image has as many."""
    shape, selector = shape_of_model(model.config), pruning.selector if pruning is not None else None
    depth, kept = len(family.decoder(model).layers), round(fmean(one.count for one in heard))
    inside = selector is not None and selector.place == "llm"
    costs = {}
    if shape is not None and tokens is None:
        costs["prefill_flops"] = _varying_flops(shape, selector, heard)
    elif shape is not None:
        length = round(fmean(one.length for one in heard[: prompts.batch]))
        costs["prefill_flops"] = _flops(shape, selector, tokens, kept, length - shape.tokens_per_crop)
    if inside:
        whole = round(fmean(one.tokens for one in heard)) if tokens is None or shape is None else shape.tokens_per_crop
        costs["layer_mean"] = selector.average(whole, kept, depth)
    if config.latency_batch:
        timed = prompts.timed(config.latency_batch)
        costs |= {"latency_batch": len(timed["input_ids"]), "prefill_ms": measure.prefill_ms(active, timed),
                  "decode_ms_per_token": measure.decode_ms_per_token(active, timed, warmup=1, repeats=3),
                  "peak_bytes": measure.peak_bytes(active, timed)}
    return costs


def _flops(shape, selector, tokens, kept, text):
    """Of one sample where every image has N tokens. `tokens` are those that methods choose among; CLS may join them.
    A method that asks the language model is counted as if all text of the prompt were the question."""
    tokens_in, depth = shape.tokens_per_crop, shape.decoder.layers
    inside = selector is not None and selector.place == "llm"
    late = inside or (selector is not None and selector.after_projector)
    return prefill_flops(shape, tokens_in, tokens_in if inside else kept, text,
                         stages=selector.stages(tokens_in, kept, depth) if inside else (),
                         projected="all" if late else "kept",
                         selector_flops=selector.flops(tokens, shape.decoder.hidden if late else shape.tower.hidden,
                                                       kept) + selector.asking_flops(text, shape.decoder)
                         if selector else 0).total


def _varying_flops(shape, selector, heard):
    """The mean over samples whose images differ in size. All tokens of all crops are projected, padding included, and
    methods choose among what the decoder would get."""
    total, depth = 0, shape.decoder.layers
    inside = selector is not None and selector.place == "llm"
    for (tokens, kept, text, crops), times in Counter(
            (one.tokens, one.count, one.length - one.tokens, one.crops) for one in heard).items():
        flops = prefill_flops(shape, tokens, tokens if inside else kept, text, crops=crops, projected="all",
                              stages=selector.stages(tokens, kept, depth) if inside else (),
                              selector_flops=selector.flops(tokens, shape.decoder.hidden, kept) if selector else 0)
        total += times * (flops.total - flops.projector + projector_flops(shape, crops * shape.tokens_per_crop))
    return round(total / len(heard))
