"""What a cell costs: FLOPs by formula, milliseconds and bytes by measurement."""

from collections import Counter
from statistics import fmean

from ..cost import VlmShape, prefill_flops
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
    tokens_in = shape.tokens_per_crop
    return _prefill(shape, selector, tokens_in, kept, text, choices=tokens).total


def _varying_flops(shape, selector, heard):
    """The mean over samples whose images differ in size; methods choose among what the decoder would get."""
    total, side = 0, shape.projector.merge
    for (tokens, kept, text, crops, grid), times in Counter(
            (one.tokens, one.count, one.length - one.tokens, one.crops, one.grid) for one in heard).items():
        seen = {"grids": ((1, grid[0] * side, grid[1] * side),)} if shape.packed else {"crops": crops}
        total += times * _prefill(shape, selector, tokens, kept, text, choices=tokens, **seen).total
    return round(total / len(heard))


def _prefill(shape, selector, tokens, kept, text, *, choices, **seen):
    """PrefillFlops of one prompt with the method's own operations, None being the full model."""
    if selector is None:
        return prefill_flops(shape, tokens, kept, text, **seen)
    inside = selector.place == "llm"
    late = inside or selector.after_projector or not shape.projector.selects_before
    width = shape.decoder.hidden if late else shape.tower.hidden
    own = selector.flops(choices, width, kept) + selector.asking_flops(text, shape.decoder)
    return prefill_flops(shape, tokens, tokens if inside else kept, text, projected="all" if late else "kept",
                         stages=selector.stages(tokens, kept, shape.decoder.layers) if inside else (),
                         selector_flops=own, **seen)
