"""The full model: every token stays."""

from dataclasses import dataclass

import torch

from .base import Selector, TokenView, ragged


@dataclass(frozen=True)
class Full(Selector):
    """Keeps everything; the reference that the other methods are measured against."""

    name = "none"
    adaptive_count = True

    def plan(self, view: TokenView, keep=None):
        b, n = view.tokens.shape[:2]
        kept = torch.arange(n, dtype=torch.int32, device=view.tokens.device).expand(b, n)
        return ragged(kept, [n] * b)
