"""merge_tokens on a GPU: what the CPU says, the same bits in every run, captured in a graph, safe with bad lists."""

import pytest
import torch
from test_merge_tokens import FLOATS, SHAPES, case, ints

from budgetprune.ops import merge_tokens
from budgetprune.ops.merge_tokens import _transpose

pytestmark = pytest.mark.cuda
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}


def with_gradients(device, x, offsets, index, weight):
    x, weight = x.to(device).requires_grad_(), weight.to(device).requires_grad_()
    out = merge_tokens(x, offsets.to(device), index.to(device), weight)
    return out, *torch.autograd.grad(out, (x, weight), torch.ones_like(out))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [*SHAPES, (3, 576, 1024, 65, 2700), (2, 577, 31, 300, 600)], ids=str)
def test_merge_tokens_is_the_same_on_a_gpu(shape, dtype):
    arguments = case(*shape, dtype)
    for cpu, gpu in zip(with_gradients("cpu", *arguments), with_gradients("cuda", *arguments)):
        torch.testing.assert_close(gpu.cpu(), cpu, atol=8 * TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    lists = _transpose(arguments[1], arguments[2], shape[1])
    assert all(torch.equal(a.cpu(), b) for a, b in zip(_transpose(arguments[1].cuda(), arguments[2].cuda(), shape[1]),
                                                       lists))


def test_merge_tokens_is_the_same_in_every_run_on_a_gpu():
    arguments = case(4, 500, 512, 40, 3000, torch.bfloat16)
    first = with_gradients("cuda", *arguments)
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, with_gradients("cuda", *arguments)))


def test_merge_tokens_is_captured_in_a_graph():
    x, offsets, index, weight = (t.cuda() for t in case(2, 100, 64, 12, 300))
    merge_tokens(x, offsets, index, weight)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = merge_tokens(x, offsets, index, weight)
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(out, merge_tokens(x, offsets, index, weight))


def test_bad_lists_read_nothing_outside_on_a_gpu():
    """Offsets are clamped to [0, E], and an index outside [0, N) is no token."""
    x = torch.tensor([[[1.0], [2], [3]]], device="cuda")
    offsets, index = ints([-5, 2, 90]).cuda(), ints([0, 7, 1, -9]).cuda()
    assert merge_tokens(x, offsets, index, torch.ones(1, 4, device="cuda")).flatten().tolist() == [1, 2]
    x.requires_grad_()
    merge_tokens(x, offsets, index, torch.ones(1, 4, device="cuda")).sum().backward()
    assert x.grad.flatten().tolist() == [1, 1, 0]
