// gated_attention_tiles.cuh: gated_attention on tensor cores, for half and bfloat16 with D a multiple of 8 up to 128.
//
//   order_keys_kernel   order [B, N]: the kept keys ascending, then dropped ones that exist, then all others; counts
//                       [B, 2]: kept, dropped
//   forward             FlashAttention-2's loop (Dao 2023) over the kept keys alone, fetched through `order`: its cost
//                       follows what is kept
//   backward            gated_attention_tiles_backward.cuh
// 64 queries a block, 16 a warp; 64 keys a step, two steps in flight. Scores count in powers of two.
#pragma once
#include "attention_tiles.cuh"
#include "gated_attention.cuh"

#ifdef __CUDACC__
namespace budgetprune {

struct GatedShape {
  i64 batch, heads, kv_heads, queries, keys, d;
  bool causal;
  float scale;
};

constexpr i32 gated_rows = 64, gated_threads = 128;

// One block per sample.
__global__ void __launch_bounds__(256) order_keys_kernel(const float* gate, const bool* mask, i32 keys, i32* order,
                                                         i32* counts) {
  __shared__ i32 sums[32];
  const BlockTeam team{sums};
  const i64 at = i64(blockIdx.x) * keys;
  const auto kind = [&](i32 j) {  // 1: kept, 2: dropped, 0: neither
    if (j >= keys || (mask && !mask[at + j])) return 0;
    return gate_keeps(gate[at + j]) ? 1 : 2;
  };
  u32 kept = 0, dropped = 0, all;
  for (i32 j = i32(threadIdx.x); j < keys; j += 256) kept += kind(j) == 1, dropped += kind(j) == 2;
  team.before(kept, all), kept = all;
  team.before(dropped, all), dropped = all;
  if (threadIdx.x == 0) counts[2 * blockIdx.x] = i32(kept), counts[2 * blockIdx.x + 1] = i32(dropped);
  u32 next[3] = {kept + dropped, 0, kept};  // where the next of each kind goes
  for (i32 base = 0; base < keys; base += 256) {
    const i32 j = base + i32(threadIdx.x), mine = kind(j);
    u32 total;  // three counts share a word
    const u32 before = team.before(j < keys ? 1u << (10 * mine) : 0u, total);
    if (j < keys) order[at + i64(next[mine] + (before >> (10 * mine) & 1023u))] = j;
    for (i32 k = 0; k < 3; ++k) next[k] += total >> (10 * k) & 1023u;
  }
}

// How many of the first `count` of an ascending list lie below `limit`.
__device__ inline i32 count_below(const i32* list, i32 count, i64 limit) {
  i32 low = 0, high = count;
  while (low < high) {
    const i32 middle = (low + high) / 2;
    if (list[middle] < limit) low = middle + 1;
    else high = middle;
  }
  return low;
}

// Where a block of queries stands, and the keys of its sample. grid: query tiles * heads * batch.
struct QueryBlock {
  i32 first, h;
  i64 b, row, kv_row;  // first query row of (b, h), first key row of (b, kv)
  __device__ explicit QueryBlock(const GatedShape& n) {
    const i32 tiles = i32((n.queries + gated_rows - 1) / gated_rows), heads = i32(n.heads);
    // The last tiles see the most keys: they begin first.
    first = (tiles - 1 - i32(blockIdx.x) % tiles) * gated_rows;
    h = i32(blockIdx.x) / tiles % heads;
    b = i32(blockIdx.x) / tiles / heads;
    row = (b * heads + h) * n.queries;
    kv_row = (b * n.kv_heads + h / (heads / i32(n.kv_heads))) * n.keys;
  }
};

// A tile of listed keys: position, and log2 of the gate; absent ones lie beyond every query at -infinity.
struct KeyTile {
  i32 position[gated_rows];
  float bias[gated_rows];
};
__device__ inline void fetch_key_facts(KeyTile& tile, const i32* list, i32 first, i32 count, const float* gate) {
  if (threadIdx.x >= gated_rows) return;
  const bool present = first + i32(threadIdx.x) < count;
  const i32 j = present ? list[first + threadIdx.x] : 0x7fffffff;
  tile.position[threadIdx.x] = j;
  tile.bias[threadIdx.x] = present ? log2f(gate[j]) : __uint_as_float(0xff800000u);
}

template <typename T, i32 depth>
__global__ void __launch_bounds__(128, 2)
    gated_forward_tiles(GatedShape n, const T* q, const T* k, const T* v, const float* gate, const i32* order,
                        const i32* counts, T* out, float* lse) {
  constexpr i32 tile = gated_rows * TileRows<depth>::stride;
  BP_DYNAMIC_SHARED(bytes);
  T* const queries = reinterpret_cast<T*>(bytes);
  T* const keys = queries + tile;        // two tiles
  T* const values = queries + 3 * tile;  // two tiles
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
  if (steps > 0) fetch(0);
  copy_async_commit();
  const float infinite = __uint_as_float(0x7f800000u), scale2 = n.scale * log2_e;
  const T* my_rows = queries + warp * 16 * TileRows<depth>::stride;
  i64 seen[2];
  for (i32 half = 0; half < 2; ++half)
    seen[half] = keys_seen(at.first + warp * 16 + g + 8 * half, n.queries, n.keys, n.causal);
  float best[2] = {-infinite, -infinite}, total[2] = {0, 0}, sum[depth / 8][4] = {};
  for (i32 step = 0; step < steps; ++step) {
    if (step + 1 < steps) fetch(step + 1);
    copy_async_commit();
    copy_async_wait<1>();
    __syncthreads();
    const KeyTile& of = facts[step % 2];
#pragma unroll 1
    for (i32 base = 0; base < gated_rows; base += 32) {
      float s[4][4];
      products_of_rows<depth>(s, my_rows, keys + step % 2 * tile, base);
      float top[2] = {best[0], best[1]};
#pragma unroll
      for (i32 i = 0; i < 4; ++i)
#pragma unroll
        for (i32 e = 0; e < 4; ++e) {
          const i32 column = base + 8 * i + 2 * t + e % 2;
          s[i][e] = of.position[column] < seen[e / 2] ? s[i][e] * scale2 + of.bias[column] : -infinite;
          top[e / 2] = s[i][e] > top[e / 2] ? s[i][e] : top[e / 2];
        }
#pragma unroll
      for (i32 half = 0; half < 2; ++half) {
        for (i32 lanes = 1; lanes < 4; lanes *= 2) {
          const float other = __shfl_xor_sync(full_warp, top[half], lanes);
          top[half] = other > top[half] ? other : top[half];
        }
        const float shift = top[half] == -infinite ? 0.0f : top[half];  // no finite score yet
        const float shrink = exp2f(best[half] - shift);
        total[half] *= shrink;
#pragma unroll
        for (i32 i = 0; i < 4; ++i)
#pragma unroll
          for (i32 e = 2 * half; e < 2 * half + 2; ++e) total[half] += s[i][e] = exp2f(s[i][e] - shift);
#pragma unroll
        for (i32 i = 0; i < depth / 8; ++i) sum[i][2 * half] *= shrink, sum[i][2 * half + 1] *= shrink;
        best[half] = top[half];
      }
      add_weighted_rows<depth>(sum, s, values + step % 2 * tile, base);
    }
    __syncthreads();
  }
  copy_async_wait<0>();
#pragma unroll
  for (i32 half = 0; half < 2; ++half) {
    const float all = row_total(total[half]);
    const i64 i = at.first + warp * 16 + g + 8 * half;
    if (i >= n.queries) continue;
    const bool none = best[half] == -infinite && !(all != all);
    store_row<depth>(out + (at.row + i) * n.d, sum, half, none ? 0.0f : 1.0f / all, d);
    if (t == 0) lse[at.row + i] = none ? -infinite : (best[half] + log2f(all)) / log2_e;
  }
}

}  // namespace budgetprune
#endif
