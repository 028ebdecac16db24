"""gather_tokens and its gradients through CuPy: the decisions of gather_tokens.cpp and gather_tokens.cu."""

import torch

from .kernel import ELEMENT, FLOATS, Kernel, ceil_div, check, structure

UNITS = {16: "uint4", 4: "unsigned int", 1: "unsigned char"}  # what rows are copied in, by bytes

layout = structure("Gather", samples="i64", prefix="i64", rows="i64", batch_stride="i64", row_stride="i64",
                   units="i64", total="i64", kmax="i32", chunks="i32")

COPY = Kernel("gather_tokens.cuh", "gather_tokens_kernel", "Gather, V*, i32*, V*, i32*, bool*, i32*", UNITS.values())
BACKWARD = Kernel("gather_tokens.cuh", "gather_tokens_backward_kernel", "Gather, V*, i32*, i32*, V*", UNITS.values())
GATED = Kernel("gather_tokens_gated.cuh", "gather_tokens_gated_kernel",
               "Gather, T*, Accumulate<T>::type*, bool, i32*, T*, i32*, bool*, i32*", FLOATS)
GATED_BACKWARD = Kernel("gather_tokens_gated.cuh", "gather_tokens_gated_backward_kernel",
                        "Gather, T*, T*, Accumulate<T>::type*, bool, i32*, i32*, T*, Accumulate<T>::type*", FLOATS)


def _check_kept(kept, samples, prefix, rows):
    check(kept.dim() == 2 and len(kept) == samples and kept.dtype == torch.int32,
          f"gather_tokens: kept must be int32 [B, Kmax] with B = {samples}")
    check(0 <= prefix <= rows, f"gather_tokens: prefix must be in [0, {rows}], got {prefix}")
    check(samples * (prefix + kept.shape[1]) < 2**31 and rows < 2**31,
          "gather_tokens: B * (P + Kmax) and P + N must be below 2^31")


def _check_gate(x, gate, prefix):
    check(tuple(gate.shape) == (x.shape[0], x.shape[1] - prefix), "gather_tokens: gate must be [B, N]")
    check(gate.dtype == (torch.float64 if x.dtype == torch.float64 else torch.float32),
          "gather_tokens: gate must be float32, or float64 for float64 tokens")


def _contiguous_rows(x):
    return x if x.shape[2] <= 1 or x.stride(2) == 1 else x.contiguous()


def _chunks(samples, length):
    """Blocks of a sample: enough to fill a large chip a few times over, and at most 32 rows a warp at once."""
    wanted = (4 * 132 + samples) // (samples + 1)
    return min(max(wanted, ceil_div(length, 128)), ceil_div(length, 4))


def _wide(tensors, strides):
    """Whether every address and stride is a multiple of 16 bytes."""
    item = tensors[0].element_size()
    return all(t.data_ptr() % 16 == 0 for t in tensors) and all(s * item % 16 == 0 for s in strides)


def gather_tokens(x, kept, gate, prefix, packed, total):
    check(x.dim() == 3, f"gather_tokens: x must be [B, P + N, C], got {x.dim()} dimensions")
    samples, rows, channels = x.shape
    _check_kept(kept, samples, prefix, rows)
    if gate is not None:
        _check_gate(x, gate, prefix)
    kmax = kept.shape[1]
    length, size = prefix + kmax, total if packed else -1
    check(not packed or 0 <= total <= samples * length,
          f"gather_tokens: total must be in [0, {samples * length}], got {total}")
    shape = (total,) if packed else (samples, length)
    tokens, positions = x.new_empty((*shape, channels)), kept.new_empty(shape)
    mask = kept.new_empty((0,) if packed else shape, dtype=torch.bool)
    cu_seqlens = kept.new_empty(samples + 1)

    x, kept, device = _contiguous_rows(x), kept.contiguous(), x.device
    exists = None if packed else mask
    chunks = _chunks(samples, length) if length > 0 else 1
    grid = samples * chunks if samples > 0 else 1  # one block at least: it writes cu_seqlens
    common = dict(samples=samples, prefix=prefix, rows=rows, total=size, kmax=kmax, chunks=chunks)
    strides = [x.stride(0), x.stride(1), channels]
    if gate is not None:
        op = layout(batch_stride=strides[0], row_stride=strides[1], units=channels, **common)
        wide = _wide((x, tokens), strides)
        GATED.launch((ELEMENT[x.dtype],), device, grid, 128,
                     (op, x, gate.contiguous(), wide, kept, tokens, positions, exists, cu_seqlens))
    else:
        unit, (batch_stride, row_stride, units) = _in_units(strides, x, tokens)
        op = layout(batch_stride=batch_stride, row_stride=row_stride, units=units, **common)
        COPY.launch((UNITS[unit],), device, grid, 128, (op, x, kept, tokens, positions, exists, cu_seqlens))
    return tokens, positions, mask, cu_seqlens


