"""Attention layers that can be looked into, and gated, without touching their model.

A layer is *tapped* by giving its attention module a copy of its config whose attention function is
`attention` below; without anything to do, that calls the function that the model asked for. The mask
is made by the model from its own, unchanged config, so padding is never lost.
"""

import copy
import sys
from threading import local

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..ops import gated_attention

NAME, TOWER = "budgetprune", "budgetprune_tower"
ROWS = 16  # queries of rows_received at a time


class InProgress(local):
    """The encoder call in progress in this thread, or None. No context variable: torch.compile cannot look into one."""

    call = None


encoding = InProgress()


class Untapped:
    """A tapped module as its own attention function expects it: everything is the module's, but the config is its base.

    Flash attention reads the implementation back from the module's config. Swapping that on the module itself would
    untap it for other threads.
    """

    def __init__(self, module):
        self._module, self.config = module, module.config.budgetprune_base

    def __getattr__(self, name):
        return getattr(self._module, name)


def attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, *,
              budgetprune_gate=None, budgetprune_probe=None, **kwargs):
    """The attention function of a tapped layer: gated in training, shown to a probe, otherwise the model's own.

    budgetprune_gate: (gate [B, L], mask [B, L] bool or None). budgetprune_probe: called with module, q, k and the
    keywords of the call.
    """
    if budgetprune_gate is not None:
        if dropout:
            raise ValueError(f"attention dropout must be 0 where gates act inside attention, got {dropout}")
        gate, mask = budgetprune_gate
        return gated_attention(query, key, value, gate, mask=mask, causal=True, scale=scaling).transpose(1, 2), None
    if budgetprune_probe is not None:
        budgetprune_probe(module, query, key, **kwargs)
    untapped = Untapped(module)
    eager = sys.modules[type(module).__module__].eager_attention_forward
    real = ALL_ATTENTION_FUNCTIONS.get_interface(untapped.config._attn_implementation, eager)
    return real(untapped, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)


def tower_attention(module, query, key, value, attention_mask, **kwargs):
    """The attention function of a tapped layer of the tower: the encoder call in progress is shown queries and keys."""
    return attention(module, query, key, value, attention_mask, budgetprune_probe=encoding.call, **kwargs)


AttentionInterface.register(NAME, attention)
AttentionInterface.register(TOWER, tower_attention)


def tap(module, name: str = NAME) -> None:
    """Routes an attention module through `attention`, or `tower_attention`. Tapping twice changes nothing."""
    if getattr(module.config, "budgetprune_base", None) is None:
        tapped = copy.copy(module.config)
        tapped.budgetprune_base = module.config
        tapped._attn_implementation = name
        module.config = tapped


def untap(module) -> None:
    """Gives the module back the very config object it had."""
    base = getattr(module.config, "budgetprune_base", None)
    if base is not None:
        module.config = base


def rows_received(query: Tensor, key: Tensor, rows: Tensor, *, exists: Tensor | None, scale: float) -> Tensor:
    """[B, N] attention that each key gets from the queries where `rows` [B, N] is True: mean over heads, sum over rows.

    Attention is causal: query and key i are one token. exists: [B, N] bool. Some rows are taken at a time, so that
    nothing of size [H, N, N] is ever stored.
    """
    batch, heads, _, width = query.shape
    groups, tokens = key.shape[1:3]
    column = torch.arange(tokens, device=key.device)
    most = int(rows.sum(1).max())
    index = torch.where(rows, column, tokens).sort(dim=1).values[:, :most]
    total = torch.zeros(batch, tokens, device=key.device)
    keys = key.float().transpose(-1, -2)
    for part in index.split(ROWS, dim=1):
        there, at = part < tokens, part.clamp_max(tokens - 1)
        asked = query.gather(2, at[:, None, :, None].expand(-1, heads, -1, width)).float() * scale
        scores = asked.view(batch, groups, -1, width) @ keys
        scores = scores.view(batch, heads, -1, tokens)
        seen = column <= at[..., None]
        if exists is not None:
            seen = seen & exists[:, None]
        received = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1).mean(1)
        total += received.masked_fill(~there[..., None], 0).sum(1)
    return total
