"""Inside the language model: hooks that let layers from some depth on see fewer image tokens.

State travels in the arguments of the decoder's layers and, between decoding steps, on the cache, so
nothing is shared between calls, and gradient checkpointing recomputes with what the forward had.
"""

from contextvars import ContextVar

import torch

from . import attention, notice
from .stages import DecoderState
from .turns import held

# Prompts that the caller gave to generate(); beams and several returned sequences repeat each of them.
prompts: ContextVar = ContextVar("budgetprune_prompts", default=None)


def find_prompt(model, pruner, kwargs: dict) -> dict:
    """Forward arguments of the whole model, with the state of the prompt that they begin or continue.

    Here and not in the decoder's own hook, for only here nothing of the model has run: what is read back from the
    device costs torch.compile a graph wherever it stands between two parts of the model.
    """
    ids, cache = kwargs.get("input_ids"), kwargs.get("past_key_values")
    family = pruner.family(model)
    media = [name for name in (*family.media.values(), "mm_encoder_outputs") if kwargs.get(name) is not None]
    if media and ids is None:
        raise ValueError(f"input_ids must be given with {media[0]}: a pruned model finds its image tokens there")
    if held(cache):
        state = getattr(cache, "budgetprune_state", None)
        if media and state is None and ids.shape[1] > 1 and bool(family.is_placeholder(model, ids).any()):
            raise ValueError(f"past_key_values must be empty where images come, got {held(cache)} tokens: "
                             f"{pruner.selector.name} takes tokens from a prompt that it sees from its beginning; pass "
                             "the whole conversation and an empty cache")
        new = kwargs.get("inputs_embeds") if ids is None else ids
        if state is not None and new is not None:
            kwargs["budgetprune_state"] = _continued(state, family.decoder(model), new, kwargs)
        return kwargs
    if getattr(cache, "budgetprune_state", None) is not None:
        del cache.budgetprune_state  # of another prompt, before the cache was reset
    pruner.record(None)
    state = None if ids is None else _begun(model, pruner, ids, kwargs.get("attention_mask"))
    return kwargs if state is None else {**kwargs, "budgetprune_begun": state}


def _begun(model, pruner, ids, mask):
    """The state of a prompt of which something is to be dropped, else None."""
    family = pruner.family(model)
    is_image = family.is_placeholder(model, ids)
    counts = is_image.sum(1).tolist()
    if not any(counts):
        return None
    keep = _keep(pruner, counts)
    if keep == counts:
        return None  # everything stays: not a bit may change
    decoder = family.decoder(model)
    layers = pruner.selector.layers(len(decoder.layers))
    state = DecoderState.begin(pruner, layers, is_image, _exists(mask, ids.shape[1]), keep)
    state.prefix_lm, state.norm = family.prefix_lm, decoder.norm
    if notice.wanted(pruner):
        _tell(pruner, model.config.get_text_config(), state)
    return state


def _tell(pruner, config, state):
    seen, rows = state.start.counts, [[] for _ in state.words]
    for depth in range(config.num_hidden_layers):
        seen = state.left.get(depth, seen)
        for row, count, words in zip(rows, seen, state.words):
            row.append(count + words)
    whole = [count + words for count, words in zip(state.start.counts, state.words)]
    notice.tell(pruner, config, len(rows), sum(state.start.counts), sum(seen), whole, rows)


@torch.compiler.disable
def _continued(state, decoder, new, kwargs):
    """The state of a prompt behind which `new` [B, n, ...] is fed, with the masks of its stages: their caches are
    shorter than the model's own mask says. New turns have padding where their samples differ in length, generated text
    has none."""
    cache, (rows, count) = kwargs["past_key_values"], new.shape[:2]
    past = held(cache)
    state.past = past - state.length
    if state.tail is not None or count > 1:
        exists = _exists(kwargs.get("attention_mask"), past + count)
        state.tail = None if exists is None or bool(exists[:, state.length:].all()) else exists[:, state.length:]
    hidden = torch.empty(rows, count, 0, dtype=decoder.dtype, device=new.device)
    for depth in state.layers:
        state.at(depth).step(decoder.layers[depth], hidden, cache, state.tail, state.past)
    return state


