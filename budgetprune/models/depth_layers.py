"""The decoder's layers where some do not run: which rows enter one, and in training how much their outcome counts.

A hook cannot keep a forward from running, so a layer that may be skipped gets a `forward` of its own instance, which
calls that of its class or does not. Nothing of a layer's own is repeated here.
"""

import types
from threading import local

import torch
from torch import Tensor, nn


class Running(local):
    """The heads that count in the layer that is running in this thread, [B, 2, H] or None."""

    heads = None


running = Running()


class RowsOfCache:
    """A cache as some rows of a batch see it. It keeps all rows, zeros where none was given, so that beams may change
    places."""

    def __init__(self, cache, rows: Tensor, batch: int):
        self._cache, self._rows, self._batch = cache, rows, batch

    def __getattr__(self, name):
        return getattr(self._cache, name)

    def update(self, keys: Tensor, values: Tensor, *args, **kwargs):
        whole = [x.new_zeros(self._batch, *x.shape[1:]).index_copy(0, self._rows, x) for x in (keys, values)]
        return tuple(x[self._rows] for x in self._cache.update(*whole, *args, **kwargs))


def install(layer: nn.Module, heads: bool) -> list:
    """Makes a layer one that may be skipped; handles of the hooks that gate its heads, where those may be."""
    if "forward" in layer.__dict__:  # accelerate's
        layer.budgetprune_forward = layer.__dict__["forward"]
    layer.forward = types.MethodType(forward, layer)
    if not heads:
        return []
    parts = layer.self_attn, getattr(layer.self_attn, "o_proj", None), getattr(layer.mlp, "down_proj", None)
    if None in parts:
        uninstall(layer)
        raise ValueError(f"form must be 'layers' for {type(layer).__name__}, whose attention or MLP has no one output "
                         "matrix; got 'heads'")
    return [parts[0].register_forward_pre_hook(begin, with_kwargs=True), parts[1].register_forward_pre_hook(attended),
            parts[2].register_forward_pre_hook(thought)]


def uninstall(layer: nn.Module) -> None:
    """The layer as it was, but for hooks."""
    if layer.__dict__.get("forward") is not None and getattr(layer.forward, "__func__", None) is forward:
        del layer.forward
        if "budgetprune_forward" in layer.__dict__:
            layer.forward = layer.__dict__.pop("budgetprune_forward")


def forward(self, hidden_states, *args, **kwargs):
    """forward() of a layer that may be skipped."""
    own = self.__dict__.get("budgetprune_forward") or types.MethodType(type(self).forward, self)
    state = kwargs.pop("budgetprune_depth", None)
    if state is None:
        return own(hidden_states, *args, **kwargs)
    number = self.self_attn.layer_idx - state.prefix
    gate = state.gate[:, number].to(hidden_states.device)
    if gate.dim() == 3 and (state.gated or not state.whole[number]):
        _check_hooked(self)
        kwargs["budgetprune_heads"] = gate
    if state.gated:
        out = own(hidden_states, *args, **kwargs)
        return out if gate.dim() == 3 else _gated(hidden_states, out, gate)
    rows = state.rows[number]
    if rows is None:
        return own(hidden_states, *args, **kwargs)
    if not len(rows):
        return hidden_states
    return for_rows(own, hidden_states, rows.to(hidden_states.device), args, kwargs)


def _gated(hidden: Tensor, out: Tensor, gate: Tensor) -> Tensor:
    """hidden + gate * (out - hidden), whose value is exactly that of the rows' own."""
    gate = gate.to(out.dtype)[:, None, None]
    return torch.where(gate > 0, out, hidden) + (gate - gate.detach()) * (out - hidden)


def for_rows(own, hidden, rows, args, kwargs):
    """The layer on some rows of the batch; the others pass it."""
    batch = len(hidden)

    def narrow(value):
        if isinstance(value, Tensor) and value.dim() > 1 and len(value) == batch:
            return value[rows]
        return tuple(map(narrow, value)) if isinstance(value, tuple) else value

    mask = kwargs.get("attention_mask")
    if mask is not None and not isinstance(mask, Tensor):  # flex attention's, which has no rows to take out
        out = own(hidden, *args, **kwargs)
        return hidden.index_copy(0, rows, out[rows])
    cache = kwargs.get("past_key_values")
    kwargs = {name: narrow(value) for name, value in kwargs.items()}
    if cache is not None:
        kwargs["past_key_values"] = RowsOfCache(cache, rows, batch)
    return hidden.index_copy(0, rows, own(hidden[rows], *map(narrow, args), **kwargs))


def _check_hooked(layer):
    if attended not in layer.self_attn.o_proj._forward_pre_hooks.values():
        raise ValueError("prune_depth must come after what replaces layers (peft) in form 'heads': the matrix that "
                         "it gates is no longer the layer's")


# Gradient checkpointing runs what follows again, and nothing of the above: so all they need comes with the arguments.

def begin(module, args, kwargs):
    """Forward pre-hook of a layer's attention, the first to run."""
    running.heads = kwargs.pop("budgetprune_heads", None)
    return args, kwargs


def attended(module, args):
    """Forward pre-hook of o_proj: the heads' outputs, side by side."""
    if running.heads is None:
        return None
    gate = running.heads[:, 0].to(args[0])
    width = args[0].shape[-1] // gate.shape[1]
    return (args[0] * gate.repeat_interleave(width, 1)[:, None], *args[1:])


def thought(module, args):
    """Forward pre-hook of down_proj: the neurons, in as many groups as there are heads, the first ones larger by one
    where they do not divide. The last to run."""
    if running.heads is None:
        return None
    gate, running.heads = running.heads[:, 1].to(args[0]), None
    heads, neurons = gate.shape[1], args[0].shape[-1]
    sizes = torch.tensor([neurons // heads + (head < neurons % heads) for head in range(heads)], device=gate.device)
    return (args[0] * gate.repeat_interleave(sizes, 1, output_size=neurons)[:, None], *args[1:])
