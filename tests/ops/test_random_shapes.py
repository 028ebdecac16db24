"""select_topk and gumbel_topk keep the same tokens, bit for bit, as the reference (on a GPU: as the CPU), 200 times.

The shapes are drawn so that every way in which a kernel may hold a row comes up: rows enough to fill a chip with warps,
few rows, rows of every length class, ragged counts, ties, odd alignment.
"""

import random

import pytest
import torch

from budgetprune.ops import gumbel_topk, select_topk
from budgetprune.ops.gumbel_topk import ESTIMATORS, NOISES, gumbel_topk_backward_reference, gumbel_topk_reference
from budgetprune.ops.select_topk import select_topk_reference

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
# the longest row of each class, and how many rows: a warp holds 4, 12, 20 or 32 tokens a thread, a block 4 or 8
CLASSES = [(125, 5), (381, 270), (637, 270), (1021, 265), (1021, 7), (4093, 3), (8189, 2), (12000, 1), (30000, 1)]


def drawn(seed):
    """(values with ties, counts or one count, max_keep) of one random shape, and the chance to draw more."""
    chance = random.Random(seed)
    longest, rows = CLASSES[seed % len(CLASSES)]
    shortest = ([0] + [n for n, _ in CLASSES if n < longest])[-1]
    tokens = longest if chance.random() < 0.3 else chance.randint(max(1, shortest), longest)
    torch.manual_seed(seed)
    levels = chance.choice([2, 7, 200, None])
    values = torch.randn(rows, tokens)
    values = values if levels is None else (values * levels / 4).round() / levels * 4
    values[torch.rand_like(values) < chance.choice([0, 0.01])] = chance.choice([torch.inf, -torch.inf, 0.0, -0.0])
    most = chance.choice([1, tokens, chance.randint(0, tokens)])
    keep = torch.randint(0, most + 1, (rows,), dtype=torch.int32) if chance.random() < 0.7 else most
    return values.to(chance.choice(DTYPES)), keep, most, chance


def moved(tensor, device):
    return tensor.to(device) if isinstance(tensor, torch.Tensor) else tensor


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("block", range(10))
def test_select_topk_keeps_the_same_tokens_for_random_shapes(block, device):
    for seed in range(20 * block, 20 * block + 20):
        scores, keep, most, _ = drawn(seed)
        kept = select_topk(scores.to(device), moved(keep, device), max_keep=most)
        if device == "cuda":
            expected = select_topk(scores, keep, max_keep=most)
        else:
            expected = select_topk_reference(scores, keep if isinstance(keep, torch.Tensor) else None, most)
        assert torch.equal(kept.cpu(), expected), (seed, tuple(scores.shape), scores.dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("block", range(10))
def test_gumbel_topk_keeps_the_same_tokens_for_random_shapes(block, device):
    for seed in range(20 * block, 20 * block + 20):
        logits, keep, most, chance = drawn(seed)
        logits = logits.clamp(-12, 12)  # beyond, a row's gradient is the rounding of one token's
        estimator, noise, tau = chance.choice(ESTIMATORS), chance.choice(NOISES), chance.choice([0.5, 1.0, 5.0])
        shape = (2,) if chance.random() < 0.5 else (len(logits), 2)
        key = torch.randint(-(2**62), 2**62, shape)
        upstream = torch.randn(logits.shape).to(logits.dtype)
        leaf = logits.to(device).requires_grad_()
        gate, kept = gumbel_topk(leaf, moved(keep, device), key=key.to(device), tau=tau, estimator=estimator,
                                 noise=noise, max_keep=most)
        grad, = torch.autograd.grad(gate, leaf, upstream.to(device))
        counts = keep if isinstance(keep, torch.Tensor) else None
        if device == "cuda":
            cpu = logits.clone().requires_grad_()
            expected, expected_kept = gumbel_topk(cpu, keep, key=key, tau=tau, estimator=estimator, noise=noise,
                                                  max_keep=most)
            expected_grad, = torch.autograd.grad(expected, cpu, upstream)
        else:
            expected, expected_kept, stats = gumbel_topk_reference(logits, counts, most, key, tau, estimator, noise,
                                                                   True)
            expected_grad = gumbel_topk_backward_reference(upstream, logits, key, stats, tau, estimator, noise)
        told = seed, tuple(logits.shape), logits.dtype, estimator, noise
        assert torch.equal(kept.cpu(), expected_kept), told
        assert torch.equal(gate.detach().cpu(), expected.detach()), told
        # Of the row's largest gradient, or of a hundredth of what one undecided token would have: where all are
        # decided, sums that cancel leave the rounding of their terms.
        scale = expected_grad.double().abs().amax(1, keepdim=True).clamp_min(1e-2 / tau)
        # nu is found to a millionth of K; with one token undecided among hundreds its derivative moves by a thousandth.
        tolerance = {torch.float64: 1e-6, torch.bfloat16: 2e-2}.get(logits.dtype, 5e-3)
        error = (grad.cpu().double() - expected_grad.double()).abs() / scale
        assert error.max() < tolerance, (*told, error.max())
