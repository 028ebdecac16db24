"""Weighted sums of tokens, each output token over its own list."""

import torch
from torch import Tensor

from ._checks import check_device, check_float, check_like
from ._native import provide


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _list_of(offsets: Tensor, entries: int) -> Tensor:
    """[B, E] int64, the list that holds each entry; M where none does."""
    at = torch.arange(entries, dtype=offsets.dtype, device=offsets.device).repeat(len(offsets), 1)
    found = torch.searchsorted(offsets.contiguous(), at, right=True) - 1
    return torch.where(found < 0, offsets.shape[1] - 1, found)


def _used(offsets: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(used [B, E] bool, list [B, E], token [B, E]), the latter two 0 where an entry is not used."""
    lists = _list_of(offsets, index.shape[1])
    used = (lists < offsets.shape[1] - 1) & (index >= 0)
    return used, lists.masked_fill(~used, 0), index.long().masked_fill(~used, 0)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


def merge_tokens_reference(x: Tensor, offsets: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    used, lists, tokens = _used(offsets, index)
    out = weight.new_zeros(x.shape[0], offsets.shape[1] - 1, x.shape[2])
    if x.numel() == 0 or out.numel() == 0:
        return out.to(x.dtype)
    entries = (weight[..., None] * _rows(x, tokens)).masked_fill(~used[..., None], 0)
    return out.scatter_add(1, lists[..., None].expand_as(entries), entries).to(x.dtype)


def merge_dots_reference(grad: Tensor, x: Tensor, offsets: Tensor, index: Tensor) -> Tensor:
    used, lists, tokens = _used(offsets, index)
    if x.numel() == 0 or grad.numel() == 0:
        return x.new_zeros(index.shape, dtype=_sum_dtype(x))
    dots = (_rows(grad, lists).to(_sum_dtype(x)) * _rows(x, tokens)).sum(2)
    return dots.masked_fill(~used, 0)


def merge_transpose_reference(offsets: Tensor, index: Tensor, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    used, lists, _ = _used(offsets, index)
    token = torch.where(used, index, tokens)
    order = token.sort(dim=1, stable=True).indices
    count = token.new_zeros(len(token), tokens + 1, dtype=torch.int64)
    count = count.scatter_add(1, token.long(), torch.ones_like(token, dtype=torch.int64))[:, :tokens]
    to_offsets = torch.nn.functional.pad(count.cumsum(1), (1, 0))
    unused = ~used.gather(1, order)
    return (to_offsets.int(), lists.gather(1, order).masked_fill(unused, -1).int(),
            order.masked_fill(unused, 0).int())


_op = provide("merge_tokens(Tensor x, Tensor offsets, Tensor index, Tensor weight) -> Tensor", merge_tokens_reference)
_dots = provide("merge_dots(Tensor grad, Tensor x, Tensor offsets, Tensor index) -> Tensor", merge_dots_reference)
_transpose = provide("merge_transpose(Tensor offsets, Tensor index, SymInt tokens)"
                     " -> (Tensor to_offsets, Tensor to_index, Tensor to_entry)", merge_transpose_reference)


@torch.library.register_fake("budgetprune::merge_tokens")
def _(x, offsets, index, weight):
    return x.new_empty((x.shape[0], offsets.shape[1] - 1, x.shape[2]))


@torch.library.register_fake("budgetprune::merge_dots")
def _(grad, x, offsets, index):
    return x.new_empty(index.shape, dtype=_sum_dtype(x))


@torch.library.register_fake("budgetprune::merge_transpose")
def _(offsets, index, tokens):
    return offsets.new_empty((offsets.shape[0], tokens + 1)), index.new_empty(index.shape), index.new_empty(index.shape)


def _vmap(op):
    """A vmapped batch of batches is one batch."""
    def rule(info, dims, *args):
        def flat(arg, dim):
            if not isinstance(arg, Tensor):
                return arg
            moved = arg.expand(info.batch_size, *arg.shape) if dim is None else arg.movedim(dim, 0)
            return moved.flatten(0, 1)

        flattened = [flat(arg, dim) for arg, dim in zip(args, dims)]
        shape = (info.batch_size, flattened[0].shape[0] // info.batch_size)
        out = op(*flattened)
        if isinstance(out, Tensor):
            return out.unflatten(0, shape), 0
        return tuple(t.unflatten(0, shape) for t in out), (0,) * len(out)

    return rule


for _name, _each in (("merge_tokens", _op), ("merge_dots", _dots), ("merge_transpose", _transpose)):
    torch.library.register_vmap(f"budgetprune::{_name}", _vmap(_each))


class _Merge(torch.autograd.Function):
    """out[m] = sum of weight[e] x[index[e]] over list m. Its gradient for x is the merge by the transposed lists."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, offsets, index):
        return _op(x, offsets, index, weight)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        x, weight, offsets, index = ctx.saved_tensors
        dx = _merge_back(grad, weight, offsets, index, x.shape[1]) if ctx.needs_input_grad[0] else None
        dweight = _Dots.apply(grad, x, offsets, index) if ctx.needs_input_grad[1] else None
        return dx, dweight, None, None


class _Dots(torch.autograd.Function):
    """dots[e] = <grad[list of e], x[index[e]]>, linear in both: its gradients are merges."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad, x, offsets, index):
        return _dots(grad, x, offsets, index)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, upstream):
        grad, x, offsets, index = ctx.saved_tensors
        dgrad = _Merge.apply(x, upstream, offsets, index) if ctx.needs_input_grad[0] else None
        dx = _merge_back(grad, upstream, offsets, index, x.shape[1]) if ctx.needs_input_grad[1] else None
        return dgrad, dx, None, None


def _merge_back(grad: Tensor, weight: Tensor, offsets: Tensor, index: Tensor, tokens: int) -> Tensor:
    """[B, N, C]: each token's sum of weight[e] grad[list of e] over the entries e that take it, in their order."""
    to_offsets, to_index, to_entry = _transpose(offsets, index, tokens)
    return _Merge.apply(grad, weight.gather(1, to_entry.long()), to_offsets, to_index)


def merge_tokens(x: Tensor, offsets: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Output token m of a sample is the sum of weight[e] x[index[e]] over its list, entries offsets[m] to offsets[m+1].

    Lists may have any lengths: PruMerge's kept tokens take 32 neighbours each and its last token all that are dropped;
    ToMe's averages take two or three. An empty list gives zeros. An entry that no list holds, or of index -1, counts
    for nothing, so that samples with fewer entries are padded.

    Args:
        x: [B, N, C] float32, float16, bfloat16 or float64, any strides.
        offsets: [B, M + 1] int32, ascending within [0, E].
        index: [B, E] int32, positions in [0, N), in any order and as often as wanted; or -1.
        weight: [B, E] of any float dtype; used in float32, or in float64 with a float64 `x`.

    Returns:
        [B, M, C] of the dtype of `x`, summed in float32 (float64 with a float64 `x`), always in the same order.

    Raises:
        ValueError: a shape or a device does not fit.
        TypeError: another dtype.
        RuntimeError: on the CPU, offsets that do not ascend within [0, E] or an index outside [-1, N). On a GPU such
            offsets are clamped and such entries passed over: memory stays safe, tokens may be wrong.

    Gradient for `x` and `weight`, any order. dX is the merge of the gradient by the transposed lists, each row written
    once in a fixed order, without atomics; dW are dot products of rows.
    Sources: Shang et al., LLaVA-PruMerge, 2024; Bolya et al., Token Merging, ICLR 2023 (merge_wavg).
    """
    check_float("x", x, "B N C")
    for name, tensor, size, least in (("offsets", offsets, "M + 1", 1), ("index", index, "E", 0)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
        if tensor.dim() != 2 or tensor.shape[1] < least:
            raise ValueError(f"{name} must be [B, {size}], got shape {list(tensor.shape)}")
        check_like(name, tensor, (x.shape[0], tensor.shape[1]), (torch.int32,), x.device)
    check_float("weight", weight, "B E")
    if weight.shape != index.shape:
        raise ValueError(f"weight must have shape {list(index.shape)}, got {list(weight.shape)}")
    check_device("weight", weight, x.device)
    weight = weight.to(_sum_dtype(x))
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _Merge.apply(x, weight, offsets, index)
    return _op(x, offsets, index, weight)
