"""merge_tokens, its dots and its transpose through CuPy: the decisions of merge_tokens.cpp and merge_tokens.cu."""

import torch

from .kernel import ELEMENT, FLOATS, Kernel, ceil_div, check, structure

WARPS = 8  # of a block

layout = structure("MergeShape", tokens="i32", outputs="i32", entries="i32", channels="i64")

MERGE = Kernel("merge_tokens.cuh", "merge_tokens_kernel",
               "MergeShape, T*, i64, i64, i32*, i32*, Accumulate<T>::type*, u32, bool, i32, T*", FLOATS)
DOTS = Kernel("merge_tokens.cuh", "merge_dots_kernel",
              "MergeShape, T*, T*, i64, i64, i32*, i32*, u32, bool, Accumulate<T>::type*", FLOATS)
TRANSPOSE = Kernel("merge_tokens.cuh", "merge_transpose_kernel", "MergeShape, i32*, i32*, u32, i32*, i32*, i32*")


def _sum_type(x):
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _check_lists(offsets, index, samples, tokens, channels):
    check(offsets.dim() == 2 and offsets.shape[0] == samples and offsets.shape[1] >= 1 and offsets.dtype == torch.int32,
          f"merge_tokens: offsets must be int32 [B, M + 1] with B = {samples}")
    check(index.dim() == 2 and index.shape[0] == samples and index.dtype == torch.int32,
          f"merge_tokens: index must be int32 [B, E] with B = {samples}")
    outputs, entries, limit = offsets.shape[1] - 1, index.shape[1], 2**30
    check(0 <= tokens < limit and outputs < limit and entries < limit, "merge_tokens: N, M and E must be below 2^30")
    check(samples * (entries + 8) < 2 * limit and samples * outputs * (channels // 32 + 1) + 8 < 2 * limit
          and samples * (tokens // 256 + 1) < 2 * limit, "merge_tokens: B * E and B * M * C / 32 must be below 2^31")
    return layout(tokens=tokens, outputs=outputs, entries=entries, channels=channels)


def _contiguous_rows(x):
    return x if x.shape[2] <= 1 or x.stride(2) == 1 else x.contiguous()


def _wide(a, b, *strides):
    """16 bytes at a time, where every address and stride allows it."""
    return a.data_ptr() % 16 == b.data_ptr() % 16 == 0 and all(n * a.element_size() % 16 == 0 for n in strides)


def merge_tokens(x, offsets, index, weight):
    check(x.dim() == 3, f"merge_tokens: x must be [B, N, C], got {x.dim()} dimensions")
    samples, tokens, channels = x.shape
    shape = _check_lists(offsets, index, samples, tokens, channels)
    check(weight.shape == index.shape and weight.dtype == _sum_type(x),
          "merge_tokens: weight must be [B, E], float64 for a float64 x, else float32")
    x, offsets, index, weight = _contiguous_rows(x), offsets.contiguous(), index.contiguous(), weight.contiguous()
    outputs, entries = offsets.shape[1] - 1, index.shape[1]
    out = x.new_empty((samples, outputs, channels))
    if out.numel() == 0:
        return out
    wide = _wide(x, out, x.stride(0), x.stride(1), channels)
    slices = ceil_div(channels, 32 * (16 // x.element_size() if wide else 1))
    team = 1  # a warp walks a short list alone; the warps of a block share long ones
    while team < WARPS and entries >= 4 * team * outputs:
        team *= 2
    MERGE.launch((ELEMENT[x.dtype],), x.device, ceil_div(samples * outputs * slices, WARPS // team), 32 * WARPS,
                 (shape, x, x.stride(0), x.stride(1), offsets, index, weight, samples, wide, team, out))
    return out


def merge_dots(grad, x, offsets, index):
    check(x.dim() == 3, f"merge_dots: x must be [B, N, C], got {x.dim()} dimensions")
    samples, tokens, channels = x.shape
    shape = _check_lists(offsets, index, samples, tokens, channels)
    check(tuple(grad.shape) == (samples, offsets.shape[1] - 1, channels) and grad.dtype == x.dtype,
          "merge_dots: grad must be [B, M, C] of the dtype of x")
    x, grad, offsets, index = _contiguous_rows(x), grad.contiguous(), offsets.contiguous(), index.contiguous()
    dots = x.new_empty(index.shape, dtype=_sum_type(x))
    if dots.numel() == 0:
        return dots
    DOTS.launch((ELEMENT[x.dtype],), x.device, ceil_div(index.numel(), WARPS), 32 * WARPS,
                (shape, grad, x, x.stride(0), x.stride(1), offsets, index, samples,
                 _wide(grad, x, x.stride(0), x.stride(1), channels), dots))
    return dots


def merge_transpose(offsets, index, tokens):
    check(offsets.dim() == 2, "merge_transpose: offsets must be [B, M + 1]")
    samples = offsets.shape[0]
    shape = _check_lists(offsets, index, samples, tokens, 0)
    lists = offsets.new_empty((samples, tokens + 1)), index.new_empty(index.shape), index.new_empty(index.shape)
    offsets, index = offsets.contiguous(), index.contiguous()
    if samples == 0:
        return lists
    tiles = tokens // 256 + 1  # offset N has a thread too
    TRANSPOSE.launch((), index.device, samples * tiles, 256, (shape, offsets, index, tiles, *lists))
    return lists
