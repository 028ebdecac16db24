"""gated_attention over the whole prompt of a training step: against the masked matmul form, and sdpa without gates.

sdpa answers another question (no gate, hence no gradient of one); it is the floor of attention over all tokens.
"""

import pytest
import torch
import torch.nn.functional as F
from shapes import SHAPES, names

from budgetprune.ops import gated_attention
from budgetprune.ops.gated_attention import gated_attention_backward_reference, gated_attention_reference

TRAINED = names("digits", "llava15")
MOST_ROWS = {"digits": 64, "llava15": 1}  # the eager form keeps several [B, H, L, L] matrices


def eager(q, k, v, gate):
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    scores = scores.masked_fill(hidden, -1e9)
    weight = torch.exp(scores - scores.amax(-1, keepdim=True).detach()) * gate[:, None, None, :]
    return weight / weight.sum(-1, keepdim=True).clamp_min(1e-9) @ v


def sdpa(q, k, v, gate):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def reference(q, k, v, gate):
    return gated_attention_reference(q, k, v, gate, None, True, q.shape[-1] ** -0.5)[0]


def backward_reference(q, k, v, gate, grad):
    out, lse = gated_attention_reference(q, k, v, gate, None, True, q.shape[-1] ** -0.5)
    return gated_attention_backward_reference(grad, q, k, v, gate, None, out, lse, True, q.shape[-1] ** -0.5)


CALLS = {"budgetprune": gated_attention, "eager composition": eager, "sdpa without gates": sdpa}
# A float32 sum over hundreds of keys in another order; sdpa is checked by its own tests.
CHECKS = {name: (lambda got, want: [torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(got, want)])
          for name in CALLS} | {"sdpa without gates": lambda got, want: None}


def inputs(shape, device):
    s = SHAPES[shape].batch(MOST_ROWS[shape])
    length = s.N + s.T
    torch.manual_seed(0)
    q = torch.randn(s.B, s.H, length, s.D, device=device)
    k, v = (torch.randn(s.B, s.G, length, s.D, device=device) for _ in range(2))
    gate = torch.zeros(s.B, length, device=device)
    gate[:, :s.N].scatter_(1, torch.rand(s.B, s.N, device=device).topk(s.K).indices, 1)
    gate[:, 0] = gate[:, s.N:] = 1  # the text, and one token for the first rows to see
    return q, k, v, gate


def causal_flops(q, products):
    """2 x multiply-adds of the products of [L, D] and half of [L, L]: two forward, five more backward."""
    batch, heads, length, size = q.shape
    return products * batch * heads * length * (length + 1) * size


@pytest.mark.parametrize("provider", CALLS)
@pytest.mark.parametrize("shape", TRAINED)
def bench_forward(bench, provider, shape, device):
    tensors = inputs(shape, device)
    bench(provider, CALLS[provider], reference, tensors, check=CHECKS[provider], flops=causal_flops(tensors[0], 2))


@pytest.mark.parametrize("provider", CALLS)
@pytest.mark.parametrize("shape", TRAINED)
def bench_forward_backward(bench, provider, shape, device):
    tensors = inputs(shape, device)
    grad = torch.randn_like(tensors[0])

    def step(*args):
        leaves = [x.detach().requires_grad_() for x in args[:4]]
        grads = torch.autograd.grad(CALLS[provider](*leaves), leaves, args[4], allow_unused=True)
        return tuple(x for x in grads if x is not None)

    def same_for_kept_tokens(got, want):
        """The eager form gives a dropped token the derivative at 0, the op a secant: there they differ by design."""
        kept = tensors[3] > 0
        CHECKS[provider]((*got[:3], got[3][kept]), (*want[:3], want[3][kept]))

    check = same_for_kept_tokens if provider == "eager composition" else CHECKS[provider]
    bench(provider, step, backward_reference, (*tensors, grad), check=check,
          flops=causal_flops(tensors[0], 7))
