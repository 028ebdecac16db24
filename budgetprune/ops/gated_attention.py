"""Attention in which every key carries a gate: how a hard choice of tokens gets a gradient."""

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._checks import check_device, check_float, check_like
from ._native import provide

# Where exp(s_ij - lse_i) and 1 / g_j stop growing: see csrc/gated_attention.cuh.
CAP = 30.0


def _scores(q, k, mask, causal, scale):
    """float scores [B, H, Q, N] and which of them exist; float64 for float64."""
    kind = torch.float64 if q.dtype == torch.float64 else torch.float32
    Q, N, group = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    scores = (q.to(kind) * scale) @ k.to(kind).repeat_interleave(group, 1).transpose(-1, -2)
    seen = torch.ones(Q, N, dtype=torch.bool, device=q.device)
    if causal:
        seen = seen.tril(N - Q)
    return scores, seen if mask is None else seen & mask[:, None, None, :]


def gated_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, mask: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    scores, seen = _scores(q, k, mask, causal, scale)
    keeps = ~(gate <= 0) if mask is None else ~(gate <= 0) & mask
    kept = seen & keeps[:, None, None, :]
    biased = torch.where(kept, scores + gate.log()[:, None, None, :], -math.inf)
    values = v.to(scores.dtype).masked_fill(~keeps[:, None, :, None], 0)
    out = biased.softmax(-1).masked_fill(~kept, 0) @ values.repeat_interleave(q.shape[1] // v.shape[1], 1)
    return out.to(q.dtype), biased.logsumexp(-1)


def gated_attention_backward_reference(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, gate: Tensor, mask: Tensor | None, out: Tensor, lse: Tensor,
    causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scores, seen = _scores(q, k, mask, causal, scale)
    kind, group = scores.dtype, q.shape[1] // k.shape[1]
    keeps = (~(gate <= 0) if mask is None else ~(gate <= 0) & mask)[:, None, None, :]
    seen = seen & (lse != -math.inf)[..., None]  # a row without a kept key has no gradient
    bias = torch.where(keeps, gate.log()[:, None, None, :], 0)
    weight = torch.exp((scores + bias - lse[..., None]).clamp_max(CAP)).masked_fill(~seen, 0)
    grad, values = grad.to(kind), v.to(kind).repeat_interleave(group, 1)
    slope = grad @ values.transpose(-1, -2) - (grad * out.to(kind)).sum(-1, keepdim=True)
    inverse = torch.where(keeps, (1 / gate[:, None, None, :]).clamp_max(math.exp(CAP)), 1)
    # A kept key: the derivative. A dropped one: the secant to a gate of 1, what letting it in would change.
    worth = torch.where(keeps, weight * inverse, weight / (1 + weight))
    dgate = (worth * slope).masked_fill(~seen, 0).sum((1, 2))
    used = seen & keeps
    p, ds = weight.masked_fill(~used, 0), (weight * slope * scale).masked_fill(~used, 0)
    keys = k.to(kind).masked_fill(~keeps.transpose(-1, -2), 0)
    dq = ds @ keys.repeat_interleave(group, 1)
    dk = (ds.transpose(-1, -2) @ q.to(kind)).unflatten(1, (k.shape[1], group)).sum(2)
    dv = (p.transpose(-1, -2) @ grad).unflatten(1, (k.shape[1], group)).sum(2)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dgate


_op = provide(
    "gated_attention(Tensor q, Tensor k, Tensor v, Tensor gate, Tensor? mask, bool causal, float scale)"
    " -> (Tensor out, Tensor lse)", gated_attention_reference)
_backward = provide(
    "gated_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor gate, Tensor? mask, Tensor out,"
    " Tensor lse, bool causal, float scale) -> (Tensor dq, Tensor dk, Tensor dv, Tensor dgate)",
    gated_attention_backward_reference)


@torch.library.register_fake("budgetprune::gated_attention")
def _(q, k, v, gate, mask, causal, scale):
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=gate.dtype)


@torch.library.register_fake("budgetprune::gated_attention_backward")
def _(grad, q, k, v, gate, mask, out, lse, causal, scale):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), gate.new_empty(gate.shape)


class _GatedAttention(torch.autograd.Function):
    @staticmethod
    def forward(q, k, v, gate, mask, causal, scale):
        return _op(q, k, v, gate, mask, causal, scale)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.causal, ctx.scale = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors, *output)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        grads = _backward(grad, *ctx.saved_tensors, ctx.causal, ctx.scale)
        return *grads, None, None, None


def gated_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = True,
    scale: float | None = None,
) -> Tensor:
    """Attention with A_ij = g_j exp(s_ij) / sum_k g_k exp(s_ik): a gate of 0 removes key j, and still has a gradient.

    With gates of 0 and 1 the output is that of attention over the kept keys alone. The gradient of a gate is
    sum over h, i of w_ij (dO_i . v_j - dO_i . o_i) for every key that exists and is seen, lse_i = log sum_k
    g_k exp(s_ik): w_ij = exp(s_ij - lse_i), the derivative, for a kept key; for a dropped one
    w_ij = sigmoid(s_ij - lse_i), which makes each term dO_i . (what o_i would change by if key j were let in). Scores
    and 1 / g_j are capped at exp(30).

    Args:
        q: [B, H, Q, D] float32, float16, bfloat16 or float64.
        k, v: [B, Hkv, N, D], dtype of `q`; H is a multiple of Hkv.
        gate: [B, N] any of the four float dtypes, not negative (0 and below drop the key; NaN is not hidden).
        mask: [B, N] bool, True where the key exists; a key that does not has no gradient.
        causal: query i sees keys up to i + N - Q.
        scale: of q . k; D ** -0.5 if not given.

    Returns:
        [B, H, Q, D], dtype of `q`, contiguous. A row that sees no kept key gives 0 and no gradient.

    Raises:
        ValueError: a shape or device does not fit.
        TypeError: another dtype, or dtypes that differ.

    Sums are in float32 (float64 for float64); nothing of size [B, H, Q, N] is stored; every result is the same for
    any number of threads. Once differentiable. On CUDA D is at most 384.
    Source: DynamicViT (Rao et al. 2021), eq. 11. Departures: its eq. 10 lets a dropped token still see itself,
    here no query sees it; and a dropped key gets the secant from 0 to 1, not the derivative at 0, whose
    exp(s_ij - lse_i) has no bound: single dropped keys that outweigh all kept ones took over whole batches.
    """
    check_float("q", q, "B H Q D")
    check_float("k", k, "B Hkv N D")
    check_float("gate", gate, "B N")
    B, H, _, D = q.shape
    _, heads, N, _ = k.shape
    check_like("k", k, (B, heads, N, D), (q.dtype,), q.device)
    check_like("v", v, k.shape, (q.dtype,), q.device)
    if heads == 0 or H % heads:
        raise ValueError(f"q must have a multiple of k's Hkv={heads} heads, got H={H}")
    if tuple(gate.shape) != (B, N):
        raise ValueError(f"gate must have shape {[B, N]}, got {list(gate.shape)}")
    check_device("gate", gate, q.device)
    if mask is not None:
        check_like("mask", mask, (B, N), (torch.bool,), q.device)
    gate = gate.to(torch.float64 if q.dtype == torch.float64 else torch.float32)
    scale = float(max(D, 1)) ** -0.5 if scale is None else float(scale)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v, gate)):
        return _GatedAttention.apply(q, k, v, gate, mask, bool(causal), scale)[0]
    return _op(q, k, v, gate, mask, bool(causal), scale)[0]
