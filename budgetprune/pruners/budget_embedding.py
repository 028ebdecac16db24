"""A budget as a vector that a network can be conditioned on."""

import math

import torch
from torch import Tensor, nn


class BudgetEmbedding(nn.Module):
    """Embeds a budget in [0, 1]: sines and cosines at `num_freqs` frequencies, LayerNorm, MLP.

    e = [sin(2 pi b f_k), cos(2 pi b f_k)] with f_k = 10000^(-k / num_freqs); the MLP has one hidden
    layer of `hidden_dim` with GELU. AdaLLaVA's latency encoding (Xu et al., 2025) without its
    quantisation to layers, and with a hidden width of its own (there it is dim_out).

    budget: [B] or [B, 1] float, the fraction of tokens kept. Returns [B, dim_out].
    ValueError: another shape. TypeError: not a float tensor.
    """

    def __init__(self, dim_out: int, num_freqs: int = 128, hidden_dim: int = 256):
        super().__init__()
        frequencies = 10000.0 ** (-torch.arange(num_freqs, dtype=torch.float32) / num_freqs)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.norm = nn.LayerNorm(2 * num_freqs)
        self.mlp = nn.Sequential(nn.Linear(2 * num_freqs, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, dim_out))

    def forward(self, budget: Tensor) -> Tensor:
        if not (budget.dim() == 1 or (budget.dim() == 2 and budget.shape[1] == 1)):
            raise ValueError(f"budget must be [B] or [B, 1], got shape {list(budget.shape)}")
        if not budget.is_floating_point():
            raise TypeError(f"budget must be a float tensor with values in [0, 1], got {budget.dtype}")
        angle = 2 * math.pi * budget.reshape(-1, 1).float() * self.frequencies.float()
        waves = torch.cat([angle.sin(), angle.cos()], dim=1)
        return self.mlp(self.norm(waves.to(self.norm.weight.dtype)))
