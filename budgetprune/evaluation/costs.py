"""What a cell costs: FLOPs and the cache by formula, milliseconds and bytes by measurement."""

from collections import Counter
from statistics import fmean

from ..cost import VlmShape, joint_flops, kv_bytes, prefill_flops
from ..cost.flops import layer_lengths
from . import measure


def shape_of_model(config) -> VlmShape | None:
    """The shape that the formula needs, None for towers and decoders that it does not know."""
    try:
        return VlmShape.from_config(config)
    except ValueError:
        return None


def cost_of(model, family, active, pruning, heard, prompts, config, tokens: int | None,
            layers: int | None = None) -> dict:
    """heard: what each sample gave, see run.Heard. tokens: N where every image has as many. layers: how many run, where
    the model now spares some."""
    shape, selector = shape_of_model(model.config), pruning.selector if pruning is not None else None
    depth, kept = len(family.decoder(model).layers), round(fmean(one.count for one in heard))
    inside = selector is not None and selector.place == "llm"
    spared = None if layers is None else (layers, model.budget_depth.scheduler.flops())
    costs = {}
    if shape is not None and tokens is None:
        flops, cached = _varying(shape, selector, heard, spared)
    elif shape is not None:
        length = round(fmean(one.length for one in heard[: prompts.batch]))
        flops, cached = _alike(shape, selector, tokens, kept, length - shape.tokens_per_crop, spared)
    if shape is not None:
        costs = {"prefill_flops": flops, "kv_bytes": cached * model.dtype.itemsize}
        if spared is not None and model.budget_depth.scheduler.form == "heads":
            costs["kv_bytes"] = None  # a layer with any unit caches all of its heads, and which have some is not known
    if inside:
        whole = round(fmean(one.tokens for one in heard)) if tokens is None or shape is None else shape.tokens_per_crop
        costs["layer_mean"] = selector.average(whole, kept, depth)
    if config.latency_batch:
        timed = prompts.timed(config.latency_batch)
        costs |= {"latency_batch": len(timed["input_ids"]), "prefill_ms": measure.prefill_ms(active, timed),
                  "decode_ms_per_token": measure.decode_ms_per_token(active, timed, warmup=1, repeats=3),
                  "peak_bytes": measure.peak_bytes(active, timed)}
    return costs


def _alike(shape, selector, tokens, kept, text, spared):
    """Of one sample where every image has N tokens. `tokens` are those that methods choose among; CLS may join them.
    A method that asks the language model is counted as if all text of the prompt were the question."""
    return _prefill(shape, selector, shape.tokens_per_crop, kept, text, spared, choices=tokens)


def _varying(shape, selector, heard, spared):
    """The means over samples whose images differ in size; methods choose among what the decoder would get."""
    flops, cached, side = 0, 0, shape.projector.merge
    for (tokens, kept, text, crops, grid), times in Counter(
            (one.tokens, one.count, one.length - one.tokens, one.crops, one.grid) for one in heard).items():
        seen = {"grids": ((1, grid[0] * side, grid[1] * side),)} if shape.packed else {"crops": crops}
        own, held = _prefill(shape, selector, tokens, kept, text, spared, choices=tokens, **seen)
        flops, cached = flops + times * own, cached + times * held
    return round(flops / len(heard)), round(cached / len(heard))


def _prefill(shape, selector, tokens, kept, text, spared, *, choices, **seen):
    """(FLOPs, values cached) of one prompt with the method's own operations, None being the full model. spared: (layers
    that run, FLOPs of choosing them)."""
    own, at, inside = 0, {}, selector is not None and selector.place == "llm"
    if selector is not None:
        late = inside or selector.after_projector or not shape.projector.selects_before
        width = shape.decoder.hidden if late else shape.tower.hidden
        own = selector.flops(choices, width, kept) + selector.asking_flops(text, shape.decoder)
        at["projected"] = "all" if late else "kept"
    if spared is None:
        stages, entering = (selector.stages(tokens, kept, shape.decoder.layers), tokens) if inside else ((), kept)
        flops = prefill_flops(shape, tokens, entering, text, stages=stages, selector_flops=own, **at, **seen)
        lengths = layer_lengths(shape, tokens, entering, text, stages=stages)
    else:
        layers, choosing = spared
        flops = joint_flops(shape, kept, layers, text, image_tokens_in=tokens, selector_flops=own + choosing, **at,
                            **seen)
        lengths = [kept + text + 1] * layers + [0] * (shape.decoder.layers - layers)  # with the latency token
    return flops.total, sum(kv_bytes(shape.decoder, lengths, bytes_per_value=1))
