"""select_topk against torch.topk with the positions put back in order, which is what a pruner writes without it."""

import pytest
import torch
from shapes import SHAPES, names

from budgetprune.ops import select_topk
from budgetprune.ops.select_topk import select_topk_reference


def topk_then_sort(scores, keep):
    """The eager composition for one count per batch."""
    return scores.topk(keep, dim=1, sorted=False).indices.sort(dim=1).values.int()


def ragged_topk_then_sort(scores, counts, longest):
    """The eager composition for one count per row: topk of the largest, cut, then order."""
    ranked = scores.topk(longest, dim=1).indices
    beyond = torch.arange(longest, device=scores.device) >= counts[:, None]
    kept = ranked.masked_fill(beyond, scores.shape[1]).sort(dim=1).values
    return kept.masked_fill(kept == scores.shape[1], -1).int()


@pytest.mark.parametrize("provider", ["budgetprune", "eager composition"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", names("digits", "llava15", "llava15_b1", "llava_next", "qwen25vl", "video"))
def bench_select_topk(bench, provider, shape, dtype, device):
    s = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(s.B, s.N, generator=generator).argsort(dim=1).float()  # no ties
    if dtype == torch.bfloat16:  # only integers up to 256 are apart in bfloat16: those that are not kept share the 0
        if s.K > 256:
            pytest.skip("K scores have ties in bfloat16, which the eager composition breaks as it likes")
        scores = (scores - (s.N - s.K - 1)).clamp(min=0)
    scores = scores.to(device, dtype)
    call = {"budgetprune": select_topk, "eager composition": topk_then_sort}[provider]
    bench(provider, call, lambda scores, keep: select_topk_reference(scores, None, keep), (scores, s.K),
          bytes_moved=scores.nbytes + 4 * s.B * s.K)


@pytest.mark.parametrize("provider", ["budgetprune", "eager composition"])
@pytest.mark.parametrize("shape", names("llava15", "qwen25vl"))
def bench_ragged(bench, provider, shape, device):
    s = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(s.B, s.N, generator=generator).argsort(dim=1).float().to(device)
    counts = torch.randint(1, s.K + 1, (s.B,), generator=generator, dtype=torch.int32).to(device)
    call = {"budgetprune": lambda scores, counts, longest: select_topk(scores, counts, max_keep=longest),
            "eager composition": ragged_topk_then_sort}[provider]
    bench(provider, call, select_topk_reference, (scores, counts, s.K),
          bytes_moved=scores.nbytes + 4 * int(counts.sum()))
