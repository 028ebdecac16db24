"""attention_received through CuPy: the decisions of attention_received.cpp and attention_received.cu."""

import torch

from .kernel import ELEMENT, FLOATS, HALVES, SINGLES, Kernel, ceil_div, check, structure

ROWS = ("last", "cls", "all")  # in the order of the C++ enum
KEYS_PER_BLOCK, TILE_ROWS, TILE_COLUMNS = 64, 128, 64
DEPTHS = (32, 64, 80, 128)
SUMS = ("float", "double")
LSE, COLUMN_SUMS = "budgetprune::ScorePass::lse", "budgetprune::ScorePass::sums"

layout = structure("ReceivedShape", batch="i64", heads="i64", kv_heads="i64", queries="i64", keys="i64", d="i64",
                   q_strides="i64[3]", k_strides="i64[3]")

ROW = Kernel("attention_received_row.cuh", "scores_of_row_kernel",
             "ReceivedShape, T*, T*, bool*, i32, double, Accumulate<T>::type*, Accumulate<T>::type*, u32*",
             [(T, group, True) for T in SINGLES for group in (1, 4, 8)] + [(T, 8, False) for T in FLOATS])
HEADS = Kernel("attention_received_row.cuh", "mean_of_heads_kernel", "ReceivedShape, A*, A*, bool*, i32, A*", SUMS)
TILES = Kernel("attention_received_all.cuh", "score_tiles_kernel",
               "ReceivedShape, T*, T*, bool*, float, float*, float*",
               [(T, depth, of) for T in HALVES for depth in DEPTHS for of in (LSE, COLUMN_SUMS)])
PLAIN = Kernel("attention_received_all.cuh", "attention_received_plain_kernel",
               "ReceivedShape, T*, T*, bool*, i64, double, Accumulate<T>::type*, Accumulate<T>::type*", FLOATS)
MEAN = Kernel("attention_received_all.cuh", "received_mean_kernel", "ReceivedShape, A*, i64, bool*, A*", SUMS)


def contiguous_rows(x):
    return x if x.shape[3] <= 1 or x.stride(3) == 1 else x.contiguous()


def sum_type(x):
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def shape_of(q, k):
    return layout(batch=q.shape[0], heads=q.shape[1], kv_heads=k.shape[1], queries=q.shape[2], keys=k.shape[2],
                  d=q.shape[3], q_strides=q.stride()[:3], k_strides=k.stride()[:3])


def _aligned(*tensors):
    """Whether every row is whole pieces of 16 bytes."""
    return all(t.data_ptr() % 16 == 0 and all(n * t.element_size() % 16 == 0 for n in (*t.stride()[:3], t.shape[3]))
               for t in tensors)


def launch_scores_of_row(n, q, k, mask, rows, scale, s, stats, tickets):
    """s [B, H, N] and stats [B, H, splits, 2] of the chosen query; also sets tickets [B] to 0 where given."""
    (batch, heads, _, d), kv_heads, splits = q.shape, k.shape[1], ceil_div(k.shape[2], KEYS_PER_BLOCK)
    T, per_kv = ELEMENT[q.dtype], heads // kv_heads
    wide = T in SINGLES and 0 < d * q.element_size() <= 32 * 16 and _aligned(q, k)
    group = 8 if not wide or per_kv > 4 else 1 if per_kv == 1 else 4
    grid = batch * kv_heads * ceil_div(per_kv, group) * splits
    ROW.launch((T, group, wide), q.device, grid, 128, (n, q, k, mask, rows, scale, s, stats, tickets))


def _check(q, k, rows, mask):
    check(q.dim() == 4 and k.dim() == 4, "attention_received: q and k must have 4 dimensions")
    check(rows in ROWS, f'attention_received: rows must be "last", "cls" or "all", got "{rows}"')
    (batch, heads, queries, d), (_, kv_heads, keys, _) = q.shape, k.shape
    check(k.shape[0] == batch and k.shape[3] == d and k.dtype == q.dtype,
          "attention_received: k must be [B, Hkv, N, D] in the dtype of q")
    check(kv_heads > 0 and heads > 0 and heads % kv_heads == 0 and queries > 0,
          f"attention_received: H must be a positive multiple of Hkv, and Q positive; got {heads}, {kv_heads} and "
          f"{queries}")
    check(keys < 2**31 and queries < 2**31, "attention_received: N and Q must be below 2^31")
    check(mask is None or (tuple(mask.shape) == (batch, keys) and mask.dtype == torch.bool),
          "attention_received: mask must be bool [B, N]")
    check(d <= 6000 and heads <= 3000,
          f"attention_received: on CUDA D must be at most 6000 and H 3000, got {d} and {heads}")


def attention_received(q, k, rows, mask, scale):
    _check(q, k, rows, mask)
    (batch, heads, _, d), keys, all_rows = q.shape, k.shape[2], rows == "all"
    scores = q.new_empty((batch, keys), dtype=sum_type(q))
    if scores.numel() == 0:
        return scores
    q, k = (q.contiguous(), k.contiguous()) if all_rows else (contiguous_rows(q), contiguous_rows(k))
    mask, n, A = None if mask is None else mask.contiguous(), shape_of(q, k), ELEMENT[scores.dtype]
    if not all_rows:
        s = scores.new_empty((batch, heads, keys))
        stats = scores.new_empty((batch, heads, ceil_div(keys, KEYS_PER_BLOCK), 2))
        launch_scores_of_row(n, q, k, mask, ROWS.index(rows), scale, s, stats, None)
        HEADS.launch((A,), q.device, batch * ceil_div(keys, 128), 128, (n, s, stats, mask, ROWS.index(rows), scores),
                     shared=2 * heads * scores.element_size())
        return scores
    if q.element_size() == 2 and 0 < d <= 128 and _aligned(q, k):
        parts, count = _by_tiles(n, q, k, mask, scale), heads
    else:
        parts, count = _plainly(n, q, k, mask, scale, scores)
    MEAN.launch((A,), q.device, batch * ceil_div(keys, 256), 256, (n, parts, count, mask, scores))
    return scores


def _by_tiles(n, q, k, mask, scale):
    """Parts [B, H, N] by tensor cores."""
    (batch, heads, queries, d), keys = q.shape, k.shape[2]
    lse = q.new_empty((batch, heads, queries), dtype=torch.float32)
    parts = q.new_empty((batch, heads, keys), dtype=torch.float32)
    depth = next(depth for depth in DEPTHS if d <= depth)
    shared = 2 * TILE_COLUMNS * (depth + 8) * q.element_size()
    for of, tokens, lse_in, out in ((LSE, queries, None, lse), (COLUMN_SUMS, keys, lse, parts)):
        TILES.launch((ELEMENT[q.dtype], depth, of), q.device, ceil_div(tokens, TILE_ROWS) * heads * batch, 256,
                     (n, q, k, mask, scale, lse_in, out), shared=shared)
    return parts


def _plainly(n, q, k, mask, scale, scores):
    """Parts [B, H * chunks, N] and H * chunks: a block takes 32 queries of a head."""
    (batch, heads, queries, d), keys = q.shape, k.shape[2]
    chunks = ceil_div(queries, 32)
    scratch, parts = (scores.new_empty((batch, heads * chunks, keys)) for _ in range(2))
    PLAIN.launch((ELEMENT[q.dtype],), q.device, batch * heads * chunks, 256,
                 (n, q, k, mask, chunks, scale, scratch, parts), shared=(32 + d) * scores.element_size())
    return parts, heads * chunks
