"""gather_tokens: kept rows, positions, mask and cu_seqlens at once, and the gradient, against torch compositions."""

import pytest
import torch
from baselines import compiled, skip_compiled
from shapes import SHAPES, named_large, names

from budgetprune.ops import gather_tokens, select_topk
from budgetprune.ops.gather_tokens import gather_tokens_backward_reference, gather_tokens_reference

PRUNED = names("digits", "llava15", "llava15_b64", "clip_b8", "clip_b64", "llava_next")
MOST_ROWS = {"digits": 64, "llava15": 16, "clip_b8": 8, "llava_next": 4}  # the others at their own batch
PREFIX = 1  # a CLS token


def padded_by_gather(x, kept):
    mask = torch.nn.functional.pad(kept >= 0, (PREFIX, 0), value=True)
    rows = torch.nn.functional.pad(kept.clamp_min(-PREFIX) + PREFIX, (PREFIX, 0)) * mask
    tokens = x.gather(1, rows.long()[..., None].expand(-1, -1, x.shape[2])) * mask[..., None]
    return tokens, rows.int(), mask, torch.nn.functional.pad(mask.sum(1), (1, 0)).cumsum(0).int()


def padded(x, kept):
    return gather_tokens(x, kept, prefix=PREFIX)[:4]


def padded_reference(x, kept):
    return gather_tokens_reference(x, kept, None, PREFIX, False, 0)


def packed(x, kept, total):
    out = gather_tokens(x, kept, prefix=PREFIX, packed=True, total=total)
    return out.tokens, out.positions, out.cu_seqlens


def packed_reference(x, kept, total):
    tokens, positions, _, cu_seqlens = gather_tokens_reference(x, kept, None, PREFIX, True, total)
    return tokens, positions, cu_seqlens


def packed_by_mask(x, kept, total):
    """Boolean masks: the size of the result is read back from a GPU."""
    stays = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
    stays[:, :PREFIX] = True
    stays.scatter_(1, torch.where(kept >= 0, kept + PREFIX, 0).long(), True)
    return x[stays], stays.nonzero()[:, 1].int(), torch.nn.functional.pad(stays.sum(1), (1, 0)).cumsum(0).int()


def padded_by_index_select(x, kept):
    """All samples as one list of rows."""
    length = x.shape[1]
    mask = torch.nn.functional.pad(kept >= 0, (PREFIX, 0), value=True)
    rows = torch.nn.functional.pad(kept.clamp_min(-PREFIX) + PREFIX, (PREFIX, 0)) * mask
    flat = (rows + torch.arange(len(x), device=x.device)[:, None] * length).flatten()
    tokens = x.flatten(0, 1).index_select(0, flat).unflatten(0, rows.shape) * mask[..., None]
    return tokens, rows.int(), mask, torch.nn.functional.pad(mask.sum(1), (1, 0)).cumsum(0).int()


def packed_by_first_axis(x, kept, total):
    """As flash-attn's index_first_axis: an int64 index of every element, then a gather."""
    mask = torch.nn.functional.pad(kept >= 0, (PREFIX, 0), value=True)
    rows = torch.nn.functional.pad(kept.clamp_min(-PREFIX) + PREFIX, (PREFIX, 0)) * mask
    flat = (rows + torch.arange(len(x), device=x.device)[:, None] * x.shape[1])[mask].long()
    tokens = torch.gather(x.flatten(0, 1), 0, flat[:, None].repeat(1, x.shape[2]))
    return tokens, rows[mask].int(), torch.nn.functional.pad(mask.sum(1), (1, 0)).cumsum(0).int()


def zeros_and_scatter(grad, kept, rows):
    """The gradient as a fill and a scatter."""
    target = torch.nn.functional.pad(torch.where(kept >= 0, kept + PREFIX, rows), (PREFIX, 0)).long()
    target[:, :PREFIX] = torch.arange(PREFIX, device=grad.device)
    dx = grad.new_zeros(len(grad), rows + 1, grad.shape[2])
    return dx.scatter_(1, target[..., None].expand_as(grad), grad)[:, :rows]


def inputs(shape, device):
    """Counts per sample from K/2 to K."""
    named_large(shape, device)
    s = SHAPES[shape].batch(MOST_ROWS.get(shape, SHAPES[shape].B))
    torch.manual_seed(0)
    x = torch.randn(s.B, PREFIX + s.N, s.C, device=device, dtype=torch.float32 if device == "cpu" else torch.bfloat16)
    counts = torch.randint(s.K // 2, s.K + 1, (s.B,), dtype=torch.int32, device=device)
    return x, select_topk(torch.rand(s.B, s.N, device=device), counts, max_keep=s.K)


@pytest.mark.parametrize("provider", ["budgetprune", "eager composition", "torch.compile", "index_select"])
@pytest.mark.parametrize("shape", PRUNED)
def bench_padded(bench, provider, shape, device):
    skip_compiled(provider, shape, device, timed=("digits",))
    x, kept = inputs(shape, device)
    bytes_moved = ((kept >= 0).sum().item() + kept.numel() + 2 * PREFIX * len(x)) * x.shape[2] * x.element_size()
    call = {"budgetprune": padded, "eager composition": padded_by_gather, "torch.compile": compiled(padded_by_gather),
            "index_select": padded_by_index_select}[provider]
    bench(provider, call, padded_reference, (x, kept), bytes_moved=bytes_moved)


@pytest.mark.parametrize("provider", ["budgetprune", "eager composition", "index_first_axis"])
@pytest.mark.parametrize("shape", PRUNED)
def bench_packed(bench, provider, shape, device):
    x, kept = inputs(shape, device)
    total = PREFIX * len(x) + (kept >= 0).sum().item()
    bench(provider, {"budgetprune": packed, "eager composition": packed_by_mask,
                     "index_first_axis": packed_by_first_axis}[provider], packed_reference,
          (x, kept, total), bytes_moved=2 * total * x.shape[2] * x.element_size())


@pytest.mark.parametrize("provider", ["budgetprune", "eager composition", "zeros and scatter"])
@pytest.mark.parametrize("shape", PRUNED)
def bench_backward(bench, provider, shape, device):
    x, kept = inputs(shape, device)
    x.requires_grad_()
    forward = padded_by_gather if provider == "eager composition" else padded
    tokens, *_, cu_seqlens = forward(x, kept)
    grad = torch.randn_like(tokens)

    def backward(grad):
        if provider == "zeros and scatter":
            return zeros_and_scatter(grad, kept, x.shape[1])
        return torch.autograd.grad(tokens, x, grad, retain_graph=True)[0]

    def reference(grad):
        return gather_tokens_backward_reference(grad, kept, cu_seqlens, PREFIX, x.shape[1], False)

    bytes_moved = ((kept >= 0).sum().item() + PREFIX * len(x)) * x.shape[2] * x.element_size() + x.nbytes
    bench(provider, backward, reference, (grad,), bytes_moved=bytes_moved)
