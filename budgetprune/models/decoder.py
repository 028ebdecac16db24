"""Inside the language model: hooks that let layers from some depth on see fewer image tokens.

State travels in the arguments of the decoder's layers and, between decoding steps, on the cache, so
nothing is shared between calls, and gradient checkpointing recomputes with what the forward had.
"""

from contextvars import ContextVar

import torch

from . import attention, notice
from .stages import DecoderState

# Prompts that the caller gave to generate(); beams and several returned sequences repeat each of them.
prompts: ContextVar = ContextVar("budgetprune_prompts", default=None)


def find_image_tokens(model, pruner, kwargs: dict) -> dict:
    """Forward arguments with the image mask added, which the decoder's hook takes out again."""
    ids = kwargs.get("input_ids")
    if ids is not None:
        family = pruner.family(model)
        is_image = family.is_placeholder(model, ids)
        if bool(is_image.any()):
            kwargs["budgetprune_image"] = (is_image, pruner, family.prefix_lm)
    return kwargs


def enter(module, args, kwargs):
    """Forward pre-hook of the decoder: begins a prompt, or finds the state of the one being continued."""
    image = kwargs.pop("budgetprune_image", None)
    cache = kwargs.get("past_key_values")
    past = int(cache.get_seq_length()) if cache is not None else 0
    if past == 0:
        if getattr(cache, "budgetprune_state", None) is not None:
            del cache.budgetprune_state  # of another prompt, before the cache was reset
        if image is not None:
            _begin(module, kwargs, *image)
        return args, kwargs
    state = getattr(cache, "budgetprune_state", None)
    if state is not None:
        _continue(state, kwargs, past)
    return args, kwargs


def _begin(module, kwargs, is_image, pruner, prefix_lm):
    counts = is_image.sum(1).tolist()
    keep = _keep(pruner, counts)
    if keep == counts:
        pruner.record(None)
        return  # everything stays: not a bit may change
    exists = _exists(kwargs.get("attention_mask"), is_image.shape[1])
    layers = pruner.selector.layers(len(module.layers))
    state = DecoderState.begin(pruner, layers, is_image, exists, keep, kwargs.get("inputs_embeds"))
    state.prefix_lm, state.norm = prefix_lm, module.norm
    deep = kwargs.get("deepstack_visual_embeds")
    if deep is not None:  # the model adds them by columns of the whole prompt; behind the first stage we do
        state.add_deep(kwargs["visual_pos_masks"], deep)
        kwargs["deepstack_visual_embeds"] = deep[:layers[0]]
    kwargs["budgetprune_state"] = kwargs["budgetprune_probe"] = state


def _continue(state, kwargs, past):
    """Padding behind the prompt: a new turn has some where its samples differ in length, generated text has none."""
    hidden = kwargs.get("inputs_embeds")
    state.past = past - state.length
    if state.tail is not None or (hidden is not None and hidden.shape[1] > 1):
        exists = _exists(kwargs.get("attention_mask"), past + hidden.shape[1])
        state.tail = None if exists is None or bool(exists[:, state.length:].all()) else exists[:, state.length:]
    kwargs["budgetprune_state"] = state


def _keep(pruner, counts: list[int]) -> list[int]:
    """Tokens to keep of every row; the rows of one prompt share its budget."""
    repeats = len(counts) // (prompts.get() or len(counts))
    keep = pruner.counts(counts[::repeats])
    return [k for k in keep for _ in range(repeats)]


def _exists(mask, length):
    """[B, L] bool from a 2-D mask, or from the last row of the 4-D mask that generate makes for static caches."""
    if isinstance(mask, dict):  # one mask for each kind of layer
        mask = mask["full_attention"]
    if mask is None:
        return None
    if mask.dim() == 4:
        row = mask[:, 0, -1, :length]
        return row if row.dtype == torch.bool else row == 0
    return mask[:, :length].bool()


