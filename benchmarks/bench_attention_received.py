"""attention_received: against eager attention that keeps the softmax matrix, and against a tuned single row."""

import pytest
import torch
from shapes import SHAPES, names

from budgetprune.ops import attention_received
from budgetprune.ops.attention_received import attention_received_reference

PROBED = names("digits", "llava15_b1")


def matrix_then_row(q, k):
    """What output_attentions makes FastV do: the causal [H, L, L] softmax, then its last row, mean over heads."""
    scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(-1, -2) * q.shape[-1] ** -0.5
    causal = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(causal, -torch.inf).softmax(-1).mean(1)[:, -1]


def one_row(q, k):
    scores = torch.einsum("bhd,bhnd->bhn", q[:, :, -1], k.repeat_interleave(q.shape[1] // k.shape[1], 1))
    return (scores * q.shape[-1] ** -0.5).softmax(-1).mean(1)


def matrix_then_mean(q, k):
    scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(-1, -2) * q.shape[-1] ** -0.5
    return scores.softmax(-1).mean((1, 2))


def inputs(shape, device, text):
    s = SHAPES[shape]
    length = s.N + (s.T if text else 0)
    torch.manual_seed(0)
    q = torch.randn(s.B, s.H, length, s.D, device=device)
    return q, torch.randn(s.B, s.G, length, s.D, device=device)


def reference(rows):
    return lambda q, k: attention_received_reference(q, k, rows, None, q.shape[-1] ** -0.5)


@pytest.mark.parametrize("provider", ["budgetprune", "eager composition", "einsum of one row"])
@pytest.mark.parametrize("shape", PROBED)
def bench_last(bench, provider, shape, device):
    """FastV: the last token of the prompt looks at all."""
    q, k = inputs(shape, device, text=True)
    call = {"budgetprune": attention_received, "eager composition": matrix_then_row, "einsum of one row": one_row}
    bench(provider, call[provider], reference("last"), (q, k), bytes_moved=k.nbytes)


@pytest.mark.parametrize("provider", ["budgetprune", "eager composition"])
@pytest.mark.parametrize("shape", PROBED)
def bench_all(bench, provider, shape, device):
    """A tower without CLS: every token looks at all."""
    q, k = inputs(shape, device, text=False)
    call = {"budgetprune": lambda q, k: attention_received(q, k, rows="all"), "eager composition": matrix_then_mean}
    bench(provider, call[provider], reference("all"), (q, k), flops=2 * q.numel() * k.shape[2])
