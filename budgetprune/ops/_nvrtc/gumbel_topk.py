"""gumbel_topk and its gradient through CuPy: the decisions of gumbel_topk.cpp and gumbel_topk.cu."""

import torch

from .kernel import ELEMENT, FLOATS, SINGLES, Kernel, check, structure
from .rows import BLOCK_ITEMS, LONGEST_IN_REGISTERS, WARP_ITEMS, row_in_registers

SOURCE = "gumbel_topk_registers.cuh"
ESTIMATORS, NOISES = ("race", "fermi", "softmax"), ("none", "gumbel", "logistic")  # in the order of the C++ enums
MAX_SHARED_TOKENS = 24576  # longer rows keep their keys in a tensor

options = structure("GumbelTopk", n="i32", kmax="i32", tau="double", estimator="i32", noise="i32")

FORWARD = "GumbelTopk, T*, i32*, i64*, bool, i64, T*, i32*, float*"
BACKWARD = "GumbelTopk, T*, T*, i64*, bool, i64, float*, T*"
BY_WARP = [(T, items) for T in SINGLES for items in WARP_ITEMS]
BY_BLOCK = [(T, items) for T in SINGLES for items in BLOCK_ITEMS]
WARPS = Kernel(SOURCE, "gumbel_topk_warps", FORWARD, BY_WARP)
BLOCK = Kernel(SOURCE, "gumbel_topk_block", FORWARD, BY_BLOCK)
MEMORY = Kernel("gumbel_topk.cuh", "gumbel_topk_kernel",
                "GumbelTopk, T*, i32*, i64*, bool, u32*, T*, i32*, KeyOf<T>::Float*", FLOATS)
BACKWARD_WARPS = Kernel(SOURCE, "gumbel_topk_backward_warps", BACKWARD, BY_WARP)
BACKWARD_BLOCK = Kernel(SOURCE, "gumbel_topk_backward_block", BACKWARD, BY_BLOCK)
BACKWARD_MEMORY = Kernel("gumbel_topk_backward.cuh", "gumbel_topk_backward_kernel",
                         "GumbelTopk, T*, T*, i64*, bool, KeyOf<T>::Float*, u32*, T*", FLOATS)


def _checked(logits, key, max_keep, tau, estimator, noise):
    check(logits.dim() == 2, f"gumbel_topk: logits must be [B, N], got {logits.dim()} dimensions")
    rows, n = logits.shape
    check(n < 2**31, f"gumbel_topk: N must be below 2^31, got {n}")
    check(0 <= max_keep <= n, f"gumbel_topk: max_keep must be in [0, {n}], got {max_keep}")
    check(key.dtype == torch.int64 and tuple(key.shape) in ((2,), (rows, 2)),
          "gumbel_topk: key must be int64 [2] or [B, 2]")
    check(tau > 0, f"gumbel_topk: tau must be positive, got {tau}")
    check(estimator in ESTIMATORS, f"gumbel_topk: estimator must be race, fermi or softmax, got {estimator}")
    check(noise in NOISES, f"gumbel_topk: noise must be gumbel, logistic or none, got {noise}")
    return options(n=n, kmax=max_keep, tau=tau, estimator=ESTIMATORS.index(estimator), noise=NOISES.index(noise))


def _stats_type(logits):
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _scratch(logits):
    rows, n = logits.shape
    return logits.new_empty((rows, n), dtype=torch.int32) if n > MAX_SHARED_TOKENS else None


def _threads(T, n):
    """Of a kernel whose rows lie in memory; doubles take twice the registers, and so half the threads."""
    return 256 if n <= LONGEST_IN_REGISTERS else 512 if T == "double" else 1024


def gumbel_topk(logits, keep, max_keep, key, tau, estimator, noise, with_stats):
    op = _checked(logits, key, max_keep, tau, estimator, noise)
    rows, n = logits.shape
    check(keep is None or (keep.dtype == torch.int32 and keep.numel() == rows), "gumbel_topk: keep must be int32 [B]")
    logits, key, device = logits.contiguous(), key.contiguous(), logits.device
    keep = None if keep is None else keep.contiguous()
    gate, kept = logits.new_empty((rows, n)), logits.new_empty((rows, max_keep), dtype=torch.int32)
    stats = logits.new_empty((rows, 2 if with_stats else 0), dtype=_stats_type(logits))
    if rows == 0:
        return gate, kept, stats
    T, per_row, to = ELEMENT[logits.dtype], key.dim() == 2, stats if with_stats else None
    if T in SINGLES and n <= LONGEST_IN_REGISTERS:
        by_warp, items, grid, threads = row_in_registers(rows, n, device)
        (WARPS if by_warp else BLOCK).launch((T, items), device, grid, threads,
                                             (op, logits, keep, key, per_row, rows, gate, kept, to))
    else:
        scratch = _scratch(logits)
        MEMORY.launch((T,), device, rows, _threads(T, n), (op, logits, keep, key, per_row, scratch, gate, kept, to),
                      shared=4 * n if scratch is None else 0)
    return gate, kept, stats


def gumbel_topk_backward(grad, logits, key, stats, tau, estimator, noise):
    op = _checked(logits, key, 0, tau, estimator, noise)
    check(grad.dtype == logits.dtype and grad.shape == logits.shape, "gumbel_topk_backward: grad must be like logits")
    rows, n = logits.shape
    check(stats.dtype == _stats_type(logits) and tuple(stats.shape) == (rows, 2),
          "gumbel_topk_backward: stats must be [B, 2], as gumbel_topk gave them")
    grad, logits, key, stats = grad.contiguous(), logits.contiguous(), key.contiguous(), stats.contiguous()
    out = logits.new_empty((rows, n))
    if rows == 0:
        return out
    T, per_row, device = ELEMENT[logits.dtype], key.dim() == 2, logits.device
    if T in SINGLES and n <= LONGEST_IN_REGISTERS:
        by_warp, items, grid, threads = row_in_registers(rows, n, device)
        (BACKWARD_WARPS if by_warp else BACKWARD_BLOCK).launch(
            (T, items), device, grid, threads, (op, grad, logits, key, per_row, rows, stats, out))
    else:
        softmax = estimator == "softmax"  # the one that draws its noise anew
        scratch = _scratch(logits) if softmax else None
        BACKWARD_MEMORY.launch((T,), device, rows, _threads(T, n),
                               (op, grad, logits, key, per_row, stats, scratch, out),
                               shared=4 * n if softmax and scratch is None else 0)
    return out