def layer(module, args, kwargs):
    """Forward pre-hook of every decoder layer that sees the kept tokens only."""
    state = kwargs.get("budgetprune_state")
    if state is None:
        return None
    hidden = args[0] if args else kwargs["hidden_states"]
    cache = kwargs.get("past_key_values")
    depth = module.self_attn.layer_idx
    if "budgetprune_probe" in kwargs:  # the prompt itself
        hidden = state.with_deep(depth - 1, hidden)
        if depth in state.layers:
            new, pruner = depth not in state.stages, state.pruner  # gradient checkpointing comes here again
            stage = state.choose(depth, hidden) if new else state.stages[depth]
            hidden = stage.narrow(hidden)
            if new:
                own = kwargs["attention_mask"] if state.prefix_lm else None
                stage.prepare(module, hidden, cache, kwargs["position_embeddings"], own)
                if depth == state.layers[-1] and notice.wanted(pruner):
                    _tell(module, state, pruner)
            if cache is not None:
                cache.budgetprune_state = state
        stage = state.at(depth)
        kwargs["position_embeddings"] = stage.position_embeddings
    else:  # behind the prompt: these layers' caches are shorter than the model's own mask says
        stage = state.at(depth)
        if depth in state.layers:
            stage.step(module, hidden, cache, state.tail, state.past)
    kwargs["attention_mask"] = stage.attention_mask
    if kwargs.get("position_ids") is not None:
        kwargs["position_ids"] = None  # gaps would be read as packed sequences; cos and sin are made already
    if args:
        return (hidden, *args[1:]), kwargs
    kwargs["hidden_states"] = hidden
    return args, kwargs


def _tell(module, state, pruner):
    start, config = state.start, module.self_attn.config
    whole = [start.width] * len(start.counts) if start.exists is None else start.exists.sum(1).tolist()
    rows = []
    for row, length in enumerate(whole):
        left = {depth: length - start.counts[row] + state.stages[depth].counts[row] for depth in state.layers}
        rows.append([left[max(passed)] if (passed := [k for k in state.layers if k <= depth]) else length
                     for depth in range(config.num_hidden_layers)])
    last = state.stages[state.layers[-1]].counts
    notice.tell(pruner, config, len(last), sum(start.counts), sum(last), whole, rows)


def leave(module, args, kwargs, output):
    """Forward hook of the last decoder layer: back to the prompt's length, zeros where tokens were dropped,
    so that logits, labels and loss keep their shapes."""
    state = kwargs.get("budgetprune_state")
    if state is None or "budgetprune_probe" not in kwargs:
        return None
    hidden = output[0] if isinstance(output, tuple) else output
    hidden = state.with_deep(module.self_attn.layer_idx, hidden)
    whole = hidden.new_zeros(len(hidden), state.length + 1, hidden.shape[-1])
    kept = state.at(module.self_attn.layer_idx).kept
    where = kept.long().remainder(state.length + 1)[..., None].expand_as(hidden)
    hidden = whole.scatter(1, where, hidden)[:, : state.length]
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def install(model, pruner, family) -> list:
    """Adds the hooks and the probes; returns their handles."""
    decoder = family.decoder(model)
    layers = decoder.layers
    stages = pruner.selector.layers(len(layers))
    for depth in stages:
        if not 1 <= depth < len(layers):
            raise ValueError(f"layer must be in [1, {len(layers) - 1}] for a decoder of {len(layers)} layers, "
                             f"got {depth}")
    if not stages or list(stages) != sorted(set(stages)):
        raise ValueError(f"{pruner.selector.name}.layers must be ascending, got {list(stages)}")
    kinds = {getattr(block.self_attn, "sliding_window", None) for block in layers[stages[0]:]}
    if kinds - {None}:
        raise ValueError(f"{pruner.selector.name} needs layers that see the whole prompt from layer {stages[0]} on, "
                         f"those of {type(model).__name__} have a sliding window of {max(kinds - {None})} tokens, in "
                         "which dropped tokens would still be counted; use a method that prunes before the language "
                         "model")
    for depth in stages:
        attention.tap(layers[depth - 1].self_attn)
    handles = [decoder.register_forward_pre_hook(enter, with_kwargs=True)]
    handles += [block.register_forward_pre_hook(layer, with_kwargs=True) for block in layers[stages[0]:]]
    handles.append(layers[-1].register_forward_hook(leave, with_kwargs=True))
    return handles
