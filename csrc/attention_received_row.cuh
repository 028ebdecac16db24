// attention_received_row.cuh: one query a sample (last, cls), on the GPU: a decode step without values.
//
// scores_of_row_kernel  s [B, H, N] = scale q . k in float, and of every 64 keys their maximum and sum of exponentials.
//                       K is read once for up to `group` heads of its kv head, 16 bytes a lane, four loads in flight.
// mean_of_heads_kernel  the softmax of each head from those, mean over heads in their order: no atomics, and the same
//                       bits every time. Its last block of a sample may go on to rank (fastv_select.cuh).
#pragma once
#include "attention_received.cuh"
#include "team.cuh"

#ifdef __CUDACC__
namespace budgetprune {

constexpr i32 row_threads = 128;

// The query of a sample, by the whole block; -1: none exists. `slots` is 32 ints of shared memory.
__device__ inline i64 chosen_row(QueryRows rows, const bool* exists, i64 queries, i64 keys, i32* slots) {
  if (rows != QueryRows::last) return 0;
  if (!exists || queries != keys) return queries - 1;
  u32 best = 0;  // 1 + position
  for (i64 i = threadIdx.x; i < queries; i += blockDim.x) best = exists[i] ? u32(i) + 1u : best;
  best = __reduce_max_sync(full_warp, best);
  if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = i32(best);
  __syncthreads();
  for (i32 w = 0; w < i32(blockDim.x) / 32; ++w) best = u32(slots[w]) > best ? u32(slots[w]) : best;
  return i64(best) - 1;
}

template <typename T, i32 count>
struct alignas(sizeof(T) * count) Lane {
  T at[count];
};

// s of up to `group` heads for 64 keys, into tile [group][64]. A team of `lanes` neighbours shares a key.
template <typename T, i32 group>
__device__ void scores_wide(const T* q, i64 q_stride, const T* k, i64 k_stride, i32 heads, i32 present, i64 d,
                            float scale, float* tile) {
  constexpr i32 width = 16 / sizeof(T), unroll = 4;
  i32 lanes = 1;
  while (lanes * width < d) lanes *= 2;  // at most 32: the launcher sees to it
  const i32 lane = threadIdx.x % 32, part = lane % lanes, team = lane / lanes, teams = 32 / lanes;
  const bool active = part * width < d;
  float query[group][width];
#pragma unroll
  for (i32 g = 0; g < group; ++g) {
    const bool here = active && g < heads;
    const Lane<T, width> x = here ? *reinterpret_cast<const Lane<T, width>*>(q + g * q_stride + part * width)
                                  : Lane<T, width>{};
#pragma unroll
    for (i32 j = 0; j < width; ++j) query[g][j] = here ? float(x.at[j]) * scale : 0.0f;
  }
  const i32 per_warp = keys_per_block / (row_threads / 32), first = i32(threadIdx.x / 32) * per_warp;
  for (i32 base = first; base < first + per_warp; base += teams * unroll) {
    Lane<T, width> key[unroll];
#pragma unroll
    for (i32 u = 0; u < unroll; ++u) {
      const i32 j = base + u * teams + team;
      const bool here = active && j < first + per_warp && j < present;
      key[u] = here ? *reinterpret_cast<const Lane<T, width>*>(k + j * k_stride + part * width) : Lane<T, width>{};
    }
#pragma unroll
    for (i32 u = 0; u < unroll; ++u) {
      const i32 j = base + u * teams + team;
#pragma unroll
      for (i32 g = 0; g < group; ++g) {
        float dot = 0;
        if (active) {
#pragma unroll
          for (i32 e = 0; e < width; ++e) dot += query[g][e] * float(key[u].at[e]);
        }
        for (i32 step = lanes / 2; step > 0; step /= 2) dot += __shfl_xor_sync(full_warp, dot, step);
        if (part == 0 && g < heads && j < first + per_warp) tile[g * keys_per_block + j] = dot;
      }
    }
  }
}

// The same for any type, width and alignment: a warp a key, an element a lane.
template <typename T, typename A>
__device__ void scores_plain(const T* q, i64 q_stride, const T* k, i64 k_stride, i32 heads, i32 present, i64 d, A scale,
                             A* tile) {
  for (i32 j = i32(threadIdx.x / 32); j < present; j += row_threads / 32)
    for (i32 g = 0; g < heads; ++g) {
      A dot = 0;
      for (i64 c = threadIdx.x % 32; c < d; c += 32) dot += A(q[g * q_stride + c]) * scale * A(k[j * k_stride + c]);
      dot = warp_total(dot);
      if (threadIdx.x % 32 == 0) tile[g * keys_per_block + j] = dot;
    }
}

// Grid: splits * head tiles * kv heads * batch. `stats` [B, H, splits, 2]; `tickets` [B], or null, is set to 0.
template <typename T, i32 group, bool wide>
__global__ void __launch_bounds__(128, 3)
    scores_of_row_kernel(ReceivedShape n, const T* q, const T* k, const bool* mask, i32 rows, double scale,
                         typename Accumulate<T>::type* s, typename Accumulate<T>::type* stats, u32* tickets) {
  using A = typename Accumulate<T>::type;
  __shared__ A tile[group * keys_per_block];
  __shared__ i32 slots[32];
  const i64 per_kv = n.heads / n.kv_heads, tiles = (per_kv + group - 1) / group;
  const i64 splits = (n.keys + keys_per_block - 1) / keys_per_block;
  const i64 split = blockIdx.x % splits, head_tile = blockIdx.x / splits % tiles;
  const i64 kv = blockIdx.x / (splits * tiles) % n.kv_heads, b = blockIdx.x / (splits * tiles * n.kv_heads);
  if (tickets && threadIdx.x == 0 && split == 0 && head_tile == 0 && kv == 0) tickets[b] = 0;
  const bool* exists = mask ? mask + b * n.keys : nullptr;
  const i64 row = chosen_row(QueryRows(rows), exists, n.queries, n.keys, slots);
  const i64 first_head = kv * per_kv + head_tile * group, first_key = split * keys_per_block;
  const i32 heads = i32(per_kv - head_tile * group < group ? per_kv - head_tile * group : group);
  const i32 present = i32(n.keys - first_key < keys_per_block ? n.keys - first_key : keys_per_block);
  if (row >= 0) {
    const T* queries = q + b * n.q_strides[0] + first_head * n.q_strides[1] + row * n.q_strides[2];
    const T* keys = k + b * n.k_strides[0] + kv * n.k_strides[1] + first_key * n.k_strides[2];
    if constexpr (wide)
      scores_wide<T, group>(queries, n.q_strides[1], keys, n.k_strides[2], heads, present, n.d, float(scale), tile);
    else
      scores_plain<T, A>(queries, n.q_strides[1], keys, n.k_strides[2], heads, present, n.d, A(scale), tile);
  }
  __syncthreads();
  const A nothing = -A(1) / A(0);
  for (i32 g = i32(threadIdx.x / 32); g < heads; g += row_threads / 32) {  // a warp a head, two keys a lane
    A value[2], best = nothing, sum = 0;
    for (i32 e = 0; e < 2; ++e) {
      const i32 j = i32(threadIdx.x % 32) + 32 * e;
      const bool here = row >= 0 && j < present && (!exists || exists[first_key + j]);
      value[e] = here ? tile[g * keys_per_block + j] : nothing;
      best = value[e] > best ? value[e] : best;
      if (j < present) s[(b * n.heads + first_head + g) * n.keys + first_key + j] = value[e];
    }
    for (i32 step = 16; step > 0; step /= 2) {
      const A other = __shfl_xor_sync(full_warp, best, step);
      best = other > best ? other : best;
    }
    for (i32 e = 0; e < 2; ++e)
      sum += value[e] == nothing ? A(0) : exp(value[e] - (best == nothing ? A(0) : best));  // NaN is not hidden
    sum = warp_total(sum);
    if (threadIdx.x % 32 == 0) {
      A* out = stats + ((b * n.heads + first_head + g) * splits + split) * 2;
      out[0] = best, out[1] = sum;
    }
  }
}

// scores[b, j] for the keys of a block, from s and stats. `lse` is 2 * heads numbers of shared memory.
template <typename A>
__device__ void mean_of_heads(const ReceivedShape& n, i64 b, i64 first_key, const A* s, const A* stats,
                              const bool* exists, A* lse, A* scores) {
  const i64 splits = (n.keys + keys_per_block - 1) / keys_per_block;
  const A nothing = -A(1) / A(0);
  for (i64 h = threadIdx.x / 32; h < n.heads; h += blockDim.x / 32) {
    const A* of = stats + (b * n.heads + h) * splits * 2;
    A best = nothing, sum = 0;
    for (i64 p = threadIdx.x % 32; p < splits; p += 32) best = of[2 * p] > best ? of[2 * p] : best;
    for (i32 step = 16; step > 0; step /= 2) {
      const A other = __shfl_xor_sync(full_warp, best, step);
      best = other > best ? other : best;
    }
    // A part without a finite score counts nothing, unless it holds a NaN.
    for (i64 p = threadIdx.x % 32; p < splits; p += 32)
      sum += of[2 * p] == nothing ? of[2 * p + 1] : of[2 * p + 1] * exp(of[2 * p] - best);
    sum = warp_total(sum);
    if (threadIdx.x % 32 == 0) lse[2 * h] = best, lse[2 * h + 1] = sum;
  }
  __syncthreads();
  const i64 j = first_key + threadIdx.x;
  if (j >= n.keys) return;
  A total = 0;
  if (!exists || exists[j]) {
    for (i64 h = 0; h < n.heads; ++h) {
      const A value = s[(b * n.heads + h) * n.keys + j], sum = lse[2 * h + 1];
      // No key of this head has a finite score: 0 / 0 where this one exists, as a softmax over -infinity.
      total += exp(value - lse[2 * h]) / sum;
    }
    total /= A(n.heads);
  }
  scores[b * n.keys + j] = total;
}

// Grid: chunks of blockDim.x keys * batch. A sample without a query to look from gives 0.
template <typename A>
__global__ void __launch_bounds__(128, 6) mean_of_heads_kernel(ReceivedShape n, const A* s, const A* stats,
                                                            const bool* mask, i32 rows, A* scores) {
  BP_DYNAMIC_SHARED(bytes);
  __shared__ i32 slots[32];
  const i64 chunks = (n.keys + blockDim.x - 1) / blockDim.x, b = blockIdx.x / chunks;
  const i64 first_key = i64(blockIdx.x % chunks) * blockDim.x;
  const bool* exists = mask ? mask + b * n.keys : nullptr;
  if (chosen_row(QueryRows(rows), exists, n.queries, n.keys, slots) < 0) {
    if (first_key + threadIdx.x < n.keys) scores[b * n.keys + first_key + threadIdx.x] = 0;
    return;
  }
  mean_of_heads(n, b, first_key, s, stats, exists, reinterpret_cast<A*>(bytes), scores);
}

}  // namespace budgetprune
#endif
