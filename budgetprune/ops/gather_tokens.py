"""The rows of x at the kept positions, and what attention asks of them: positions, mask, cu_seqlens."""

import inspect
from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import FLOATS, check_float, check_like
from ._native import provide


class Gathered(NamedTuple):
    """What gather_tokens gives: S = P + Kmax rows per sample when padded, the sum of all lengths when packed."""

    tokens: Tensor  # [B, S, C], padding 0; packed [sum, C]
    positions: Tensor  # int32 [B, S], padding 0; packed [sum]: the row of x each token came from
    mask: Tensor | None  # bool [B, S], True where a token is; None when packed
    cu_seqlens: Tensor  # int32 [B + 1]: where each sample begins when packed
    max_length: int  # S


def _gated(x, gate, prefix):
    """x times the gate, in the gate's precision; the prefix as it is."""
    full = torch.nn.functional.pad(gate, (prefix, 0), value=1.0)
    return (x.to(gate.dtype) * full[..., None]).to(x.dtype)


def gather_tokens_reference(
    x: Tensor, kept: Tensor, gate: Tensor | None, prefix: int, packed: bool, total: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = x if gate is None else _gated(x, gate, prefix)
    first = torch.arange(prefix, dtype=torch.int32, device=x.device).expand(x.shape[0], -1)
    rows = torch.cat([first, torch.where(kept >= 0, kept + prefix, -1)], 1)
    mask = rows >= 0
    positions = rows.clamp_min(0)
    cu_seqlens = torch.nn.functional.pad(mask.sum(1), (1, 0)).cumsum(0).int()
    if packed:
        tokens = x[mask.nonzero()[:, 0], positions[mask].long()]
        if tokens.shape[0] != total:
            raise RuntimeError(f"gather_tokens: total must be the number of tokens, {tokens.shape[0]}, got {total}")
        return tokens, positions[mask], mask.new_empty(0), cu_seqlens
    if x.shape[1] == 0:  # nothing to index, so nothing is kept
        return x.new_zeros(*rows.shape, x.shape[2]), positions, mask, cu_seqlens
    tokens = x.gather(1, positions.long()[..., None].expand(-1, -1, x.shape[2]))
    return tokens.masked_fill(~mask[..., None], 0), positions, mask, cu_seqlens


def gather_tokens_backward_reference(
    grad: Tensor, kept: Tensor, cu_seqlens: Tensor, prefix: int, rows: int, packed: bool
) -> Tensor:
    first = torch.arange(prefix, device=grad.device).expand(kept.shape[0], -1)
    target = torch.cat([first, torch.where(kept >= 0, kept.long() + prefix, rows)], 1)  # padding: a row cut off below
    exists = target < rows
    if packed:
        grad = grad.new_zeros(*target.shape, grad.shape[1]).masked_scatter(exists[..., None], grad)
    dx = grad.new_zeros(kept.shape[0], rows + 1, grad.shape[2])
    return dx.scatter(1, target[..., None].expand_as(grad), grad)[:, :rows].contiguous()


def gather_tokens_gated_backward_reference(
    grad: Tensor, x: Tensor, kept: Tensor, gate: Tensor, cu_seqlens: Tensor, prefix: int, packed: bool
) -> tuple[Tensor, Tensor]:
    rows = gather_tokens_backward_reference(grad, kept, cu_seqlens, prefix, x.shape[1], packed)
    dgate = (rows.to(gate.dtype) * x.to(gate.dtype)).sum(2)[:, prefix:].contiguous()
    return _gated(rows, gate, prefix), dgate


_op = provide("gather_tokens(Tensor x, Tensor kept, Tensor? gate, int prefix, bool packed, SymInt total)"
              " -> (Tensor tokens, Tensor positions, Tensor mask, Tensor cu_seqlens)", gather_tokens_reference)
_backward = provide("gather_tokens_backward(Tensor grad, Tensor kept, Tensor cu_seqlens, int prefix, SymInt rows,"
                    " bool packed) -> Tensor", gather_tokens_backward_reference)
_gated_backward = provide("gather_tokens_gated_backward(Tensor grad, Tensor x, Tensor kept, Tensor gate, "
                          "Tensor cu_seqlens, int prefix, bool packed) -> (Tensor dx, Tensor dgate)",
                          gather_tokens_gated_backward_reference)


@torch.library.register_fake("budgetprune::gather_tokens")
def _(x, kept, gate, prefix, packed, total):
    shape = (total,) if packed else (x.shape[0], prefix + kept.shape[1])
    mask = (0,) if packed else shape
    return (x.new_empty((*shape, x.shape[2])), kept.new_empty(shape), kept.new_empty(mask, dtype=torch.bool),
            kept.new_empty((x.shape[0] + 1,)))


@torch.library.register_fake("budgetprune::gather_tokens_backward")
def _(grad, kept, cu_seqlens, prefix, rows, packed):
    return grad.new_empty((kept.shape[0], rows, grad.shape[-1]))


@torch.library.register_fake("budgetprune::gather_tokens_gated_backward")
def _(grad, x, kept, gate, cu_seqlens, prefix, packed):
    return x.new_empty(x.shape), gate.new_empty(gate.shape)


def _batched(info, tensor, dim):
    """[V, ...] from a tensor that vmap maps over `dim`, or that all maps share."""
    return tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


@torch.library.register_vmap("budgetprune::gather_tokens")
def _(info, dims, x, kept, gate, prefix, packed, total):
    if packed:
        raise NotImplementedError("gather_tokens: packed tokens have no vmap, their lengths differ; gather padded")
    x, kept = _batched(info, x, dims[0]), _batched(info, kept, dims[1])
    if gate is not None:
        gate = _batched(info, gate, dims[2]).flatten(0, 1)
    *outputs, cu_seqlens = _op(x.flatten(0, 1), kept.flatten(0, 1), gate, prefix, False, 0)
    outputs = [t.unflatten(0, x.shape[:2]) for t in outputs]
    starts = torch.arange(info.batch_size, device=x.device)[:, None] * x.shape[1]
    cu_seqlens = cu_seqlens[starts + torch.arange(x.shape[1] + 1, device=x.device)] - cu_seqlens[starts]
    return (*outputs, cu_seqlens), (0, 0, 0, 0)


@torch.library.register_vmap("budgetprune::gather_tokens_backward")
def _(info, dims, grad, kept, cu_seqlens, prefix, rows, packed):
    if packed:
        raise NotImplementedError("gather_tokens: packed tokens have no vmap, their lengths differ; gather padded")
    grad, kept = _batched(info, grad, dims[0]), _batched(info, kept, dims[1])
    unused = kept.new_zeros(kept.shape[0] * kept.shape[1] + 1)  # padded gradients need no starts
    dx = _backward(grad.flatten(0, 1), kept.flatten(0, 1), unused, prefix, rows, False)
    return dx.unflatten(0, kept.shape[:2]), 0


@torch.library.register_vmap("budgetprune::gather_tokens_gated_backward")
def _(info, dims, grad, x, kept, gate, cu_seqlens, prefix, packed):
    if packed:
        raise NotImplementedError("gather_tokens: packed tokens have no vmap, their lengths differ; gather padded")
    grad, x, kept, gate = (_batched(info, t, d).flatten(0, 1) for t, d in zip((grad, x, kept, gate), dims))
    unused = kept.new_zeros(kept.shape[0] + 1)  # padded gradients need no starts
    out = _gated_backward(grad, x, kept, gate, unused, prefix, False)
    return tuple(t.unflatten(0, (info.batch_size, -1)) for t in out), (0, 0)


class _GatherTokens(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, kept, prefix, packed, total):
        return _op(x, kept, None, prefix, packed, total)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, kept, *ctx.rest = inputs
        ctx.rows = x.shape[1]
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(kept, output[3])

    @staticmethod
    def backward(ctx, grad, *_):
        return _ScatterTokens.apply(grad, *ctx.saved_tensors, ctx.rows, *ctx.rest), None, None, None, None


class _ScatterTokens(torch.autograd.Function):
    """The backward as a function of the gradient, whose own backward is the gather again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad, kept, cu_seqlens, rows, prefix, packed, total):
        return _backward(grad, kept, cu_seqlens, prefix, rows, packed)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, kept, _, _, *ctx.rest = inputs
        ctx.save_for_backward(kept)

    @staticmethod
    def backward(ctx, grad):
        return _GatherTokens.apply(grad, *ctx.saved_tensors, *ctx.rest)[0], None, None, None, None, None, None


class _GatherGated(torch.autograd.Function):
    """The gather times a gate, differentiable once."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, kept, gate, prefix, packed, total):
        return _op(x, kept, gate, prefix, packed, total)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, kept, gate, ctx.prefix, ctx.packed, _ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(x, kept, gate, output[3])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, *_):
        x, kept, gate, cu_seqlens = ctx.saved_tensors
        dx, dgate = _gated_backward(grad, x, kept, gate, cu_seqlens, ctx.prefix, ctx.packed)
        return dx, None, dgate, None, None, None


