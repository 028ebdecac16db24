"""select_topk through CuPy: the decisions of select_topk.cpp and select_topk.cu."""

import torch

from .kernel import ELEMENT, FLOATS, SINGLES, Kernel, check
from .rows import BLOCK_ITEMS, LONGEST_IN_REGISTERS, WARP_ITEMS, row_in_registers

WARPS = Kernel("select_topk_registers.cuh", "select_topk_warps", "T*, i32*, i64, i32, i32, i32*",
               [(T, items) for T in SINGLES for items in WARP_ITEMS])
BLOCK = Kernel("select_topk_registers.cuh", "select_topk_block", "T*, i32*, i64, i32, i32, i32*",
               [(T, items) for T in SINGLES for items in BLOCK_ITEMS])
MEMORY = Kernel("select_topk.cuh", "select_topk_kernel", "T*, i32*, i32, i32, i32*", FLOATS)


def select_topk(scores, keep, max_keep):
    check(scores.dim() == 2, f"select_topk: scores must be [B, N], got {scores.dim()} dimensions")
    rows, n = scores.shape
    check(n < 2**31, f"select_topk: N must be below 2^31, got {n}")
    check(0 <= max_keep <= n, f"select_topk: max_keep must be in [0, {n}], got {max_keep}")
    check(keep is None or (keep.dtype == torch.int32 and keep.numel() == rows), "select_topk: keep must be int32 [B]")
    kept = scores.new_empty((rows, max_keep), dtype=torch.int32)
    if kept.numel() == 0:
        return kept
    scores, keep, T = scores.contiguous(), None if keep is None else keep.contiguous(), ELEMENT[scores.dtype]
    device = scores.device
    if T in SINGLES and n <= LONGEST_IN_REGISTERS:
        by_warp, items, grid, threads = row_in_registers(rows, n, device)
        (WARPS if by_warp else BLOCK).launch((T, items), device, grid, threads, (scores, keep, rows, n, max_keep, kept))
    else:
        threads = 1024 if n > LONGEST_IN_REGISTERS else 256
        MEMORY.launch((T,), device, rows, threads, (scores, keep, n, max_keep, kept))
    return kept
