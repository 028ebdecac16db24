"""gated_attention and its gradients through CuPy: the decisions of gated_attention.cpp and gated_attention.cu."""

import torch

from .kernel import ELEMENT, FLOATS, HALVES, Kernel, ceil_div, check, most_shared, structure

DEPTHS, SUMS = (32, 64, 96, 128), ("float", "double")
TILE_ROWS, TILE_THREADS, WARPS = 64, 128, 4
STATIC = 2048  # bytes of shared memory that the kernels hold beside their tiles, at most
TILES, TILES_BACKWARD = "gated_attention_tiles.cuh", "gated_attention_tiles_backward.cuh"

layout = structure("GatedShape", batch="i64", heads="i64", kv_heads="i64", queries="i64", keys="i64", d="i64",
                   causal="bool", scale="float")

SIZES = "i64, i64, i64, i64, i64, i64, bool, double"
A = "Accumulate<T>::type*"
BY_DEPTH = [(T, depth) for T in HALVES for depth in DEPTHS]
PLAIN = Kernel("gated_attention.cuh", "gated_attention_kernel", f"T*, T*, T*, {A}, bool*, {SIZES}, T*, {A}", FLOATS)
PLAIN_DQ = Kernel("gated_attention.cuh", "gated_attention_dq_kernel",
                  f"T*, T*, T*, T*, {A}, bool*, T*, {A}, {SIZES}, T*, {A}", FLOATS)
PLAIN_DKV = Kernel("gated_attention.cuh", "gated_attention_dkv_kernel",
                   f"T*, T*, T*, T*, {A}, bool*, {A}, {A}, {SIZES}, T*, T*, {A}", FLOATS)
GATE_SUM = Kernel("gated_attention.cuh", "gate_sum_kernel", "A*, i64, i64, i64, A*", SUMS)
ORDER = Kernel(TILES, "order_keys_kernel", "float*, bool*, i32, i32*, i32*")
FORWARD = Kernel(TILES, "gated_forward_tiles", "GatedShape, T*, T*, T*, float*, i32*, i32*, T*, float*", BY_DEPTH)
DELTA = Kernel(TILES_BACKWARD, "delta_kernel", "T*, T*, float*, i64, i64, float*, float*", HALVES)
DQ = Kernel(TILES_BACKWARD, "gated_dq_tiles",
            "GatedShape, T*, T*, T*, T*, float*, i32*, i32*, float*, float*, T*", BY_DEPTH)
DKV = Kernel(TILES_BACKWARD, "gated_dkv_tiles",
             "GatedShape, T*, T*, T*, T*, float*, i32*, i32*, float*, float*, T*, T*, float*",
             [(*variant, kept) for variant in BY_DEPTH for kept in (True, False)])


def _check(q, k, v, gate, mask):
    check(q.dim() == 4 and k.dim() == 4 and v.dim() == 4, "gated_attention: q, k and v must have 4 dimensions")
    (batch, heads, _, d), kv_heads, keys = q.shape, k.shape[1], k.shape[2]
    check(k.shape[0] == batch and k.shape[3] == d, "gated_attention: k must be [B, Hkv, N, D] to suit q")
    check(v.shape == k.shape, "gated_attention: v must have the shape of k")
    check(kv_heads > 0 and heads % kv_heads == 0,
          f"gated_attention: H must be a multiple of Hkv, got {heads} and {kv_heads}")
    check(k.dtype == q.dtype and v.dtype == q.dtype, "gated_attention: q, k and v must share one dtype")
    check(tuple(gate.shape) == (batch, keys) and gate.dtype == _sum_type(q),
          "gated_attention: gate must be [B, N] float32, or float64 beside float64 q")
    check(mask is None or (tuple(mask.shape) == (batch, keys) and mask.dtype == torch.bool),
          "gated_attention: mask must be bool [B, N]")
    check(d <= 384, f"gated_attention: on CUDA D must be at most 384, got {d}")


def _sum_type(q):
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _by_tiles(tiles, *rows):
    """Tensor cores take 16-bit types whose rows are whole pieces of 16 bytes, if a block may hold that many tiles."""
    q, d = rows[0], rows[0].shape[3]
    return (ELEMENT[q.dtype] in HALVES and 0 < d <= 128 and d % 8 == 0
            and all(t.data_ptr() % 16 == 0 and t.shape[2] > 0 for t in rows)
            and tiles * _depth(d)[1] + STATIC <= most_shared(q.device))


def _depth(d):
    """The width that rows of d numbers are held in, and the bytes of a tile of them."""
    depth = next(depth for depth in DEPTHS if d <= depth)
    return depth, TILE_ROWS * (depth + 8) * 2


def _shape(q, k, causal, scale):
    (batch, heads, queries, d), (_, kv_heads, keys, _) = q.shape, k.shape
    return layout(batch=batch, heads=heads, kv_heads=kv_heads, queries=queries, keys=keys, d=d, causal=causal,
                  scale=scale)


