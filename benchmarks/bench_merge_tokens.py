"""merge_tokens against a product with the dense matrix, and against a loop over every kept token of every image."""

import pytest
import torch
from shapes import SHAPES, names

from budgetprune.ops import merge_tokens
from budgetprune.ops.merge_tokens import merge_tokens_reference
from budgetprune.plan import MergeLists

TIMED = names("digits", "llava15", "llava15_b1", "llava_next")
MOST_ROWS = {"digits": 64, "llava15": 8, "llava15_b1": 1, "llava_next": 2}
KEEP = {"digits": 12, "llava15": 64, "llava15_b1": 64, "llava_next": 160}
WIDTH = {"digits": 64}  # of the tower that PruMerge works in; else CLIP ViT-L's
NEIGHBOURS = 32


def features(shape, device):
    s = SHAPES[shape].batch(MOST_ROWS[shape])
    torch.manual_seed(0)
    return torch.randn(s.B, s.N, WIDTH.get(shape, 1024), device=device)


def neighbour_lists(x, keep):
    """PruMerge: a kept token, its 32 neighbours; and a last token of all that are dropped."""
    batch, tokens, _ = x.shape
    order = torch.rand(batch, keep + 1, tokens, device=x.device).argsort(2)
    kept = order[:, 0, :keep]
    near = torch.cat([kept[..., None], order[:, 1:, :NEIGHBOURS]], 2).flatten(1)
    index = torch.cat([near, order[:, 0, keep:]], 1).int()
    bounds = [(NEIGHBOURS + 1) * m for m in range(keep + 1)] + [index.shape[1]]
    offsets = torch.tensor(bounds, dtype=torch.int32, device=x.device).expand(batch, -1).contiguous()
    return MergeLists(offsets, index, torch.rand(index.shape, device=x.device) / NEIGHBOURS)


def pair_lists(x):
    """ToMe: of every two tokens the mean."""
    batch, tokens, _ = x.shape
    index = torch.rand(batch, tokens, device=x.device).argsort(1).int()
    offsets = torch.arange(0, tokens + 1, 2, dtype=torch.int32, device=x.device).expand(batch, -1).contiguous()
    return MergeLists(offsets, index, torch.full(index.shape, 0.5, device=x.device))


def loop_over_tokens(x, offsets, index, weight):
    """As published: one weighted sum after the other."""
    bounds, rows = offsets.tolist(), index.long()
    return torch.stack([torch.stack([(weight[b, start:end, None] * x[b, rows[b, start:end]]).sum(0)
                                     for start, end in zip(bounds[b], bounds[b][1:])]) for b in range(len(x))])


def scatter_mean(x, offsets, index, weight):
    """ToMe's merge_wavg: the sources are added to their destinations by scatter_reduce, then divided by the counts."""
    pairs = index.long().unflatten(1, (-1, 2))
    source, target = (x.gather(1, part[..., None].expand(-1, -1, x.shape[2])) for part in pairs.unbind(2))
    place = torch.arange(target.shape[1], device=x.device)[:, None].expand(*source.shape)
    return target.scatter_reduce(1, place, source, reduce="sum") / 2


def close(result, expected):
    torch.testing.assert_close(result, expected, atol=1e-3, rtol=1e-3)


def traffic(x, lists):
    """Bytes: each token read once, each output written once, and the lists."""
    return x.nbytes + lists.width * x[:, 0].nbytes + sum(part.nbytes for part in lists)


@pytest.mark.parametrize("provider", ["budgetprune", "dense matmul", "published loop"])
@pytest.mark.parametrize("shape", TIMED)
def bench_neighbours(bench, provider, shape, device):
    x = features(shape, device)
    lists = neighbour_lists(x, KEEP[shape])
    matrix = lists.dense(x.shape[1]) if provider == "dense matmul" else None
    call = {"budgetprune": merge_tokens, "dense matmul": lambda x, *_: matrix @ x,
            "published loop": loop_over_tokens}[provider]
    bench(provider, call, merge_tokens_reference, (x, *lists), bytes_moved=traffic(x, lists),
          flops=2 * lists.index.numel() * x.shape[2], baseline="dense matmul", check=close)


@pytest.mark.parametrize("provider", ["budgetprune", "dense matmul", "scatter mean"])
@pytest.mark.parametrize("shape", names("llava15", "llava_next"))
def bench_pairs(bench, provider, shape, device):
    x = features(shape, device)
    lists = pair_lists(x)
    matrix = lists.dense(x.shape[1]) if provider == "dense matmul" else None
    call = {"budgetprune": merge_tokens, "dense matmul": lambda x, *_: matrix @ x,
            "scatter mean": scatter_mean}[provider]
    bench(provider, call, merge_tokens_reference, (x, *lists), bytes_moved=traffic(x, lists),
          flops=2 * lists.index.numel() * x.shape[2], baseline="dense matmul", check=close)


@pytest.mark.parametrize("provider", ["budgetprune", "dense matmul"])
@pytest.mark.parametrize("shape", TIMED)
def bench_backward(bench, provider, shape, device):
    """The gradients of the tokens and of the weights, which the dense form has for every pair of tokens."""
    x = features(shape, device).requires_grad_()
    offsets, index, weight = neighbour_lists(x, KEEP[shape])
    weight.requires_grad_()
    if provider == "budgetprune":
        out, leaves = merge_tokens(x, offsets, index, weight), (x, weight)
    else:
        matrix = MergeLists(offsets, index, weight.detach()).dense(x.shape[1]).requires_grad_()
        out, leaves = matrix @ x, (x, matrix)
    grad = torch.randn_like(out)

    def backward(grad):
        return torch.autograd.grad(out, leaves, grad, retain_graph=True)

    def reference(grad):
        dense = MergeLists(offsets, index, weight.detach()).dense(x.shape[1])
        products = grad @ x.detach().transpose(1, 2)
        if provider == "dense matmul":
            return dense.transpose(1, 2) @ grad, products
        row = torch.searchsorted(offsets, torch.arange(index.shape[1], dtype=torch.int32, device=x.device)
                                 .repeat(len(x), 1), right=True) - 1
        return dense.transpose(1, 2) @ grad, products.flatten(1).gather(1, row * x.shape[1] + index)

    bench(provider, backward, reference, (grad,), baseline="dense matmul", check=close,
          bytes_moved=2 * x.nbytes + grad.nbytes, flops=4 * index.numel() * x.shape[2])
