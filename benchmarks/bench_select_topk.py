"""select_topk against torch.topk with the positions put back in order, which is what a pruner writes without it."""

import pytest
import torch
from baselines import compiled, flashinfer_topk, skip_compiled
from shapes import SHAPES, named_large, names

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


def same_set(result, expected):
    """topk alone gives positions in the order of their scores."""
    torch.testing.assert_close(result.sort(dim=1).values.int(), expected)


PROVIDERS = ["budgetprune", "eager composition", "torch.compile", "torch.topk alone", "flashinfer top_k alone"]


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", names("digits", "llava15", "llava15_b1", "llava15_b8", "llava15_b256",
                                         "llava15_k64", "llava15_k288", "llava_next", "qwen25vl", "video", "video_b64"))
def bench_select_topk(bench, provider, shape, dtype, device):
    named_large(shape, device)
    skip_compiled(provider, shape, device)
    s = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(s.B, s.N, generator=generator).argsort(dim=1).float()  # no ties
    if dtype == torch.bfloat16:  # only integers up to 256 are apart in bfloat16: those that are not kept share the 0
        if s.K > 256:
            pytest.skip("K scores have ties in bfloat16, which the eager composition breaks as it likes")
        scores = (scores - (s.N - s.K - 1)).clamp(min=0)
    scores = scores.to(device, dtype)
    check = torch.testing.assert_close
    if provider == "flashinfer top_k alone":
        top_k, check = flashinfer_topk(device), same_set
        call = lambda scores, keep: top_k(scores, keep)[1]  # noqa: E731
    elif provider == "torch.topk alone":
        call, check = (lambda scores, keep: scores.topk(keep, dim=1, sorted=False).indices), same_set
    else:
        call = {"budgetprune": select_topk, "eager composition": topk_then_sort,
                "torch.compile": compiled(topk_then_sort)}[provider]
    bench(provider, call, lambda scores, keep: select_topk_reference(scores, None, keep), (scores, s.K),
          bytes_moved=scores.nbytes + 4 * s.B * s.K, check=check)


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
