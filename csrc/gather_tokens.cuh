// gather_tokens.cuh: the rows of x at the kept positions, with what attention asks of them.
//
//   x       [B, P + N, C]   any element; copied in units of V (16 bytes where alignment allows)
//   kept    [B, Kmax]       ascending positions counted after the P prefix rows, padded with -1
//   tokens  [B, P + Kmax, C] padded with zeros, or packed [total, C]
//   cu_seqlens [B + 1]      where each sample begins when packed
// A kernel clamps what it reads from kept, so it stays inside x whatever kept holds.
#pragma once
#include "portable.h"

namespace budgetprune {

// How many of a row of kept come before its padding.
BP_FN i32 kept_count(const i32* kept, i32 kmax) {
  i32 low = 0, high = kmax;
  while (low < high) {
    const i32 middle = (low + high) / 2;
    if (kept[middle] >= 0) low = middle + 1;
    else high = middle;
  }
  return low;
}

// The row of x behind the i-th token of a sample, or -1 where it is padding.
BP_FN i64 source_row(const i32* kept, i64 i, i64 prefix, i64 rows, i32 kmax) {
  if (i < prefix) return i;
  if (i - prefix >= kmax || kept[i - prefix] < 0) return -1;
  const i64 row = prefix + kept[i - prefix];
  return row < rows ? row : rows - 1;
}

// The inverse: which token of its sample a row of x became, or -1 where it was dropped.
BP_FN i64 token_of_row(const i32* kept, i64 row, i64 prefix, i32 count) {
  if (row < prefix) return row;
  i32 low = 0, high = count;
  while (low < high) {
    const i32 middle = (low + high) / 2;
    if (kept[middle] < row - prefix) low = middle + 1;
    else high = middle;
  }
  return low < count && kept[low] == row - prefix ? prefix + low : -1;
}

// The sample that packed token `at` belongs to, `samples` where it is past the last.
BP_FN i64 sample_of(const i32* cu_seqlens, i64 samples, i64 at) {
  i64 low = 0, high = samples;
  while (low < high) {
    const i64 middle = (low + high) / 2;
    if (cu_seqlens[middle + 1] <= at) low = middle + 1;
    else high = middle;
  }
  return low;
}

#ifdef __CUDACC__
// One warp for all samples: lengths by bisection, added up 32 at a time.
__global__ void kept_lengths_kernel(const i32* kept, i64 samples, i32 kmax, i64 prefix, i32* cu_seqlens) {
  const i32 lane = threadIdx.x;
  i32 before = 0;
  if (lane == 0) cu_seqlens[0] = 0;
  for (i64 base = 0; base < samples; base += 32) {
    const i64 b = base + lane;
    i32 sum = b < samples ? i32(prefix) + kept_count(kept + b * kmax, kmax) : 0;
    for (i32 step = 1; step < 32; step *= 2) {
      const i32 other = __shfl_up_sync(0xffffffffu, sum, step);
      if (lane >= step) sum += other;
    }
    if (b < samples) cu_seqlens[b + 1] = before + sum;
    before += __shfl_sync(0xffffffffu, sum, 31);
  }
}

// One warp per output row. Strides of x and `units`, the row's length, count V. `cu_seqlens` is null when padded.
template <typename V>
__global__ void gather_tokens_kernel(const V* x, i64 batch_stride, i64 row_stride, const i32* kept,
                                     const i32* cu_seqlens, i64 samples, i64 prefix, i64 rows, i32 kmax, i64 units,
                                     i64 outputs, V* tokens, i32* positions, bool* mask) {
  const i64 at = i64(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (at >= outputs) return;
  const i64 b = cu_seqlens ? sample_of(cu_seqlens, samples, at) : at / (prefix + kmax);
  const i64 i = b == samples ? prefix + kmax : cu_seqlens ? at - cu_seqlens[b] : at % (prefix + kmax);
  const i64 row = source_row(kept + b * kmax, i, prefix, rows, kmax);
  const V* from = x + b * batch_stride + row * row_stride;
  for (i64 u = threadIdx.x % 32; u < units; u += 32) tokens[at * units + u] = row < 0 ? V{} : from[u];
  if (threadIdx.x % 32 == 0) {
    positions[at] = row < 0 ? 0 : i32(row);
    if (mask) mask[at] = row >= 0;
  }
}

// One warp per row of dX: its token's gradient or zeros, so every row is written once.
template <typename V>
__global__ void gather_tokens_backward_kernel(const V* grad, const i32* kept, const i32* cu_seqlens, i64 samples,
                                              i64 prefix, i64 rows, i32 kmax, i64 units, i64 grad_rows, V* dx) {
  const i64 at = i64(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (at >= samples * rows) return;
  const i64 b = at / rows;
  const i32* mine = kept + b * kmax;
  const i64 token = token_of_row(mine, at % rows, prefix, kept_count(mine, kmax));
  const i64 from = (cu_seqlens ? i64(cu_seqlens[b]) : b * (prefix + kmax)) + token;
  const bool dropped = token < 0 || from < 0 || from >= grad_rows;
  for (i64 u = threadIdx.x % 32; u < units; u += 32) dx[at * units + u] = dropped ? V{} : grad[from * units + u];
}
#endif

}  // namespace budgetprune
