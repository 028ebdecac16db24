"""gated_attention over the whole prompt of a training step: against the masked matmul form, and sdpa without gates.

sdpa answers another question (no gate, hence no gradient of one); it is the floor of attention over all tokens.
"""

import pytest
import torch
from baselines import flex_gated
from baselines import sdpa as plain_sdpa
from shapes import SHAPES, named_large, names

from budgetprune.ops import gated_attention
from budgetprune.ops.gated_attention import gated_attention_backward_reference, gated_attention_reference

TRAINED = names("digits", "llava15", "llava15_b8", "llava_next_b1", "qwen25vl_b1")
MOST_ROWS = {"digits": 64, "llava15": 1}  # the eager form keeps several [B, H, L, L] matrices


def eager(q, k, v, gate):
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    scores = scores.masked_fill(hidden, -1e9)
    weight = torch.exp(scores - scores.amax(-1, keepdim=True).detach()) * gate[:, None, None, :]
    return (weight / weight.sum(-1, keepdim=True).clamp_min(1e-9)).to(v.dtype) @ v


def sdpa(q, k, v, gate):
    return plain_sdpa(q, k, v)


def reference(q, k, v, gate):
    return gated_attention_reference(q, k, v, gate, None, True, q.shape[-1] ** -0.5)[0]


def backward_reference(q, k, v, gate, grad):
    out, lse = gated_attention_reference(q, k, v, gate, None, True, q.shape[-1] ** -0.5)
    return gated_attention_backward_reference(grad, q, k, v, gate, None, out, lse, True, q.shape[-1] ** -0.5)


CALLS = {"budgetprune": gated_attention, "eager composition": eager, "sdpa without gates": sdpa,
         "flex attention": flex_gated}


def check_of(provider, tensors):
    """A sum over hundreds of keys in another order and precision; sdpa is checked by its own tests."""
    if provider == "sdpa without gates":
        return lambda got, want: None
    near = 1e-3 if tensors[0].dtype == torch.float32 else 5e-2

    def check(got, want):
        for a, b in zip(got, want):
            largest = max(1.0, float(b.float().abs().max()))
            torch.testing.assert_close(a.float(), b.float(), rtol=near, atol=near * largest)
    return check


def inputs(shape, device):
    named_large(shape, device)
    s = SHAPES[shape].batch(MOST_ROWS.get(shape, SHAPES[shape].B))
    length = s.N + s.T
    torch.manual_seed(0)
    kind = torch.float32 if device == "cpu" else torch.bfloat16
    q = torch.randn(s.B, s.H, length, s.D, device=device, dtype=kind)
    k, v = (torch.randn(s.B, s.G, length, s.D, device=device, dtype=kind) for _ in range(2))
    gate = torch.zeros(s.B, length, device=device)
    gate[:, :s.N].scatter_(1, torch.rand(s.B, s.N, device=device).topk(s.K).indices, 1)
    gate[:, 0] = gate[:, s.N:] = 1  # the text, and one token for the first rows to see
    return q, k, v, gate


def causal_flops(q, gate, kept, dropped):
    """2 x multiply-adds of so many products of [D] with every key that a query sees, by whether the gate keeps it.

    Forward: two for a kept key. Backward: five more, and two for a dropped one, which gives its gate a gradient."""
    heads, length, size = q.shape[1:]
    seen = gate.cumsum(1).sum().item()
    return 2 * heads * size * (kept * seen + dropped * (gate.shape[0] * length * (length + 1) / 2 - seen))


@pytest.mark.parametrize("provider", CALLS)
@pytest.mark.parametrize("shape", TRAINED)
def bench_forward(bench, provider, shape, device):
    if provider == "flex attention" and (device == "cpu" or shape == "digits"):
        pytest.skip("FlexAttention compiles for a GPU, and heads of 16 or more")
    tensors = inputs(shape, device)
    bench(provider, CALLS[provider], reference, tensors, check=check_of(provider, tensors),
          flops=causal_flops(tensors[0], tensors[3], 2, 0))


@pytest.mark.parametrize("provider", CALLS)
@pytest.mark.parametrize("shape", TRAINED)
def bench_forward_backward(bench, provider, shape, device):
    if provider == "flex attention":
        pytest.skip("FlexAttention gives the gate of a dropped token no gradient")
    tensors = inputs(shape, device)
    grad = torch.randn_like(tensors[0])

    def step(*args):
        leaves = [x.detach().requires_grad_() for x in args[:4]]
        grads = torch.autograd.grad(CALLS[provider](*leaves), leaves, args[4], allow_unused=True)
        return tuple(x for x in grads if x is not None)

    def same_for_kept_tokens(got, want):
        """The eager form gives a dropped token the derivative at 0, the op a secant: there they differ by design."""
        kept = tensors[3] > 0
        check_of(provider, tensors)((*got[:3], got[3][kept]), (*want[:3], want[3][kept]))

    check = same_for_kept_tokens if provider == "eager composition" else check_of(provider, tensors)
    bench(provider, step, backward_reference, (*tensors, grad), check=check,
          flops=causal_flops(tensors[0], tensors[3], 7, 2))
