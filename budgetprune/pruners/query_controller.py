"""A controller that hears the question: patches and words meet in a dot product."""

import torch
from torch import Tensor, nn

from ..checked import integer
from .controller import VisionTokenController


class QueryController(VisionTokenController):
    """logits[n] = the controller's, by patch, place and budget, + g sum_t a_t <W x_n, V e_t> / sqrt(d).

    x_n are the patches and e_t the words' embeddings, both normalised; a = softmax over t of u . e_t says which words
    matter. A question that is added to the patches instead would meet them only in the nonlinearity behind the sum,
    which is slow to learn. g begins at 1, so that the product has a say, and gradients, from the start.

    text_dim: C' of the words' embeddings. query_dim: d. The rest as in VisionTokenController.
    """

    def __init__(self, vision_dim: int, num_patches: int | None, text_dim: int, *, query_dim: int = 64, **options):
        super().__init__(vision_dim, num_patches, **options)
        query_dim = integer("query_dim", query_dim, 1)
        self.text_norm = nn.LayerNorm(text_dim)
        self.weigh = nn.Linear(text_dim, 1, bias=False)
        self.query = nn.Linear(text_dim, query_dim)
        self.key = nn.Linear(vision_dim, query_dim, bias=False)  # a bias would shift all logits alike
        self.gain = nn.Parameter(torch.ones(()))

    def flops(self, tokens: int) -> int:
        """2 x multiply-adds of the logits of one sample; words are few, and not counted."""
        return super().flops(tokens) + 2 * tokens * (self.key.weight.numel() + self.key.out_features)

    def question(self, text: Tensor, text_valid: Tensor | None = None) -> Tensor:
        """[B, d] from words [B, T, C'] of which text_valid [B, T] exist; zeros for a sample without any."""
        words = self.text_norm(text.to(self.text_norm.weight.dtype))
        weight = self.weigh(words).squeeze(-1).float()
        if text_valid is not None:
            weight = weight.masked_fill(~text_valid, -torch.inf)
            there = text_valid.any(1, keepdim=True)
            weight = torch.where(there, weight, 0).softmax(1) * there
        else:
            weight = weight.softmax(1)
        return (weight[..., None] * self.query(words).float()).sum(1)

    def logits(self, features: Tensor, budget: Tensor, text: Tensor, text_valid: Tensor | None = None,
               state: Tensor | None = None) -> Tensor:
        """[B, N] from features [B, N, C], budgets [B] or their states, words [B, T, C'] and text_valid [B, T]."""
        own = super().logits(features, budget, state)
        keys = self.key(self.norm(features.to(self.norm.weight.dtype))).float()
        meet = (keys @ self.question(text, text_valid)[..., None]).squeeze(-1)
        return own + self.gain.float() * meet / keys.shape[-1] ** 0.5