def _sizes(q, k, causal, scale):
    return (q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2], q.shape[3], causal, scale)


def _order_keys(gate, mask):
    """[B, N] kept keys first, then dropped ones; and [B, 2] how many of each."""
    batch, keys = gate.shape
    order, counts = (gate.new_empty((batch, n), dtype=torch.int32) for n in (keys, 2))
    ORDER.launch((), gate.device, batch, 256, (gate, mask, keys, order, counts))
    return order, counts


def gated_attention(q, k, v, gate, mask, causal, scale):
    _check(q, k, v, gate, mask)
    (batch, heads, queries, d), device = q.shape, q.device
    out, lse = q.new_empty(q.shape), gate.new_empty((batch, heads, queries))
    if lse.numel() == 0:
        return out, lse
    q, k, v, gate = q.contiguous(), k.contiguous(), v.contiguous(), gate.contiguous()
    mask = None if mask is None else mask.contiguous()
    if _by_tiles(5, q, k, v, out):
        depth, tile = _depth(d)
        FORWARD.launch((ELEMENT[q.dtype], depth), device, ceil_div(queries, TILE_ROWS) * batch * heads, TILE_THREADS,
                       (_shape(q, k, causal, scale), q, k, v, gate, *_order_keys(gate, mask), out, lse),
                       shared=5 * tile)
    else:
        PLAIN.launch((ELEMENT[q.dtype],), device, ceil_div(lse.numel(), WARPS), 32 * WARPS,
                     (q, k, v, gate, mask, *_sizes(q, k, causal, scale), out, lse),
                     shared=WARPS * 2 * d * gate.element_size())
    return out, lse


def gated_attention_backward(grad, q, k, v, gate, mask, out, lse, causal, scale):
    _check(q, k, v, gate, mask)
    check(all(t.shape == q.shape and t.dtype == q.dtype for t in (grad, out)),
          "gated_attention_backward: grad and out must be like q")
    check(lse.shape == q.shape[:3] and lse.dtype == gate.dtype,
          "gated_attention_backward: lse must be [B, H, Q] as gated_attention gave it")
    grad, q, k, v, gate, out, lse = (t.contiguous() for t in (grad, q, k, v, gate, out, lse))
    mask = None if mask is None else mask.contiguous()
    dq, dk, dv, dgate = (t.new_empty(t.shape) for t in (q, k, v, gate))
    parts = gate.new_empty((*k.shape[:2], k.shape[2]))
    run = _tiles_backward if _by_tiles(6, grad, q, k, v, out, dq, dk, dv) else _plain_backward
    run(grad, q, k, v, gate, mask, out, lse, causal, scale, dq, dk, dv, parts)
    if dgate.numel() > 0:
        GATE_SUM.launch((ELEMENT[gate.dtype],), q.device, ceil_div(dgate.numel(), 256), 256,
                        (parts, k.shape[0], k.shape[1], k.shape[2], dgate))
    return dq, dk, dv, dgate


def _tiles_backward(grad, q, k, v, gate, mask, out, lse, causal, scale, dq, dk, dv, parts):
    T, device, rows, n = ELEMENT[q.dtype], q.device, lse.numel(), _shape(q, k, causal, scale)
    depth, tile = _depth(q.shape[3])
    order, counts = _order_keys(gate, mask)
    delta, lse2 = lse.new_empty(lse.shape), lse.new_empty(lse.shape)
    DELTA.launch((T,), device, ceil_div(rows, WARPS), 32 * WARPS, (grad, out, lse, rows, q.shape[3], delta, lse2))
    common = (n, grad, q, k, v, gate, order, counts, lse2, delta)
    DQ.launch((T, depth), device, ceil_div(q.shape[2], TILE_ROWS) * q.shape[0] * q.shape[1], TILE_THREADS,
              (*common, dq), shared=6 * tile)
    for kept in (True, False):
        DKV.launch((T, depth, kept), device, ceil_div(k.shape[2], TILE_ROWS) * k.shape[0] * k.shape[1], TILE_THREADS,
                   (*common, dk, dv, parts), shared=6 * tile)


def _plain_backward(grad, q, k, v, gate, mask, out, lse, causal, scale, dq, dk, dv, parts):
    T, device, d, item = (ELEMENT[q.dtype],), q.device, q.shape[3], gate.element_size()
    sizes, delta = _sizes(q, k, causal, scale), lse.new_empty(lse.shape)
    if lse.numel() > 0:
        PLAIN_DQ.launch(T, device, ceil_div(lse.numel(), WARPS), 32 * WARPS,
                        (grad, q, k, v, gate, mask, out, lse, *sizes, dq, delta), shared=WARPS * 3 * d * item)
    if parts.numel() > 0:
        PLAIN_DKV.launch(T, device, ceil_div(parts.numel(), WARPS), 32 * WARPS,
                         (grad, q, k, v, gate, mask, lse, delta, *sizes, dk, dv, parts), shared=WARPS * 4 * d * item)
