"""gumbel_topk against the torch compositions it replaces: Gumbel noise, topk, softmax and a straight-through gate;
and K rounds of masked softmax sampling, the form of AdaLLaVA (Xu et al. 2025)."""

import pytest
import torch
from baselines import compiled, flashinfer_topk, skip_compiled
from shapes import SHAPES, named_large, names

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


OURS = ["budgetprune race", "budgetprune fermi", "budgetprune softmax"]
OTHERS = ["eager composition", "torch.compile", "rounds of softmax"]
ALONE = ["torch.topk alone", "flashinfer top_k alone"]  # no noise, no order, no gate, no gradient
TIMED = names("digits", "llava15", "llava15_b1", "llava15_b8", "llava15_b256", "llava15_k64", "llava15_k288",
              "llava_next", "qwen25vl", "video", "video_b64")
LOOPED = ("llava15", "llava15_b1")  # K rounds take minutes beyond these


def skip_long_loops(provider, shape):
    if provider == "rounds of softmax" and shape not in LOOPED:
        pytest.skip("K rounds of softmax are timed at llava15 only")


def skip(provider, shape, device):
    named_large(shape, device)
    skip_long_loops(provider, shape)
    skip_compiled(provider, shape, device)


def call_of(provider, device):
    """What a provider that is not ours runs."""
    if provider == "flashinfer top_k alone":
        top_k = flashinfer_topk(device)
        return lambda logits, keep: top_k(logits, keep)[1]
    return {"eager composition": straight_through, "torch.compile": compiled(straight_through),
            "rounds of softmax": rounds_of_softmax,
            "torch.topk alone": lambda logits, keep: logits.topk(keep, dim=1, sorted=False).indices}[provider]


@pytest.mark.parametrize("provider", OURS + OTHERS + ALONE)
@pytest.mark.parametrize("shape", TIMED)
def bench_forward(bench, provider, shape, device):
    skip(provider, shape, device)
    s, key, logits, ours = cases(shape, device)
    estimator = ours.get(provider, "race")

    def reference(logits):
        return gumbel_topk_reference(logits, None, s.K, key, 1.0, estimator, "gumbel", False)[0]

    if provider in ours:
        bench(provider, lambda logits: gumbel_topk(logits, s.K, key=key, estimator=estimator)[0], reference, (logits,),
              bytes_moved=2 * logits.nbytes + 4 * s.B * s.K)
    else:
        call = call_of(provider, device)
        counted = (lambda result, expected: None) if provider in ALONE else exactly_k
        bench(provider, lambda logits: call(logits, s.K), reference, (logits,), check=counted)


@pytest.mark.parametrize("provider", OURS + OTHERS)
@pytest.mark.parametrize("shape", TIMED)
def bench_forward_backward(bench, provider, shape, device):
    skip(provider, shape, device)
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
        call = call_of(provider, device)
        bench(provider, with_gradient(lambda leaf: call(leaf, s.K)), reference, (leaf, grad),
              check=lambda result, expected: exactly_k(result[0], expected[0]))


@pytest.mark.parametrize("provider", [*OURS, "eager composition"])
@pytest.mark.parametrize("shape", names("llava15", "llava_next", "video_b64"))
def bench_backward(bench, provider, shape, device):
    """The gradient alone, through autograd; the forward's graph is kept."""
    skip(provider, shape, device)
    s, key, logits, ours = cases(shape, device)
    leaf, grad = logits.clone().requires_grad_(), torch.randn_like(logits)
    estimator = ours.get(provider, "race")
    gate = gumbel_topk(leaf, s.K, key=key, estimator=estimator)[0] if provider in ours else straight_through(leaf, s.K)

    def backward(grad):
        return torch.autograd.grad(gate, leaf, grad, retain_graph=True)[0]

    def reference(grad):
        args = (key, 1.0, estimator, "gumbel")
        stats = gumbel_topk_reference(logits, None, s.K, *args, True)[2]
        return gumbel_topk_backward_reference(grad, logits, key, stats, *args[1:])

    def close(result, expected):  # the eager form has drawn other noise
        if provider in ours:
            torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-5)

    bench(provider, backward, reference, (grad,), bytes_moved=3 * logits.nbytes, check=close)
