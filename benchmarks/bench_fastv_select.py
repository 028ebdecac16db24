"""fastv_select against what FastV costs without it: a row of attention, its mean, topk, and positions put in order."""

import pytest
import torch
from baselines import compiled, skip_compiled
from bench_attention_received import inputs, matrix_then_row, one_row
from shapes import SHAPES, names

from budgetprune.ops import fastv_select
from budgetprune.ops.fastv_select import fastv_select_reference

PROBED = names("digits", "llava15_b1", "llava15_b8", "llava_next_b1", "qwen25vl_b1", "qwen25vl")


def rank(scores, image, keep):
    """All text, and the best of the image, in order."""
    best = scores.masked_fill(~image, -torch.inf).topk(keep, dim=1).indices
    stays = (~image).scatter(1, best, True)
    return stays.nonzero()[:, 1].view(len(image), -1).int()


def by_einsum(q, k, image, keep):
    return rank(one_row(q, k), image, keep)


def by_matrix(q, k, image, keep):
    return rank(matrix_then_row(q, k), image, keep)


def nearly_the_same(got, want):
    """In half precision near ties fall otherwise: 95 of 100 tokens must agree."""
    together = [len(set(a.tolist()) & set(b.tolist())) for a, b in zip(got, want)]
    assert sum(together) >= 0.95 * want.numel()


@pytest.mark.parametrize("provider", ["budgetprune", "eager composition", "torch.compile", "einsum and topk"])
@pytest.mark.parametrize("shape", PROBED)
def bench_fastv_select(bench, provider, shape, device):
    if provider == "eager composition" and shape == "qwen25vl":
        pytest.skip("the whole attention matrix takes 8 GB and more of each of several copies")
    skip_compiled(provider, shape, device, timed=("llava15_b1",))
    q, k = inputs(shape, device, text=True)
    s = SHAPES[shape]
    image = (torch.arange(k.shape[2], device=device) < s.N).expand(len(q), -1).contiguous()
    width = s.T + s.K

    def ours(q, k, image, keep):
        return fastv_select(q, k, image, keep, max_kept=width)[0]

    def reference(q, k, image, keep):
        return fastv_select_reference(q, k, image, None, keep, None, width, q.shape[-1] ** -0.5)[0]

    call = {"budgetprune": ours, "eager composition": by_matrix, "torch.compile": compiled(by_einsum),
            "einsum and topk": by_einsum}[provider]
    bench(provider, call, reference, (q, k, image, s.K), bytes_moved=k.nbytes, check=nearly_the_same)
