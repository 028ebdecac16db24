// gated_attention_tiles_backward.cuh: the gradients of gated_attention on tensor cores. Every sum has one owner.
//
//   delta_kernel   delta [B, H, Q] = do . o, and lse in powers of two, infinite where a query sees no kept key
//   dq             64 queries a block, over the kept keys they see
//   dk, dv, dgate  64 listed keys a block, over the heads of their group and the queries that see them. Kept keys take
//                  all four products; dropped ones the two that their gate needs, and get zeros in dk and dv.
#pragma once
#include "gated_attention_tiles.cuh"

#ifdef __CUDACC__
namespace budgetprune {

// A warp a row.
template <typename T>
__global__ void __launch_bounds__(128) delta_kernel(const T* grad, const T* out, const float* lse, i64 rows, i64 d,
                                                    float* delta, float* lse2) {
  const i64 row = i64(blockIdx.x) * 4 + threadIdx.x / 32;
  if (row >= rows) return;
  float dot = 0;
  for (i64 c = threadIdx.x % 32; c < d; c += 32) dot += float(grad[row * d + c]) * float(out[row * d + c]);
  dot = warp_total(dot);
  if (threadIdx.x % 32 != 0) return;
  const float infinite = __uint_as_float(0x7f800000u);
  delta[row] = dot;
  lse2[row] = lse[row] == -infinite ? infinite : lse[row] * log2_e;
}

template <typename T, i32 depth>
__global__ void __launch_bounds__(128, 2)
    gated_dq_tiles(GatedShape n, const T* grad, const T* q, const T* k, const T* v, const float* gate, const i32* order,
                   const i32* counts, const float* lse2, const float* delta, T* dq) {
  constexpr i32 tile = gated_rows * TileRows<depth>::stride;
  BP_DYNAMIC_SHARED(bytes);
  T* const queries = reinterpret_cast<T*>(bytes);
  T* const upstream = queries + tile;
  T* const keys = queries + 2 * tile;    // two tiles
  T* const values = queries + 4 * tile;  // two tiles
  __shared__ KeyTile facts[2];
  const QueryBlock at(n);
  const i32 warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, d = i32(n.d);
  const i32* list = order + at.b * n.keys;
  const T *key_rows = k + at.kv_row * n.d, *value_rows = v + at.kv_row * n.d;
  const i64 last = at.first + gated_rows - 1 < n.queries ? at.first + gated_rows - 1 : n.queries - 1;
  const i32 count = count_below(list, counts[2 * at.b], keys_seen(last, n.queries, n.keys, n.causal));
  const i32 steps = (count + gated_rows - 1) / gated_rows;
  const auto fetch = [&](i32 step) {
    const i32 first = step * gated_rows;
    const auto place = [=](i32 row) { return first + row < count ? list[first + row] : -1; };
    fetch_rows_at<depth>(keys + step % 2 * tile, key_rows, d, n.d, gated_rows, place);
    fetch_rows_at<depth>(values + step % 2 * tile, value_rows, d, n.d, gated_rows, place);
    fetch_key_facts(facts[step % 2], list, first, count, gate + at.b * n.keys);
  };
  fetch_rows<depth>(queries, q + at.row * n.d, at.first, i32(n.queries), d, n.d, gated_rows);
  fetch_rows<depth>(upstream, grad + at.row * n.d, at.first, i32(n.queries), d, n.d, gated_rows);
  if (steps > 0) fetch(0);
  copy_async_commit();
  const float infinite = __uint_as_float(0x7f800000u), scale2 = n.scale * log2_e, cap2 = gate_exponent_cap * log2_e;
  const i32 mine = warp * 16 * TileRows<depth>::stride;
  i64 seen[2];
  float my_lse[2], my_delta[2];
  for (i32 half = 0; half < 2; ++half) {
    const i64 i = at.first + warp * 16 + g + 8 * half;
    seen[half] = keys_seen(i, n.queries, n.keys, n.causal);
    my_lse[half] = i < n.queries ? lse2[at.row + i] : infinite;
    my_delta[half] = i < n.queries ? delta[at.row + i] : 0.0f;
  }
  float sum[depth / 8][4] = {};
  for (i32 step = 0; step < steps; ++step) {
    if (step + 1 < steps) fetch(step + 1);
    copy_async_commit();
    copy_async_wait<1>();
    __syncthreads();
    const KeyTile& of = facts[step % 2];
#pragma unroll 1
    for (i32 base = 0; base < gated_rows; base += 32) {
      float s[4][4], slope[4][4];
      products_of_rows<depth>(s, queries + mine, keys + step % 2 * tile, base);
      products_of_rows<depth>(slope, upstream + mine, values + step % 2 * tile, base);
#pragma unroll
      for (i32 i = 0; i < 4; ++i)
#pragma unroll
        for (i32 e = 0; e < 4; ++e) {
          const i32 column = base + 8 * i + 2 * t + e % 2;
          float x = s[i][e] * scale2 + of.bias[column] - my_lse[e / 2];
          x = x > cap2 ? cap2 : x;
          const bool sees = of.position[column] < seen[e / 2] && my_lse[e / 2] != infinite;
          s[i][e] = sees ? exp2f(x) * (slope[i][e] - my_delta[e / 2]) : 0.0f;
        }
      add_weighted_rows<depth>(sum, s, keys + step % 2 * tile, base);
    }
    __syncthreads();
  }
  copy_async_wait<0>();
#pragma unroll
  for (i32 half = 0; half < 2; ++half) {
    const i64 i = at.first + warp * 16 + g + 8 * half;
    if (i < n.queries) store_row<depth>(dq + (at.row + i) * n.d, sum, half, n.scale, d);
  }
}

// grid: key tiles * kv heads * batch. `parts` [B, Hkv, N].
template <typename T, i32 depth, bool kept>
__global__ void __launch_bounds__(128, 1)
    gated_dkv_tiles(GatedShape n, const T* grad, const T* q, const T* k, const T* v, const float* gate,
                    const i32* order, const i32* counts, const float* lse2, const float* delta, T* dk, T* dv,
                    float* parts) {
  constexpr i32 tile = gated_rows * TileRows<depth>::stride, stride = TileRows<depth>::stride;
  BP_DYNAMIC_SHARED(bytes);
  T* const keys = reinterpret_cast<T*>(bytes);
  T* const values = keys + tile;
  T* const queries = keys + 2 * tile;   // two tiles
  T* const upstream = keys + 4 * tile;  // two tiles
  __shared__ float of_lse[2][gated_rows], of_delta[2][gated_rows];
  const i32 tiles = i32((n.keys + gated_rows - 1) / gated_rows), d = i32(n.d), group = i32(n.heads / n.kv_heads);
  const i32 kv = i32(blockIdx.x) / tiles % i32(n.kv_heads);
  const i64 b = i32(blockIdx.x) / tiles / i32(n.kv_heads), kv_row = (b * n.kv_heads + kv) * n.keys;
  const i32 begin = kept ? 0 : counts[2 * b], end = kept ? counts[2 * b] : i32(n.keys);
  const i32 exist = counts[2 * b] + counts[2 * b + 1];  // listed from there on: no key at all
  const i32 first = begin + i32(blockIdx.x) % tiles * gated_rows;
  if (first >= end) return;
  const i32 warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const i32* list = order + b * n.keys;
  const auto place = [=](i32 row) { return first + row < end ? list[first + row] : -1; };
  const float infinite = __uint_as_float(0x7f800000u), scale2 = n.scale * log2_e, cap2 = gate_exponent_cap * log2_e;

  i64 position[2];
  float bias[2], inverse[2];
  bool exists[2];
  for (i32 half = 0; half < 2; ++half) {
    const i32 row = warp * 16 + g + 8 * half, j = place(row);
    exists[half] = j >= 0 && first + row < exist;
    position[half] = j;
    const float of = exists[half] ? gate[b * n.keys + j] : 1.0f;
    bias[half] = kept ? log2f(of) : 0.0f;
    inverse[half] = kept ? inverse_gate(of) : 0.0f;
  }
  // Queries before this one see no key of the tile: kept and dropped keys ascend, and what does not exist is not seen.
  const i64 off = n.keys - n.queries, lowest = list[first];
  const i32 start = !n.causal || lowest < off ? 0 : i32((lowest - off) / gated_rows);
  const i32 query_tiles = i32((n.queries + gated_rows - 1) / gated_rows) - start;
  const i32 steps = first < exist && query_tiles > 0 ? query_tiles * group : 0;
  const auto fetch = [&](i32 step) {
    const i32 i0 = (start + step % query_tiles) * gated_rows;
    const i64 row = (b * n.heads + kv * group + step / query_tiles) * n.queries;
    fetch_rows<depth>(queries + step % 2 * tile, q + row * n.d, i0, i32(n.queries), d, n.d, gated_rows);
    fetch_rows<depth>(upstream + step % 2 * tile, grad + row * n.d, i0, i32(n.queries), d, n.d, gated_rows);
    if (threadIdx.x < gated_rows) {
      const i32 i = i0 + i32(threadIdx.x);
      of_lse[step % 2][threadIdx.x] = i < n.queries ? lse2[row + i] : infinite;
      of_delta[step % 2][threadIdx.x] = i < n.queries ? delta[row + i] : 0.0f;
    }
  };
  fetch_rows_at<depth>(keys, k + kv_row * n.d, d, n.d, gated_rows, place);
  fetch_rows_at<depth>(values, v + kv_row * n.d, d, n.d, gated_rows, place);
  if (steps > 0) fetch(0);
  copy_async_commit();
  float dkey[kept ? depth / 8 : 1][4] = {}, dvalue[kept ? depth / 8 : 1][4] = {}, dgate[2] = {0, 0};
  for (i32 step = 0; step < steps; ++step) {
    if (step + 1 < steps) fetch(step + 1);
    copy_async_commit();
    copy_async_wait<1>();
    __syncthreads();
    const i64 i0 = i64(start + step % query_tiles) * gated_rows;
    const T *q_tile = queries + step % 2 * tile, *grad_tile = upstream + step % 2 * tile;
#pragma unroll 1
    for (i32 base = 0; base < gated_rows; base += 32) {
      float s[4][4], slope[4][4];
      products_of_rows<depth>(s, keys + warp * 16 * stride, q_tile, base);
      products_of_rows<depth>(slope, values + warp * 16 * stride, grad_tile, base);
#pragma unroll
      for (i32 i = 0; i < 4; ++i)
#pragma unroll
        for (i32 e = 0; e < 4; ++e) {
          const i32 half = e / 2, column = base + 8 * i + 2 * t + e % 2;
          const float query_lse = of_lse[step % 2][column];
          const bool sees = exists[half] && query_lse != infinite &&
                            position[half] < keys_seen(i0 + column, n.queries, n.keys, n.causal);
          float x = s[i][e] * scale2 + bias[half] - query_lse;
          x = x > cap2 ? cap2 : x;
          const float y = sees ? exp2f(x) : 0.0f;
          slope[i][e] = sees ? slope[i][e] - of_delta[step % 2][column] : 0.0f;
          dgate[half] += (kept ? y * inverse[half] : y / (1.0f + y)) * slope[i][e];
          slope[i][e] *= y;
          s[i][e] = y;
        }
      if constexpr (kept) {
        add_weighted_rows<depth>(dvalue, s, grad_tile, base);
        add_weighted_rows<depth>(dkey, slope, q_tile, base);
      }
    }
    __syncthreads();
  }
  copy_async_wait<0>();
#pragma unroll
  for (i32 half = 0; half < 2; ++half) {
    const float slope = row_total(dgate[half]);
    const i64 j = position[half];
    if (j < 0) continue;
    if (t == 0) parts[kv_row + j] = exists[half] ? slope : 0.0f;
    if constexpr (kept) {
      store_row<depth>(dk + (kv_row + j) * n.d, dkey, half, n.scale, d);
      store_row<depth>(dv + (kv_row + j) * n.d, dvalue, half, 1.0f, d);
    } else {
      for (i32 c = 2 * t; c < d; c += 8)
        *reinterpret_cast<u32*>(dk + (kv_row + j) * n.d + c) = *reinterpret_cast<u32*>(dv + (kv_row + j) * n.d + c) = 0;
    }
  }
}

}  // namespace budgetprune
#endif