def _in_units(strides, *tensors):
    """The widest unit, 16, 4 or 1 bytes, that divides every stride and address; and the strides counted in it."""
    in_bytes = [stride * tensors[0].element_size() for stride in strides]
    unit = next(u for u in UNITS if all(b % u == 0 for b in in_bytes) and all(t.data_ptr() % u == 0 for t in tensors))
    return unit, [b // unit for b in in_bytes]


def _check_backward(grad, kept, cu_seqlens, prefix, rows, packed):
    check(kept.dim() == 2 and grad.dim() == (2 if packed else 3),
          "gather_tokens_backward: grad must be like the tokens, kept [B, Kmax]")
    _check_kept(kept, len(kept), prefix, rows)
    check(packed or tuple(grad.shape[:2]) == (len(kept), prefix + kept.shape[1]),
          "gather_tokens_backward: grad must be [B, P + Kmax, C]")
    check(tuple(cu_seqlens.shape) == (len(kept) + 1,) and cu_seqlens.dtype == torch.int32,
          "gather_tokens_backward: cu_seqlens must be int32 [B + 1]")


def gather_tokens_backward(grad, kept, cu_seqlens, prefix, rows, packed):
    _check_backward(grad, kept, cu_seqlens, prefix, rows, packed)
    samples, kmax, channels = *kept.shape, grad.shape[-1]
    dx = grad.new_empty((samples, rows, channels))
    if dx.numel() == 0:
        return dx
    grad, kept, cu_seqlens = grad.contiguous(), kept.contiguous(), cu_seqlens.contiguous()
    unit, (units,) = _in_units([channels], grad, dx)
    chunks = _chunks(samples, rows)
    op = layout(samples=samples, prefix=prefix, rows=rows, batch_stride=0, row_stride=0, units=units,
                total=len(grad) if packed else -1, kmax=kmax, chunks=chunks)
    BACKWARD.launch((UNITS[unit],), grad.device, samples * chunks, 128, (op, grad, kept, cu_seqlens, dx))
    return dx


def gather_tokens_gated_backward(grad, x, kept, gate, cu_seqlens, prefix, packed):
    check(x.dim() == 3 and kept.dim() == 2 and len(kept) == len(x) and grad.dtype == x.dtype,
          "gather_tokens_gated_backward: x must be [B, P + N, C], kept [B, Kmax], grad in the dtype of x")
    samples, rows, channels = x.shape
    _check_backward(grad, kept, cu_seqlens, prefix, rows, packed)
    check(grad.shape[-1] == channels, "gather_tokens_gated_backward: grad must have the channels of x")
    _check_gate(x, gate, prefix)
    dx, dgate = grad.new_empty((samples, rows, channels)), gate.new_empty(gate.shape)
    if samples * rows == 0:
        return dx, dgate
    grad, kept, gate, x = grad.contiguous(), kept.contiguous(), gate.contiguous(), _contiguous_rows(x)
    chunks, strides = _chunks(samples, rows), [x.stride(0), x.stride(1), channels]
    op = layout(samples=samples, prefix=prefix, rows=rows, batch_stride=strides[0], row_stride=strides[1],
                units=channels, total=len(grad) if packed else -1, kmax=kept.shape[1], chunks=chunks)
    GATED_BACKWARD.launch((ELEMENT[x.dtype],), x.device, samples * chunks, 128,
                          (op, grad, x, gate, _wide((x, grad, dx), strides), kept, cu_seqlens.contiguous(), dx, dgate))
    return dx, dgate
