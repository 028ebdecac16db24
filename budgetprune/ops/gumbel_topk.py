"""Keeps the tokens whose noisy logits are highest, with a gradient through the choice."""

import inspect
import math

import torch
from torch import Tensor

from ._checks import check_device, check_float, check_keep
from ._native import provide
from ._noise_reference import noise_reference
from .select_topk import select_topk_reference

ESTIMATORS = ("race", "fermi", "softmax")
NOISES = ("gumbel", "logistic", "none")


def _flushed(x):
    return torch.where(x.abs() < 2.0**-126, torch.zeros_like(x), x) if x.dtype == torch.float32 else x


def _theta(logits, tau):
    return _flushed(_flushed(logits) / torch.full((1,), tau, dtype=logits.dtype, device=logits.device))


def _inclusion(theta, center, offset, estimator):
    """s and ds/dtheta at nu = offset - center, in float64. race: 1 - exp(-exp(x)); fermi: sigmoid(x)."""
    x = theta.double() - center[:, None].double() + offset[:, None].double()
    if estimator == "race":
        rate = x.clamp(max=7).exp()
        return -torch.expm1(-rate), rate * torch.exp(-rate)
    s = torch.sigmoid(x)
    return s, s * torch.sigmoid(-x)


def _stats_reference(logits, z, counts, noise, tau, estimator):
    exact = logits if logits.dtype == torch.float64 else logits.float()
    if estimator == "softmax":
        noisy = exact + noise
        shift = noisy.amax(dim=1) if noisy.shape[1] else noisy.new_zeros(len(noisy))
        return torch.stack([shift, ((noisy - shift[:, None]) / tau).exp().sum(dim=1)], dim=1)
    theta = _theta(exact, tau)
    descending = torch.nn.functional.pad(z.sort(dim=1, descending=True).values, (0, 1))
    kth = descending.gather(1, (counts.long() - 1).clamp(min=0)[:, None])[:, 0]
    fixed = (counts <= 0) | ((z != -math.inf).sum(dim=1) <= counts) | ~kth.isfinite()
    center = torch.where(fixed, torch.zeros_like(kth), kth).to(exact.dtype)
    low, high = (torch.full((len(z),), end, dtype=torch.float64, device=z.device) for end in (-60.0, 60.0))
    for _ in range(64):
        offset = (low + high) / 2
        short = _inclusion(theta, center, offset, estimator)[0].sum(dim=1) < counts
        low, high = torch.where(short, offset, low), torch.where(short, high, offset)
    offset = torch.where(fixed, torch.where(counts <= 0, -math.inf, math.inf), offset)
    offset = torch.where(z.isnan().any(dim=1), math.nan, offset)
    return torch.stack([center, offset.to(exact.dtype)], dim=1)


def gumbel_topk_reference(logits, keep, max_keep, key, tau, estimator, noise, with_stats):
    batch, tokens = logits.shape
    drawn = noise_reference(key, batch, tokens, noise, logits.device)
    z = _theta(logits.float(), 1.0 if estimator == "softmax" else tau) + drawn
    counts = torch.full((batch,), max_keep, dtype=torch.int32, device=logits.device) if keep is None else keep
    kept = select_topk_reference(z, keep, max_keep)
    gate = logits.new_zeros(batch, tokens + 1).scatter(1, torch.where(kept < 0, tokens, kept).long(), 1)[:, :tokens]
    if with_stats:
        stats = _stats_reference(logits, z, counts, drawn, tau, estimator)
    else:
        stats = logits.new_empty((batch, 0), dtype=_stats_dtype(logits))
    return gate.contiguous(), kept, stats


