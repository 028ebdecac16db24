"""greedy_select on a GPU: the indices of the CPU, bit for bit; captured in a graph; beyond what shared memory holds."""

import pytest
import torch

from budgetprune.ops import cosine_similarity_matrix, greedy_select
from budgetprune.ops.greedy_select import METHODS

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("method", METHODS)
def test_greedy_select_keeps_on_a_gpu_what_it_keeps_on_the_cpu(method):
    generator = torch.Generator().manual_seed(0)
    for trial in range(100):
        batch, n = (int(torch.randint(1, top, (1,), generator=generator)) for top in (5, 700))
        dtype = (torch.float32, torch.float64)[trial % 2]
        x = torch.randn(batch, n, 24, generator=generator, dtype=dtype)
        x[0, n // 2:] = x[0, : n - n // 2].clone()
        similarity = cosine_similarity_matrix(x)
        if trial % 3 == 0:
            similarity = (similarity * 8).round() / 8
        counts = torch.randint(0, min(n, 90) + 1, (batch,), generator=generator, dtype=torch.int32)
        options = {"relevance": torch.rand(batch, n, generator=generator, dtype=dtype)} if method == "dpp" else {}
        on_gpu = {name: value.cuda() for name, value in options.items()}
        expected = greedy_select(similarity, counts, method=method, **options)
        assert torch.equal(greedy_select(similarity.cuda(), counts.cuda(), method=method, **on_gpu).cpu(), expected)


@pytest.mark.parametrize("n", [200, 13_200])  # dpp: one launch, and one per token
@pytest.mark.parametrize("method", METHODS)
def test_greedy_select_is_captured_in_a_graph(method, n):
    similarity = cosine_similarity_matrix(torch.randn(3, n, 64, device="cuda"))
    counts = torch.tensor([5, 20, 0], dtype=torch.int32, device="cuda")
    greedy_select(similarity, counts, method=method, max_keep=20)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = greedy_select(similarity, counts, method=method, max_keep=20)
    for _ in range(3):
        similarity.copy_(cosine_similarity_matrix(torch.randn(3, n, 64, device="cuda")))
        graph.replay()
        assert torch.equal(kept, greedy_select(similarity, counts, method=method, max_keep=20))


def test_dpp_keeps_on_a_gpu_what_it_keeps_on_the_cpu_where_the_factor_is_large():
    generator = torch.Generator().manual_seed(1)
    for n, keep in ((1024, 257), (1100, 1090), (2880, 640)):
        similarity = cosine_similarity_matrix(torch.randn(2, n, 1024, generator=generator))
        relevance, counts = torch.rand(2, n, generator=generator), torch.tensor([keep, keep // 3], dtype=torch.int32)
        expected = greedy_select(similarity, counts, method="dpp", relevance=relevance)
        kept = greedy_select(similarity.cuda(), counts.cuda(), method="dpp", relevance=relevance.cuda())
        assert torch.equal(kept.cpu(), expected)


@pytest.mark.parametrize("method", METHODS)
def test_greedy_select_takes_more_tokens_than_shared_memory_holds(method):
    similarity = cosine_similarity_matrix(torch.randn(1, 21_000, 32, device="cuda"))
    expected = greedy_select(similarity.cpu(), 40, method=method)
    assert torch.equal(greedy_select(similarity, 40, method=method).cpu(), expected)