def enter(module, args, kwargs):
    """Forward pre-hook of the decoder: a prompt's state becomes that of its layers."""
    state, cache = kwargs.pop("budgetprune_begun", None), kwargs.get("past_key_values")
    embeddings = kwargs.get("inputs_embeds")
    if state is not None:
        if embeddings is not None and state.hears_text:
            state.hear_text(embeddings.detach())
        deep = kwargs.get("deepstack_visual_embeds")
        if deep is not None:  # the model adds them by columns of the whole prompt; behind the first stage we do
            state.add_deep(kwargs["visual_pos_masks"], deep)
            kwargs["deepstack_visual_embeds"] = deep[:state.layers[0]]
        kwargs["budgetprune_state"] = kwargs["budgetprune_probe"] = state
    elif "budgetprune_state" not in kwargs and getattr(cache, "budgetprune_state", None) is not None:
        if held(cache) and embeddings is not None:  # the decoder called by itself
            kwargs["budgetprune_state"] = _continued(cache.budgetprune_state, module, embeddings, kwargs)
    return args, kwargs


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
    hidden, depth = args[0] if args else kwargs["hidden_states"], module.self_attn.layer_idx
    prompt = "budgetprune_probe" in kwargs  # not what is fed behind it
    if prompt:
        hidden = state.with_deep(depth - 1, hidden)
        if depth in state.layers:
            hidden = (_stage if state.traceable else _stage_apart)(state, module, hidden, kwargs)
    stage = state.at(depth)
    if prompt:
        kwargs["position_embeddings"] = stage.position_embeddings
    kwargs["attention_mask"] = stage.attention_mask
    if kwargs.get("position_ids") is not None:
        kwargs["position_ids"] = None  # gaps would be read as packed sequences; cos and sin are made already
    if args:
        return (hidden, *args[1:]), kwargs
    kwargs["hidden_states"] = hidden
    return args, kwargs


def _stage(state, module, hidden, kwargs):
    """The hidden states that stay from this layer on."""
    depth, cache = module.self_attn.layer_idx, kwargs.get("past_key_values")
    new = depth not in state.stages  # gradient checkpointing comes here again
    stage = state.choose(depth, hidden) if new else state.stages[depth]
    hidden = stage.narrow(hidden)
    if new:
        own = kwargs["attention_mask"] if state.prefix_lm else None
        stage.prepare(module, hidden, cache, kwargs["position_embeddings"], own)
    if cache is not None:
        cache.budgetprune_state = state
    return hidden


# A method that reads from the device as it plans breaks the graph at its stages; so it does in one place, not in many.
_stage_apart = torch.compiler.disable(_stage)


def forget_positions(module, args, kwargs):
    """Forward pre-hook of every decoder layer behind a method that leaves gaps in the position ids. In a batch of one
    flash attention looks for packed sequences there, and reads the ids back from the device in every layer."""
    if kwargs.pop("budgetprune_gaps", False):
        kwargs["position_ids"] = None  # cos and sin are made already
    return args, kwargs


def leave(module, args, kwargs, output):
    """Forward hook of the last decoder layer: back to the prompt's length, zeros where tokens were dropped,
    so that logits, labels and loss keep their shapes."""
    state = kwargs.get("budgetprune_state")
    if state is None or "budgetprune_probe" not in kwargs:
        return None
    hidden = output[0] if isinstance(output, tuple) else output
    hidden = state.with_deep(module.self_attn.layer_idx, hidden)
    whole = hidden.new_zeros(len(hidden), state.length + 1, hidden.shape[-1])
    kept = state.at(module.self_attn.layer_idx).kept.to(hidden.device)
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