# apply() asks for the signature in every call, which takes longer than a small gather; here it is kept.
for _function in (_GatherTokens, _ScatterTokens, _GatherGated):
    _function.forward.__signature__ = inspect.signature(_function.forward)


def gather_tokens(
    x: Tensor, kept: Tensor, *, gate: Tensor | None = None, prefix: int = 0, packed: bool = False,
    total: int | None = None
) -> Gathered:
    """The first P rows and the kept rows of each sample, padded or packed, with positions, mask and cu_seqlens.

    Args:
        x: [B, P + N, C], any dtype and strides.
        kept: [B, Kmax] int32, strictly ascending, counted after the prefix, padded with -1 at the end; as select_topk
            and gumbel_topk give it.
        gate: [B, N] float or None. Each kept token is multiplied by its gate, as features are gated straight-through;
            the prefix is not. Rounded once, from float32 (float64 for float64 x, which must be floating then).
        prefix: P, rows that always stay, such as a CLS token.
        packed: False: tokens [B, P + Kmax, C], padding rows 0. True: tokens [sum, C] without padding, for variable
            length attention by cu_seqlens and max_length.
        total: the packed size where the host knows it, P * B + sum of counts; without it a kept Tensor on a GPU is
            read back once, and torch.compile cannot take the graph whole.

    Returns:
        Gathered(tokens, positions, mask, cu_seqlens, max_length).

    Raises:
        ValueError: a shape, `prefix` or device does not fit, or `total` without `packed`.
        TypeError: `x` is no Tensor, or `kept` is not int32.
        RuntimeError: on the CPU, a position outside [0, N), not ascending, or after padding; or a wrong `total`.
            On a GPU positions are clamped and a wrong `total` cuts off or pads: memory stays safe, tokens may be wrong.

    Gradient for float `x`, any order: each row of dX is written once, by the inverse map, with no zero fill before.
    With `gate`, first order: dX = gate dY, and dgate is dY . x of a kept token, 0 of a dropped one, in the same pass.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a Tensor, got {type(x).__name__}")
    if x.dim() != 3:
        raise ValueError(f"x must be [B, P + N, C], got shape {list(x.shape)}")
    if not isinstance(kept, Tensor):
        raise TypeError(f"kept must be a Tensor, got {type(kept).__name__}")
    if kept.dim() != 2:
        raise ValueError(f"kept must be [B, Kmax], got shape {list(kept.shape)}")
    check_like("kept", kept, (x.shape[0], kept.shape[1]), (torch.int32,), x.device)
    if prefix < 0 or prefix > x.shape[1]:
        raise ValueError(f"prefix must be in [0, P + N={x.shape[1]}], got {prefix}")
    if total is not None and not packed:
        raise ValueError(f"total must be None unless packed, got {total}")
    if packed and total is None:
        total = x.shape[0] * prefix + int((kept >= 0).sum())
    rest = (prefix, bool(packed), total or 0)
    if gate is not None:
        check_float("x", x, "B P+N C")
        check_like("gate", gate, (x.shape[0], x.shape[1] - prefix), FLOATS, x.device)
        gate = gate.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    if torch.is_grad_enabled() and (x.requires_grad or (gate is not None and gate.requires_grad)):
        outputs = _GatherTokens.apply(x, kept, *rest) if gate is None else _GatherGated.apply(x, kept, gate, *rest)
    else:
        outputs = _op(x, kept, gate, *rest)
    tokens, positions, mask, cu_seqlens = outputs
    return Gathered(tokens, positions, None if packed else mask, cu_seqlens, prefix + kept.shape[1])
