"""fastv_select through CuPy: the decisions of fastv_select.cpp and fastv_select.cu."""

import torch

from .attention_received import KEYS_PER_BLOCK, SUMS, contiguous_rows, launch_scores_of_row, shape_of, sum_type
from .kernel import ELEMENT, Kernel, ceil_div, check

RANK = Kernel("fastv_select.cuh", "fastv_rank_kernel",
              "ReceivedShape, A*, A*, bool*, bool*, i32*, i32, i32, u32*, A*, u32*, i32*", SUMS)
LAST = 0  # QueryRows::last


def _check(q, k, image, keep, max_keep, mask, max_kept):
    check(q.dim() == 4 and k.dim() == 4 and k.shape[::3] == q.shape[::3] and k.dtype == q.dtype,
          "fastv_select: q must be [B, H, Q, D] and k [B, Hkv, N, D] in its dtype")
    (batch, heads, queries, _), (_, kv_heads, keys, _) = q.shape, k.shape
    check(kv_heads > 0 and heads > 0 and heads % kv_heads == 0 and queries > 0,
          "fastv_select: H must be a positive multiple of Hkv, and Q positive")
    for one in (image, mask):
        check(one is None or (tuple(one.shape) == (batch, keys) and one.dtype == torch.bool),
              "fastv_select: image and mask must be bool [B, N]")
    check(keep is None or (keep.dtype == torch.int32 and keep.numel() == batch), "fastv_select: keep must be int32 [B]")
    check(keys < 2**31 and 0 <= max_keep <= keys and 0 <= max_kept <= keys,
          "fastv_select: max_keep and max_kept must be in [0, N], N below 2^31")
    check(heads <= 3000, f"fastv_select: on CUDA H must be at most 3000, got {heads}")


def fastv_select(q, k, image, keep, max_keep, mask, max_kept, scale):
    _check(q, k, image, keep, max_keep, mask, max_kept)
    q, k, image = contiguous_rows(q), contiguous_rows(k), image.contiguous()
    keep, mask = (None if t is None else t.contiguous() for t in (keep, mask))
    (batch, heads, *_), keys = q.shape, k.shape[2]
    scores = q.new_empty((batch, keys), dtype=sum_type(q))
    kept = q.new_empty((batch, max_kept), dtype=torch.int32)
    if scores.numel() == 0:
        return kept, scores
    n, s = shape_of(q, k), scores.new_empty((batch, heads, keys))
    stats = scores.new_empty((batch, heads, ceil_div(keys, KEYS_PER_BLOCK), 2))
    tickets, ranks = kept.new_empty(batch), kept.new_empty((batch, keys))
    launch_scores_of_row(n, q, k, mask, LAST, scale, s, stats, tickets)
    RANK.launch((ELEMENT[scores.dtype],), q.device, batch * ceil_div(keys, 128), 128,
                (n, s, stats, mask, image, keep, max_keep, max_kept, tickets, scores, ranks, kept),
                shared=2 * heads * scores.element_size())
    return kept, scores
