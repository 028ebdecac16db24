"""gumbel_topk against the torch compositions it replaces: Gumbel noise, topk, softmax and a straight-through gate;
and K rounds of masked softmax sampling, the form of AdaLLaVA (Xu et al. 2025)."""

import pytest
import torch
from shapes import SHAPES, names

from budgetprune.ops import gumbel_topk
from budgetprune.ops.gumbel_topk import gumbel_topk_backward_reference, gumbel_topk_reference


def straight_through(logits, keep, tau=1.0):
    """The eager composition; it draws from torch's own generator."""
    z = logits - torch.log(-torch.log(torch.rand_like(logits).clamp_min(1e-20)))
    soft = torch.softmax(z / tau, dim=1)
    hard = torch.zeros_like(z).scatter(1, z.topk(keep, dim=1).indices, 1.0)
    return hard - soft.detach() + soft


def rounds_of_softmax(logits, keep, tau=1.0):
    """K rounds: a straight-through Gumbel softmax over what is left, the winner masked out for the next round."""
    left, gate = logits, torch.zeros_like(logits)
    for _ in range(keep):
        one = torch.nn.functional.gumbel_softmax(left, tau=tau, hard=True, dim=1)
        gate = gate + one
        left = left.masked_fill(one.detach() > 0.5, float("-inf"))
    return gate


def exactly_k(gate, expected):
    """Other noise keeps other tokens: what can be asked is that each row keeps K, as 0 or 1 up to rounding."""
    torch.testing.assert_close(gate.round().sum(dim=1), expected.sum(dim=1))
    torch.testing.assert_close(gate, gate.round(), atol=1e-5, rtol=0)


def cases(shape, device):
    s, key = SHAPES[shape], torch.tensor([1, 2], device=device)
    logits = torch.randn(s.B, s.N, generator=torch.Generator().manual_seed(0)).to(device)
    ours = {f"budgetprune {e}": e for e in ("race", "fermi", "softmax")}
    return s, key, logits, ours


PROVIDERS = ["budgetprune race", "budgetprune fermi", "budgetprune softmax", "eager composition", "rounds of softmax"]
LOOPED = ("llava15", "llava15_b1")  # K rounds take minutes beyond these


def skip_long_loops(provider, shape):
    if provider == "rounds of softmax" and shape not in LOOPED:
        pytest.skip("K rounds of softmax are timed at llava15 only")


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("shape", names("digits", "llava15", "llava15_b1", "llava_next", "qwen25vl", "video"))
def bench_forward(bench, provider, shape, device):
    skip_long_loops(provider, shape)
    s, key, logits, ours = cases(shape, device)
    estimator = ours.get(provider, "race")

    def reference(logits):
        return gumbel_topk_reference(logits, None, s.K, key, 1.0, estimator, "gumbel", False)[0]

    if provider in ours:
        bench(provider, lambda logits: gumbel_topk(logits, s.K, key=key, estimator=estimator)[0], reference, (logits,),
              bytes_moved=2 * logits.nbytes + 4 * s.B * s.K)
    else:
        call = straight_through if provider == "eager composition" else rounds_of_softmax
        bench(provider, lambda logits: call(logits, s.K), reference, (logits,), check=exactly_k)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("shape", names("digits", "llava15", "llava15_b1", "llava_next", "qwen25vl", "video"))
def bench_forward_backward(bench, provider, shape, device):
    skip_long_loops(provider, shape)
    s, key, logits, ours = cases(shape, device)
    estimator = ours.get(provider, "race")
    leaf, grad = logits.clone().requires_grad_(), torch.randn_like(logits)

    def reference(leaf, grad):
        args = (key, 1.0, estimator, "gumbel")
        gate, _, stats = gumbel_topk_reference(leaf.detach(), None, s.K, *args, True)
        return gate, gumbel_topk_backward_reference(grad, leaf.detach(), args[0], stats, *args[1:])

    def with_gradient(call):
        def both(leaf, grad):
            gate = call(leaf)
            return gate.detach(), torch.autograd.grad(gate, leaf, grad)[0]
        return both

    def close(result, expected):
        torch.testing.assert_close(result[0], expected[0])
        torch.testing.assert_close(result[1], expected[1], rtol=1e-3, atol=1e-5)

    if provider in ours:
        bench(provider, with_gradient(lambda leaf: gumbel_topk(leaf, s.K, key=key, estimator=estimator)[0]), reference,
              (leaf, grad), bytes_moved=5 * logits.nbytes + 4 * s.B * s.K, check=close)
    else:
        call = straight_through if provider == "eager composition" else rounds_of_softmax
        bench(provider, with_gradient(lambda leaf: call(leaf, s.K)), reference, (leaf, grad),
              check=lambda result, expected: exactly_k(result[0], expected[0]))