def gumbel_topk_backward_reference(grad, logits, key, stats, tau, estimator, noise):
    first, second = stats.unbind(1)
    if estimator == "softmax":
        drawn = noise_reference(key, *logits.shape, noise, logits.device)
        noisy = (logits if logits.dtype == torch.float64 else logits.float()) + drawn
        weight = ((noisy.double() - first[:, None]) / tau).exp() / second[:, None].double()
        mean = (weight * grad).sum(dim=1)
    else:
        exact = logits if logits.dtype == torch.float64 else logits.float()
        weight = _inclusion(_theta(exact, tau), first, second, estimator)[1]
        weight = torch.where(second.isinf()[:, None], torch.zeros_like(weight), weight)
        total = weight.sum(dim=1)
        mean = (weight * grad).sum(dim=1) / torch.where(total == 0, 1.0, total)
    return (weight * (grad - mean[:, None]) / tau).to(logits.dtype)


def _stats_dtype(logits):
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


_op = provide("gumbel_topk(Tensor logits, Tensor? keep, SymInt max_keep, Tensor key, float tau, str estimator, "
              "str noise, bool with_stats) -> (Tensor gate, Tensor kept, Tensor stats)", gumbel_topk_reference)
_backward_op = provide("gumbel_topk_backward(Tensor grad, Tensor logits, Tensor key, Tensor stats, float tau, "
                       "str estimator, str noise) -> Tensor", gumbel_topk_backward_reference)


@torch.library.register_fake("budgetprune::gumbel_topk")
def _(logits, keep, max_keep, key, tau, estimator, noise, with_stats):
    batch = logits.shape[0]
    return (logits.new_empty(logits.shape), logits.new_empty((batch, max_keep), dtype=torch.int32),
            logits.new_empty((batch, 2 if with_stats else 0), dtype=_stats_dtype(logits)))


@torch.library.register_fake("budgetprune::gumbel_topk_backward")
def _(grad, logits, key, stats, tau, estimator, noise):
    return logits.new_empty(logits.shape)


def _batched(op, key_at, info, dims, args):
    """vmap: the rows of all V calls become rows of one call, or V calls where one key serves several rows.

    A key that is not mapped over is the same key in every call, and so draws the same noise in every call.
    """
    args = [arg if not isinstance(arg, Tensor) else arg.movedim(d, 0) if d is not None
            else arg.expand(info.batch_size, *arg.shape) for arg, d in zip(args, dims)]
    key, rows = args[key_at], args[0].shape[1]
    if key.dim() == 2 and rows != 1:
        calls = [op(*(arg[v] if isinstance(arg, Tensor) else arg for arg in args)) for v in range(info.batch_size)]
        return torch.stack(calls) if isinstance(calls[0], Tensor) else tuple(map(torch.stack, zip(*calls)))
    args[key_at] = key.unsqueeze(1) if key.dim() == 2 else key
    out = op(*(arg.flatten(0, 1) if isinstance(arg, Tensor) else arg for arg in args))
    split = (info.batch_size, rows)
    return out.unflatten(0, split) if isinstance(out, Tensor) else tuple(o.unflatten(0, split) for o in out)


@torch.library.register_vmap("budgetprune::gumbel_topk")
def _(info, dims, *args):
    return _batched(_op, 3, info, dims, args), (0, 0, 0)


@torch.library.register_vmap("budgetprune::gumbel_topk_backward")
def _(info, dims, *args):
    return _batched(_backward_op, 2, info, dims, args), 0


class _GumbelTopk(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits, keep, max_keep, key, tau, estimator, noise):
        return _op(logits, keep, max_keep, key, tau, estimator, noise, True)

    @staticmethod
    def setup_context(ctx, inputs, output):
        logits, _, _, key, *ctx.options = inputs
        _, kept, stats = output
        ctx.mark_non_differentiable(kept, stats)
        ctx.save_for_backward(logits, key, stats)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, *_):
        return _backward_op(grad, *ctx.saved_tensors, *ctx.options), None, None, None, None, None, None


# apply() asks for the signature in every call, which takes longer than the rows of a small batch; here it is kept.
_GumbelTopk.forward.__signature__ = inspect.signature(_GumbelTopk.forward)


