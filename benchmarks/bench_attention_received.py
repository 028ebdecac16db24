"""attention_received: against eager attention that keeps the softmax matrix, and against a tuned single row."""

import pytest
import torch
from baselines import compiled, sdpa, skip_compiled
from shapes import SHAPES, named_large, names

from budgetprune.ops import attention_received
from budgetprune.ops.attention_received import attention_received_reference

PROBED = names("digits", "llava15_b1", "llava15_b8", "llava_next_b1", "qwen25vl_b1", "qwen25vl")
SEEN_BY_ALL = names("digits", "llava15_b1", "clip_b8", "llava_next_b1", "qwen25vl_b1")


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
    named_large(shape, device, also=("qwen25vl", "clip_b8"))
    s = SHAPES[shape]
    length = s.N + (s.T if text else 0)
    torch.manual_seed(0)
    kind = torch.float32 if device == "cpu" else torch.bfloat16
    q = torch.randn(s.B, s.H, length, s.D, device=device, dtype=kind)
    return q, torch.randn(s.B, s.G, length, s.D, device=device, dtype=kind)


def check_of(provider, q):
    """Ours sums in float32 whatever comes in; the others in the dtype of q."""
    if provider == "budgetprune" or q.dtype == torch.float32:
        return lambda got, want: torch.testing.assert_close(got.float(), want.float(), rtol=1e-3, atol=1e-6)
    return lambda got, want: torch.testing.assert_close(got.float(), want.float(), rtol=0.1, atol=1e-3)


def reference(rows):
    return lambda q, k: attention_received_reference(q, k, rows, None, q.shape[-1] ** -0.5)


@pytest.mark.parametrize("provider", ["budgetprune", "eager composition", "torch.compile", "einsum of one row"])
@pytest.mark.parametrize("shape", PROBED)
def bench_last(bench, provider, shape, device):
    """FastV: the last token of the prompt looks at all."""
    if provider == "eager composition" and shape == "qwen25vl":
        pytest.skip("the whole attention matrix takes 8 GB and more of each of several copies")
    skip_compiled(provider, shape, device, timed=("llava15_b1",))
    q, k = inputs(shape, device, text=True)
    call = {"budgetprune": attention_received, "eager composition": matrix_then_row, "torch.compile": compiled(one_row),
            "einsum of one row": one_row}
    bench(provider, call[provider], reference("last"), (q, k), bytes_moved=k.nbytes, check=check_of(provider, q))


@pytest.mark.parametrize("provider", ["budgetprune", "eager composition", "sdpa"])
@pytest.mark.parametrize("shape", SEEN_BY_ALL)
def bench_all(bench, provider, shape, device):
    """A tower without CLS: every token looks at all. On a GPU the scores are computed twice, for the sums over keys
    and again for the means over queries, which is as much arithmetic as sdpa's forward; on the CPU once."""
    q, k = inputs(shape, device, text=False)
    call = {"budgetprune": lambda q, k: attention_received(q, k, rows="all"), "eager composition": matrix_then_mean,
            "sdpa": lambda q, k: sdpa(q, k, k, causal=False)}
    check = (lambda got, want: None) if provider == "sdpa" else check_of(provider, q)
    once = device == "cpu" and provider != "sdpa"
    bench(provider, call[provider], reference("all"), (q, k), flops=(2 if once else 4) * q.numel() * k.shape[2],
          check=check)
