// gumbel_topk_registers.cuh: gumbel_topk and its gradient for rows that registers hold, N up to about 8192.
//
// A thread's tokens are whole blocks of Philox, so that each block is drawn once. One reading of the logits, one
// writing of gate and kept; the backward draws what it needs again.
#pragma once
#include "gumbel_topk_backward.cuh"
#include "row_in_registers.cuh"

#ifdef __CUDACC__
namespace budgetprune {

template <Noise kind>
__device__ void noise_of_four(const RowNoise& at, u64 block, float (&noise)[4]) {
  u32 words[4];
  if (kind != Noise::none) philox(at.seed, at.offset + block, words);
  for (i32 e = 0; e < 4; ++e) noise[e] = noise_of<kind>(words[e]);
}

// The keys of logits + noise, as draw_keys of gumbel_topk.cuh makes them; 0 outside the row.
template <Noise kind, i32 items, typename T>
__device__ void draw_keys_of(const T* logits, const RowNoise& at, i32 first, i32 n, float tau, u32 (&keys)[items]) {
  const bool aligned = is_aligned(logits, first);
#pragma unroll
  for (i32 j = 0; j < items; j += 4) {
    float x[4], noise[4];
    load_four(logits, first + j, n, aligned, x, 0.0f);
    noise_of_four<kind>(at, u64(i64(at.first) + first + j) / 4, noise);
    for (i32 e = 0; e < 4; ++e) {
      const float theta = flushed(flushed(x[e]) / tau), z = kind == Noise::none ? theta : add_rn(theta, noise[e]);
      keys[j + e] = first + j + e >= 0 && first + j + e < n ? radix_key(z) : 0u;
    }
  }
}

// stats as inclusion_stats and softmax_stats of gumbel_topk.cuh give them. Rates are 0 where a thread has no token.
template <typename Group, i32 items, typename T>
__device__ void stats_in_registers(const Group& group, const GumbelTopk& op, const T* logits, i32 first, i32 k, u32 kth,
                                   const u32 (&keys)[items], float* stats) {
  const float tau = float(op.tau);
  if (op.estimator == Estimator::softmax) {
    u32 top = 0;
#pragma unroll
    for (i32 j = 0; j < items; ++j) top = keys[j] > top ? keys[j] : top;
    top = group.highest(top);
    const float shift = float_of(top);
    float total = 0;
#pragma unroll
    for (i32 j = 0; j < items; ++j) total += keys[j] != 0 ? exp_of((float_of(keys[j]) - shift) / tau) : 0.0f;
    total = group.total(total);
    if (group.rank() == 0) stats[0] = shift, stats[1] = total;
    return;
  }
  u32 known = 0;  // tokens above -inf in the low half, NaN ones in the high half
#pragma unroll
  for (i32 j = 0; j < items; ++j) known += (keys[j] > 0x007fffffu ? 1u : 0u) + (keys[j] == full_warp ? 0x10000u : 0u);
  known = group.total(known);
  const float threshold = float_of(kth);
  const bool unknown = known >> 16, fixed = k <= 0 || i32(known & 0xffffu) <= k || !(threshold - threshold == 0.0f);
  float offset = as_float(unknown ? 0x7fc00000u : k <= 0 ? 0xff800000u : 0x7f800000u);
  const float center = fixed ? 0.0f : threshold;
  if (!fixed && !unknown) {
    const bool aligned = is_aligned(logits, first), race = op.estimator == Estimator::race;
    float rates[items];
#pragma unroll
    for (i32 j = 0; j < items; j += 4) {
      float x[4];
      load_four(logits, first + j, op.n, aligned, x, as_float(0xff800000u));
      for (i32 e = 0; e < 4; ++e) rates[j + e] = rate_of(x[e], tau, center);
    }
    offset = find_offset<float>(k, [&](float at, float& total, float& slope) {
      const float scale = exp_of(at);
      total = slope = 0;
#pragma unroll
      for (i32 j = 0; j < items; ++j) {
        float s, d;
        if (race) inclusion_at_rate<Estimator::race>(rates[j] * scale, s, d);
        else inclusion_at_rate<Estimator::fermi>(rates[j] * scale, s, d);
        total += s, slope += d;
      }
      group.totals(total, slope);
    });
  }
  if (group.rank() == 0) stats[0] = center, stats[1] = offset;
}

template <typename Group, i32 items, typename T>
__device__ void gumbel_topk_in_registers(const Group& group, i32 threads, const GumbelTopk& op, const T* logits, i32 k,
                                         const RowNoise& at, T* gate, i32* kept, float* stats) {
  const float tau = op.estimator == Estimator::softmax ? 1.0f : float(op.tau);
  const i32 first = group.rank() * items - i32(at.first % 4);
  u32 keys[items], kth;
  switch (op.noise) {
    case Noise::gumbel: draw_keys_of<Noise::gumbel>(logits, at, first, op.n, tau, keys); break;
    case Noise::logistic: draw_keys_of<Noise::logistic>(logits, at, first, op.n, tau, keys); break;
    case Noise::none: draw_keys_of<Noise::none>(logits, at, first, op.n, tau, keys); break;
  }
  bool mine[items];
  keep_in_order(group, keys, first, k, kth, kept, mine);
  for (i32 i = k + group.rank(); i < op.kmax; i += threads) kept[i] = -1;
  const bool aligned = is_aligned(gate, first);
#pragma unroll
  for (i32 j = 0; j < items; j += 4) {
    float ones[4];
    for (i32 e = 0; e < 4; ++e) ones[e] = mine[j + e] ? 1.0f : 0.0f;
    store_four(gate, first + j, op.n, aligned, ones);
  }
  if (stats) stats_in_registers(group, op, logits, first, k, kth, keys, stats);
}

// weights times (grad - mean), the weights by estimator, all in registers.
template <typename Group, i32 items, typename T>
__device__ void gumbel_topk_backward_in_registers(const Group& group, const GumbelTopk& op, const T* grad,
                                                  const T* logits, const RowNoise& at, const float* stats, T* out) {
  const float center = stats[0], offset = stats[1], tau = float(op.tau);
  const i32 first = group.rank() * items - i32(at.first % 4);
  const bool aligned_grad = is_aligned(grad, first), aligned = is_aligned(logits, first);
  const bool softmax = op.estimator == Estimator::softmax, race = op.estimator == Estimator::race;
  const bool solved = softmax || offset - offset == 0.0f;  // infinite: nothing can change; NaN: nothing is known
  float g[items], weight[items], weighted = 0, total = 0;
#pragma unroll
  for (i32 j = 0; j < items; j += 4) {
    float x[4], up[4], noise[4] = {};
    load_four(grad, first + j, op.n, aligned_grad, up, 0.0f);
    load_four(logits, first + j, op.n, aligned, x, as_float(0xff800000u));
    if (softmax) {
      const u64 block = u64(i64(at.first) + first + j) / 4;
      if (op.noise == Noise::gumbel) noise_of_four<Noise::gumbel>(at, block, noise);
      if (op.noise == Noise::logistic) noise_of_four<Noise::logistic>(at, block, noise);
    }
    for (i32 e = 0; e < 4; ++e) {
      float s, d = 0;
      if (first + j + e >= 0 && first + j + e < op.n && solved) {
        if (softmax) d = exp_of((x[e] + noise[e] - center) / tau) / offset;
        else if (race) inclusion<Estimator::race>(x[e] / tau - center + offset, s, d);
        else inclusion<Estimator::fermi>(x[e] / tau - center + offset, s, d);
      }
      g[j + e] = up[e];
      weight[j + e] = d;
      weighted += d * up[e];
      total += d;
    }
  }
  group.totals(weighted, total);
  const float mean = total == 0.0f ? 0.0f : weighted / total;
  const bool aligned_out = is_aligned(out, first);
#pragma unroll
  for (i32 j = 0; j < items; j += 4) {
    float value[4];
    for (i32 e = 0; e < 4; ++e)
      value[e] = solved ? weight[j + e] * (g[j + e] - mean) / tau : offset != offset ? offset : 0.0f;
    store_four(out, first + j, op.n, aligned_out, value);
  }
}

// Four rows a block, a warp each.
template <typename T, i32 items>
__global__ void __launch_bounds__(128) gumbel_topk_warps(GumbelTopk op, const T* logits, const i32* keep,
                                                         const i64* key, bool key_per_row, i64 rows, T* gate, i32* kept,
                                                         float* stats) {
  const i64 row = i64(blockIdx.x) * 4 + threadIdx.x / 32;
  if (row >= rows) return;
  gumbel_topk_in_registers<WarpGroup, items>(
      WarpGroup{}, 32, op, logits + row * op.n, count_of(keep, row, op.kmax), row_noise(key, key_per_row, row, op.n),
      gate + row * op.n, kept + row * op.kmax, stats ? stats + 2 * row : nullptr);
}

template <typename T, i32 items>
__global__ void __launch_bounds__(1024, 1) gumbel_topk_block(GumbelTopk op, const T* logits, const i32* keep,
                                                          const i64* key, bool key_per_row, i64, T* gate, i32* kept,
                                                          float* stats) {
  __shared__ BlockGroup::Shared shared;
  const i64 row = blockIdx.x;
  gumbel_topk_in_registers<BlockGroup, items>(
      BlockGroup{&shared}, i32(blockDim.x), op, logits + row * op.n, count_of(keep, row, op.kmax),
      row_noise(key, key_per_row, row, op.n), gate + row * op.n, kept + row * op.kmax,
      stats ? stats + 2 * row : nullptr);
}

template <typename T, i32 items>
__global__ void __launch_bounds__(128) gumbel_topk_backward_warps(GumbelTopk op, const T* grad, const T* logits,
                                                                  const i64* key, bool key_per_row, i64 rows,
                                                                  const float* stats, T* out) {
  const i64 row = i64(blockIdx.x) * 4 + threadIdx.x / 32, at = row * op.n;
  if (row >= rows) return;
  gumbel_topk_backward_in_registers<WarpGroup, items>(WarpGroup{}, op, grad + at, logits + at,
                                                      row_noise(key, key_per_row, row, op.n), stats + 2 * row,
                                                      out + at);
}

template <typename T, i32 items>
__global__ void __launch_bounds__(1024, 1) gumbel_topk_backward_block(GumbelTopk op, const T* grad, const T* logits,
                                                                   const i64* key, bool key_per_row, i64,
                                                                   const float* stats, T* out) {
  __shared__ BlockGroup::Shared shared;
  const i64 row = blockIdx.x, at = row * op.n;
  gumbel_topk_backward_in_registers<BlockGroup, items>(BlockGroup{&shared}, op, grad + at, logits + at,
                                                       row_noise(key, key_per_row, row, op.n), stats + 2 * row,
                                                       out + at);
}

}  // namespace budgetprune
#endif
