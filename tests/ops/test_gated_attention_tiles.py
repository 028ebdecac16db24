"""gated_attention in half precision around the sizes of a GPU's tiles: 64 queries, 64 keys, D in pieces of eight."""

import pytest
import torch

from budgetprune.ops import gated_attention
from budgetprune.ops.gated_attention import gated_attention_backward_reference, gated_attention_reference

# H, Hkv, Q, N, D
SHAPES = [(2, 1, 37, 37, 16), (1, 1, 64, 64, 24), (4, 2, 65, 65, 32), (2, 2, 70, 130, 48), (1, 1, 130, 130, 64),
          (2, 1, 5, 100, 80), (1, 1, 66, 129, 96), (2, 1, 33, 70, 128), (1, 1, 1, 200, 64), (1, 1, 100, 40, 16)]


def case(shape, dtype, gates):
    H, Hkv, Q, N, D = shape
    generator = torch.Generator().manual_seed(sum(shape))
    q, k, v = (torch.randn(2, h, n, D, generator=generator).to(dtype) for h, n in ((H, Q), (Hkv, N), (Hkv, N)))
    gate = torch.rand(2, N, generator=generator)
    if gates == "hard":
        gate = (gate < 0.5).float()
    elif gates == "none":
        gate = torch.zeros(2, N)
    mask = torch.rand(2, N, generator=generator) < 0.9
    return q, k, v, gate, mask, torch.randn(q.shape, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("gates", ["hard", "soft", "none"])
@pytest.mark.parametrize("shape", SHAPES)
def test_gated_attention_in_half_precision_equals_float64(shape, gates, causal, dtype):
    q, k, v, gate, mask, grad = case(shape, dtype, gates)
    scale = q.shape[-1] ** -0.5
    leaves = [x.clone().requires_grad_() for x in (q, k, v, gate)]
    out = gated_attention(*leaves, mask=mask, causal=causal)
    got = [out.detach(), *torch.autograd.grad(out, leaves, grad)]
    exact = [x.double() for x in (q, k, v, gate)]
    reference, lse = gated_attention_reference(*exact, mask, causal, scale)
    saved = (*exact, mask, reference, lse, causal, scale)
    wanted = [reference, *gated_attention_backward_reference(grad.double(), *saved)]
    eps = torch.finfo(dtype).eps
    for name, a, b in zip(("out", "dq", "dk", "dv", "dgate"), got, wanted):
        # Weights and their slopes are rounded to the dtype before each product, which costs a few units of the whole.
        assert (a.double() - b).norm() <= 3 * eps * b.norm() + 1e-9, name


def test_keys_that_are_no_keys_get_a_gradient_of_exactly_zero():
    q, k, v, gate, mask, grad = case((2, 1, 70, 130, 48), torch.bfloat16, "hard")
    leaves = [x.clone().requires_grad_() for x in (q, k, v, gate)]
    _, dk, dv, dgate = torch.autograd.grad(gated_attention(*leaves, mask=mask, causal=False), leaves, grad)
    absent, dropped = ~mask, mask & (gate == 0)
    assert not dgate[absent].any() and dgate[dropped].all()
    for gradient in (dk, dv):
        rows = gradient.abs().sum((1, 3)) > 0
        assert not rows[absent].any() and not rows[dropped].any() and rows[mask & (gate > 0)].all()
