"""A latency token enters a prompt, and leaves it: hooks of the model, of its decoder and of the first layer that may be
skipped."""

import torch

from .depth_state import DepthState, flat_mask
from .generation import forward_names
from .turns import held

# Hooks are functions of the module, not closures: after copy.deepcopy they must act on the copy. Their order with those
# of prune() does not matter: what is per token of the prompt goes to the decoder as one more column of it.

def ask(model, args, kwargs):
    """Forward pre-hook of the model: the decoder does not know the pruner, nor the labels."""
    kwargs = {**dict(zip(forward_names(type(model)), args)), **kwargs}
    kwargs["budgetprune_depth_pruner"] = model.budget_depth
    labels = kwargs.get("labels")
    if labels is not None:
        kwargs["budgetprune_answer"] = (labels != -100).to(torch.int32)
    return (), kwargs


def enter(module, args, kwargs):
    """Forward pre-hook of the decoder: one more token, and what runs along with the prompt that long."""
    pruner, answer = (kwargs.pop(f"budgetprune_{name}", None) for name in ("depth_pruner", "answer"))
    if pruner is None:
        return args, kwargs
    if kwargs.keys() & {"budgetprune_begun", "budgetprune_state"}:
        raise ValueError("method of prune() must act before the language model where its depth is pruned, too")
    cache, embeddings = kwargs.get("past_key_values"), kwargs.get("inputs_embeds")
    if embeddings is None:
        embeddings = module.embed_tokens(kwargs.pop("input_ids", None) if not args else args[0])
        args = ()
    kwargs["inputs_embeds"] = embeddings
    if held(cache):
        state = getattr(cache, "budgetprune_depth", None)
        if state is None:
            raise ValueError(f"past_key_values must begin with a prompt that prune_depth saw, got {held(cache)} tokens "
                             "of another one")
        state = state.repeated(len(embeddings))
        return args, {**state.continued(cache, kwargs, embeddings), "budgetprune_depth": state}
    if cache is not None and getattr(cache, "is_compileable", False):
        raise ValueError("past_key_values must be a dynamic cache: a static one has no room for the latency token")
    return args, _begun(pruner, answer, embeddings, kwargs, gated=pruner.training and torch.is_grad_enabled())


def _begun(pruner, answer, embeddings, kwargs, *, gated):
    rows, length = embeddings.shape[:2]
    mask = flat_mask(kwargs.get("attention_mask"))
    exists = None if mask is None else mask.bool()
    column = torch.arange(1, length + 1, device=embeddings.device)
    end = column[-1:].expand(rows) if exists is None else torch.where(exists, column, 0).amax(1)
    if answer is not None:
        marked = answer > 0
        first = marked.int().argmax(1)
        end = torch.where(marked.any(1), first, end)
    counts = pruner.counts(rows)
    state = DepthState(pruner, counts, end, length, pruner.prefix(), pruner.answer_from(), gated)
    token = pruner.token(counts).to(embeddings)
    kwargs["inputs_embeds"] = state.widened(embeddings, token[:, None])
    if mask is not None:
        kwargs["attention_mask"] = state.widened(mask, 1)
    kwargs["position_ids"] = _positions(state, kwargs.get("position_ids"), exists)
    if kwargs.get("visual_pos_masks") is not None:
        kwargs["visual_pos_masks"] = state.widened(kwargs["visual_pos_masks"], False)
    if kwargs.get("budgetprune_gate") is not None:
        gate, seen = kwargs["budgetprune_gate"]
        kwargs["budgetprune_gate"] = state.widened(gate, 1.0), None if seen is None else state.widened(seen, True)
    return {**kwargs, "budgetprune_depth": state, "budgetprune_latency": True}


def _positions(state, where, exists):
    """Position ids with the latency token's, one behind the token before it, and all behind it one further."""
    if where is None:
        return None
    where = where.expand(*where.shape[:-2], len(state.at), -1)
    at = state.at.to(where.device)[:, None]
    before = where.gather(-1, (at - 1).clamp_min(0).expand(*where.shape[:-1], 1))
    there = at > 0 if exists is None else (at > 0) & exists.gather(1, (at - 1).clamp_min(0))
    displaced = where.gather(-1, at.clamp_max(state.length - 1).expand(*where.shape[:-1], 1))
    own = torch.where(there, before + 1, displaced)
    behind = torch.arange(state.length + 1, device=where.device) > at
    wide = state.widened(where, own) + behind
    real = torch.arange(state.length, device=where.device).expand(len(at), -1)
    if exists is not None:
        real = real.masked_fill(~exists, -1)
    last = real.amax(1, keepdim=True)
    last = torch.where(last >= at, last + 1, at)  # in columns with the latency token
    state.end = wide.gather(-1, last.expand(*wide.shape[:-1], 1))
    return wide


def decide(module, args, kwargs):
    """Forward pre-hook of the first layer that may be skipped."""
    if kwargs.get("budgetprune_depth") is not None and kwargs.get("budgetprune_latency"):
        hidden = args[0] if args else kwargs["hidden_states"]
        kwargs["budgetprune_depth"].decide(hidden, kwargs.get("past_key_values"))


def leave(module, args, kwargs, output):
    """Forward hook of the decoder: back to the caller's columns."""
    state = kwargs.get("budgetprune_depth")
    if state is None or not kwargs.get("budgetprune_latency"):
        return None
    output.last_hidden_state = state.narrowed(output.last_hidden_state)
    if getattr(output, "hidden_states", None) is not None:
        output.hidden_states = tuple(map(state.narrowed, output.hidden_states))
    return output
