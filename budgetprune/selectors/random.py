"""The floor: tokens drawn without looking."""

from dataclasses import dataclass

import torch

from ..ops import gumbel_topk
from .base import Selector, TokenView, ragged


@dataclass(frozen=True)
class Random(Selector):
    """score[n] = Gumbel noise, so every set of K tokens is equally likely.

    Needs a Philox key: the same key draws the same tokens on any device.
    """

    name = "random"
    needs = frozenset({"key"})

    def plan(self, view: TokenView, keep):
        keep = self.require(keep)
        flat = view.tokens.new_zeros(view.tokens.shape[:2], dtype=torch.float32)
        if view.valid is not None:
            flat = flat.masked_fill(~view.valid, -torch.inf)
        same = keep[0] if len(set(keep)) == 1 else keep
        return ragged(gumbel_topk(flat, same, key=view.need("key"))[1], keep)