def gumbel_topk(logits: Tensor, keep: int | list[int] | Tensor, *, key: Tensor, tau: float = 1.0,
                estimator: str = "race", noise: str = "gumbel", max_keep: int | None = None) -> tuple[Tensor, Tensor]:
    """The `keep` tokens of each row whose logits are highest once noise is added, as a 0/1 gate with a gradient.

    race and fermi keep the largest theta + noise, theta = logits / tau; softmax keeps the largest logits + noise.
    The noise is a function of `key` alone (Philox4x32-10, element i is lane i % 4 of block offset + i / 4), so the
    same key keeps the same tokens on every device, thread count and backend, bit for bit. Advance the offset by at
    least ceil(B * N / 4), or draw another seed, before the next call.
    Ranking is in float32, for float64 logits too (denormals count as 0). Equal values: the lower position wins.
    NaN ranks first, as in torch.sort; +inf is kept, -inf only where K leaves no other choice.

    Args:
        logits: [B, N] float32, float16, bfloat16 or float64.
        keep: K, tokens kept: an int for all rows, or one per row as a sequence or an int32 Tensor [B].
        key: (seed, offset) int64 [2]: element n of row b has i = b * N + n; or [B, 2], one per row: i = n.
        tau: temperature, above 0.
        estimator: whose derivative the gate gets. "race", "fermi": of the inclusion probabilities s, with s_i =
            1 - exp(-exp(theta_i + nu)) or sigmoid(theta_i + nu) and nu such that sum_i s_i = K: d * (g - sum(d g) /
            sum(d)) / tau, d = ds/dtheta. "softmax": of softmax((logits + noise) / tau), AdaLLaVA's straight-through
            form.
        noise: "gumbel" (pairs with race), "logistic" (pairs with fermi), or "none" for evaluation.
        max_keep: Kmax when `keep` is a Tensor; naming it avoids reading `keep` back from a GPU.

    Returns:
        gate: [B, N], exactly 0 or 1, dtype of `logits`, differentiable once.
        kept: [B, Kmax] int32, ascending, padded with -1.

    Raises:
        ValueError: a shape, a count outside [0, N], `tau` not above 0, or an unknown estimator or noise.
        TypeError: another dtype.
        RuntimeError: a count inside a `keep` Tensor is outside [0, Kmax] (checked on the CPU; clamped on a GPU).

    Gradient: 0 for race and fermi in rows where no token can change places (K = 0, K = N, or only the finite logits
    kept) and at infinite logits; NaN in the whole row of a NaN logit. softmax keeps its gradient for every K.
    Under torch.vmap a key that is not mapped over draws the same noise in every call; map over [V, B, 2] keys for one
    fused call with different noise.

    Source: Gumbel top-k, Kool et al., ICML 2019; Pareto sampling and inclusion probabilities of fixed-size designs,
    Rosen 1997; softmax, AdaLLaVA, Xu et al. 2025. Departure: one noisy ranking instead of K rounds of sampling from the
    softmax of what is left, which has the same distribution of sets.
    """
    check_float("logits", logits, "B N")
    keep, max_keep = check_keep(keep, *logits.shape, logits.device, max_keep)
    if not isinstance(key, Tensor) or key.dtype != torch.int64:
        got = key.dtype if isinstance(key, Tensor) else type(key).__name__
        raise TypeError(f"key must be an int64 Tensor, got {got}")
    if tuple(key.shape) != (2,) and tuple(key.shape) != (logits.shape[0], 2):
        raise ValueError(f"key must be [2] or [B, 2], B={logits.shape[0]}, got shape {list(key.shape)}")
    check_device("key", key, logits.device)
    if not 2.0**-126 <= tau < math.inf:  # below that it is no normal float32, in which tokens are ranked
        raise ValueError(f"tau must be above 0 and finite, got {tau}")
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {ESTIMATORS}, got {estimator!r}")
    if noise not in NOISES:
        raise ValueError(f"noise must be one of {NOISES}, got {noise!r}")
    if torch.is_grad_enabled() and logits.requires_grad:
        gate, kept, _ = _GumbelTopk.apply(logits, keep, max_keep, key, float(tau), estimator, noise)
    else:
        gate, kept, _ = _op(logits.detach(), keep, max_keep, key, float(tau), estimator, noise, False)
    return gate, kept
