"""greedy_select against the loops of DivPrune and CDPruner: every kept token is a round of small tensor operations."""

import pytest
import torch
from shapes import SHAPES, names

from budgetprune.ops import cosine_similarity_matrix, greedy_select
from budgetprune.ops.greedy_select import greedy_select_reference

TIMED = names("llava15", "llava15_b1", "llava_next")
# The tightest budgets that both papers report: 64 of 576, 160 of 2880.
KEEP = {"llava15": 64, "llava15_b1": 64, "llava_next": 160}
MOST_ROWS = {"llava15": 8, "llava15_b1": 1, "llava_next": 2}
PROVIDERS = ["budgetprune", "published loop", "batched loop"]


def inputs(shape, device):
    s = SHAPES[shape].batch(MOST_ROWS[shape])
    torch.manual_seed(0)
    similarity = cosine_similarity_matrix(torch.randn(s.B, s.N, 1024, device=device))
    return similarity, torch.rand(s.B, s.N, device=device), KEEP[shape]


def divprune(similarity, keep):
    """As published, for one sample after the other: the rows of all tokens chosen so far, their least, the largest."""
    kept = []
    for sample in similarity:
        distance = 1 - sample
        chosen = torch.empty(keep, dtype=torch.long, device=sample.device)
        for step in range(keep):
            if step == 0:
                score = distance.topk(2, dim=0, largest=False).values[1]
            else:
                score = distance.index_select(0, chosen[:step]).amin(0)
            chosen[step] = score.argmax()
        kept.append(chosen.sort().values)
    return torch.stack(kept).int()


def farthest_batched(similarity, keep):
    """The same for all samples at once, and only the newest row is read."""
    distance = 1 - similarity
    sample = torch.arange(len(distance), device=distance.device)
    nearest, chosen = distance.topk(2, dim=1, largest=False).values[:, 1], []
    for step in range(keep):
        chosen.append(nearest.argmax(1))
        row = distance[sample, chosen[-1]]
        nearest = row if step == 0 else torch.minimum(nearest, row)
    return torch.stack(chosen, 1).sort(1).values.int()


def greedy_map(similarity, relevance, keep):
    """As published, all samples at once: the rows of the Cholesky factor by einsum over those made so far."""
    kernel = relevance[:, :, None] * similarity * relevance[:, None]
    sample = torch.arange(len(kernel), device=kernel.device)
    factor = torch.zeros(keep, *relevance.shape, dtype=kernel.dtype, device=kernel.device)
    variance, chosen = kernel.diagonal(dim1=1, dim2=2).clone(), []
    for step in range(keep):
        chosen.append(variance.argmax(1))
        newest = chosen[-1]
        done = torch.einsum("tb,tbn->bn", factor[:step, sample, newest], factor[:step])
        factor[step] = (kernel[sample, newest] - done) / variance[sample, newest].sqrt()[:, None]
        variance -= factor[step].square()
        variance[sample, newest] = -torch.inf
    return torch.stack(chosen, 1).sort(1).values.int()


def greedy_map_one_by_one(similarity, relevance, keep):
    return torch.cat([greedy_map(s[None], r[None], keep) for s, r in zip(similarity, relevance)])


def nearly_the_same(result, expected):
    """Another order of additions may decide a near tie otherwise: 99 of 100 tokens must agree."""
    kept, right = (rows.new_zeros(len(rows), int(expected.max()) + 2).scatter(1, rows.long(), 1)
                   for rows in (result.clamp(max=int(expected.max()) + 1), expected))
    assert (kept * right).sum() >= 0.99 * expected.numel()


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("shape", TIMED)
def bench_max_min(bench, provider, shape, device):
    similarity, _, keep = inputs(shape, device)
    call = {"budgetprune": greedy_select, "published loop": divprune, "batched loop": farthest_batched}[provider]
    bench(provider, call, lambda similarity, keep: greedy_select_reference(similarity, None, None, keep, "max_min"),
          (similarity, keep), bytes_moved=similarity.nbytes + similarity[:, :keep].nbytes, baseline="published loop")


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("shape", TIMED)
def bench_dpp(bench, provider, shape, device):
    similarity, relevance, keep = inputs(shape, device)
    call = {"budgetprune": lambda s, r, k: greedy_select(s, k, method="dpp", relevance=r),
            "published loop": greedy_map_one_by_one, "batched loop": greedy_map}[provider]
    rows = similarity[:, :keep].nbytes  # each kept token reads its row, and the rows of the factor before it
    bench(provider, call, lambda s, r, k: greedy_select_reference(s, r, None, k, "dpp"), (similarity, relevance, keep),
          bytes_moved=rows + rows * keep // 2, flops=similarity.shape[0] * similarity.shape[1] * keep * keep,
          baseline="published loop", check=nearly_the_same)
