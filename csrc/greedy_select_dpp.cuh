// greedy_select_dpp.cuh: the dpp method of greedy_select.cuh on a GPU.
//
// A token costs as many rows of c as there are tokens chosen before it. While those are few, one block per sample does
// the whole choice in one launch. Where they are many, one multiprocessor cannot read them fast enough: then there is a
// launch per token, and every 64 columns of every sample have a block.
#pragma once
#include "greedy_select.cuh"

namespace budgetprune {

#ifdef __CUDACC__

constexpr i32 dpp_stage = 1024;  // entries of c of the chosen token that are held at a time, a multiple of 4
constexpr i32 dpp_tile = 64;     // columns of a block in a launch per token

// d^2 of token i before anything is chosen.
template <typename T, typename F>
__device__ void begin_variance(const T* similarity, F weight, i32 n, i32 i, F* variance, F* limit) {
  const F own = scaled(weight, static_cast<F>(similarity[i64(i) * n + i]), weight);
  limit[i] = negligible(own);
  variance[i] = own <= limit[i] ? F(0) : own;
}

// `product` and the products of `held` entries of the chosen token with those of another; c is the other's first, and
// the next is n on.
template <typename F>
__device__ F with_products(const F* column, const F* c, i32 held, i32 n, F product) {
  i32 r = 0;
#pragma unroll 4
  for (; r + 4 <= held; r += 4, c += 4 * i64(n))
    product = add_rn(product, four_products(column[r], c[0], column[r + 1], c[n], column[r + 2], c[2 * i64(n)],
                                            column[r + 3], c[3 * i64(n)]));
  if (r < held)
    product = add_rn(product, four_products(column[r], c[0], column[r + 1], r + 1 < held ? c[n] : F(0), column[r + 2],
                                            r + 2 < held ? c[2 * i64(n)] : F(0), F(0), F(0)));
  return product;
}

// column[r] = entry `chosen` of row base + r of c, and zeros up to a multiple of 4. Returns how many there are.
template <typename F>
__device__ i32 stage_column(const F* factor, i32 base, i32 rows, i32 n, i32 chosen, F* column) {
  const i32 held = rows - base < dpp_stage ? rows - base : dpp_stage;
  if (base > 0) __syncthreads();
  for (i32 r = threadIdx.x; r < (held + 3) / 4 * 4; r += blockDim.x)
    column[r] = r < held ? factor[i64(base + r) * n + chosen] : F(0);
  __syncthreads();
  return held;
}

// One block per sample, all in one launch, for kmax <= dpp_stage; a column of c belongs to one thread. c is
// [B, kmax, n]; d^2 and the limits below which it counts as 0 are in `scratch`, [B, 2, n], or where that is null in
// shared memory.
template <typename T>
__global__ void __launch_bounds__(1024)
    dpp_kernel(const T* similarity, const T* relevance, const i32* keep, i32 n, i32 kmax,
               typename KeyOf<T>::Float* factor, typename KeyOf<T>::Float* scratch, i32* kept) {
  using F = typename KeyOf<T>::Float;
  using Key = typename KeyOf<T>::Key;
  __shared__ Best<Key> slots[64];
  __shared__ i32 warp_sums[33];
  alignas(16) __shared__ F column[dpp_stage];
  BP_DYNAMIC_SHARED(bytes);
  const i64 sample = blockIdx.x;
  const i32 k = count_of(keep, sample, kmax), me = threadIdx.x, threads = blockDim.x;
  F* const variance = scratch ? scratch + sample * 2 * n : reinterpret_cast<F*>(bytes);
  F* const limit = variance + n;
  similarity += sample * n * n;
  factor += sample * kmax * n;
  if (relevance) relevance += sample * n;
  const auto weight = [&](i32 i) { return relevance ? static_cast<F>(relevance[i]) : F(1); };

  Best<Key> best{0, 0x7fffffff};
  for (i32 i = me; i < n; i += threads) {
    begin_variance(similarity, weight(i), n, i, variance, limit);
    take_better(best, radix_key(variance[i]), i);
  }
  i32 rows = 0;  // of c: tokens that added something to the span
  for (i32 t = 0; t < k; ++t) {
    const Best<Key> choice = block_best(best, slots + 32 * (t % 2));
    const i32 chosen = choice.at;
    const F chosen_variance = float_of(choice.key);
    const bool adds = chosen_variance > F(0) && t + 1 < k;  // false for 0 and NaN; the same on every thread
    best = {0, 0x7fffffff};
    if (chosen % threads == me) variance[chosen] = F(-1);
    if (!adds) {
      for (i32 i = me; i < n; i += threads) take_better(best, radix_key(variance[i]), i);
      continue;
    }
    const T* const row = similarity + i64(chosen) * n;
    const F root = sqrt_rn(chosen_variance), chosen_weight = weight(chosen);
    F* const next = factor + i64(rows) * n;
    stage_column(factor, 0, rows, n, chosen, column);
    for (i32 i = me; i < n; i += threads) {
      const F entry = scaled(chosen_weight, static_cast<F>(row[i]), weight(i));
      const F product = with_products(column, factor + i, rows, n, F(0));
      const F e = cholesky_entry(entry, product, root), left = variance_left(variance[i], e, limit[i]);
      next[i] = e;
      variance[i] = left;
      take_better(best, radix_key(left), i);
    }
    ++rows;
  }
  write_taken(n, k, kmax, warp_sums, kept + sample * kmax, [&](i32 i) { return variance[i] == F(-1); });
}

// The same, a launch per token. What one launch leaves to the next, `turn` 0 or 1 for each after the other: the best
// token of every tile, as a key and a position, and how many rows c has.
template <typename Key>
struct DppTurns {
  Key* keys;  // [2, B, tiles]
  i32* at;    // [2, B, tiles]
  i32* rows;  // [2, B]
  i32 samples, tiles;
  __device__ i64 tile(i32 turn, i32 sample, i32 tile) const {
    return (i64(turn) * samples + sample) * tiles + tile;
  }
};

template <typename T>
__global__ void __launch_bounds__(64)
    dpp_begin_kernel(const T* similarity, const T* relevance, i32 n, typename KeyOf<T>::Float* scratch,
                     DppTurns<typename KeyOf<T>::Key> turns) {
  using F = typename KeyOf<T>::Float;
  using Key = typename KeyOf<T>::Key;
  __shared__ Best<Key> slots[32];
  const i32 sample = i32(blockIdx.x / turns.tiles), tile = i32(blockIdx.x % turns.tiles);
  const i32 i = tile * dpp_tile + i32(threadIdx.x);
  F* const variance = scratch + i64(sample) * 2 * n;
  Best<Key> best{0, 0x7fffffff};
  if (i < n) {
    const F weight = relevance ? static_cast<F>(relevance[i64(sample) * n + i]) : F(1);
    begin_variance(similarity + i64(sample) * n * n, weight, n, i, variance, variance + n);
    best = {radix_key(variance[i]), i};
  }
  best = block_best(best, slots);
  if (threadIdx.x > 0) return;
  turns.keys[turns.tile(0, sample, tile)] = best.key;
  turns.at[turns.tile(0, sample, tile)] = best.at;
  if (tile == 0) turns.rows[sample] = 0;
}

template <typename T>
__global__ void __launch_bounds__(64)
    dpp_step_kernel(const T* similarity, const T* relevance, const i32* keep, i32 n, i32 kmax, i32 t,
                    typename KeyOf<T>::Float* factor, typename KeyOf<T>::Float* scratch,
                    DppTurns<typename KeyOf<T>::Key> turns) {
  using F = typename KeyOf<T>::Float;
  using Key = typename KeyOf<T>::Key;
  __shared__ Best<Key> slots[64];
  alignas(16) __shared__ F column[dpp_stage];
  const i32 sample = i32(blockIdx.x / turns.tiles), tile = i32(blockIdx.x % turns.tiles);
  const i32 k = count_of(keep, sample, kmax), i = tile * dpp_tile + i32(threadIdx.x);
  if (t >= k) return;  // the same for the whole sample, now and in every later launch
  F* const variance = scratch + i64(sample) * 2 * n;
  if (relevance) relevance += i64(sample) * n;
  factor += i64(sample) * kmax * n;

  Best<Key> best{0, 0x7fffffff};
  for (i32 other = threadIdx.x; other < turns.tiles; other += dpp_tile)
    take_better(best, turns.keys[turns.tile(t % 2, sample, other)], turns.at[turns.tile(t % 2, sample, other)]);
  const Best<Key> choice = block_best(best, slots);
  const F chosen_variance = float_of(choice.key);
  const i32 chosen = choice.at, rows = turns.rows[(t % 2) * turns.samples + sample];
  const bool adds = chosen_variance > F(0) && t + 1 < k;
  if (tile == 0 && threadIdx.x == 0) turns.rows[((t + 1) % 2) * turns.samples + sample] = rows + adds;
  F left = i < n ? i == chosen ? F(-1) : variance[i] : F(0);
  if (adds) {
    const F chosen_weight = relevance ? static_cast<F>(relevance[chosen]) : F(1);
    F entry = 0, product = 0;
    if (i < n) {
      const F near = static_cast<F>(similarity[(i64(sample) * n + chosen) * n + i]);
      entry = scaled(chosen_weight, near, relevance ? static_cast<F>(relevance[i]) : F(1));
    }
    for (i32 base = 0; base < rows; base += dpp_stage) {
      const i32 held = stage_column(factor, base, rows, n, chosen, column);
      if (i < n) product = with_products(column, factor + i64(base) * n + i, held, n, product);
    }
    if (i < n) {
      const F e = cholesky_entry(entry, product, sqrt_rn(chosen_variance));
      factor[i64(rows) * n + i] = e;
      left = variance_left(left, e, variance[n + i]);
    }
  }
  if (i < n) variance[i] = left;
  best = i < n ? Best<Key>{radix_key(left), i} : Best<Key>{0, 0x7fffffff};
  best = block_best(best, slots + 32);
  if (threadIdx.x > 0) return;
  turns.keys[turns.tile((t + 1) % 2, sample, tile)] = best.key;
  turns.at[turns.tile((t + 1) % 2, sample, tile)] = best.at;
}

template <typename T>
__global__ void __launch_bounds__(256) dpp_end_kernel(const T* scratch, const i32* keep, i32 n, i32 kmax, i32* kept) {
  __shared__ i32 warp_sums[33];
  const i64 sample = blockIdx.x;
  const T* const variance = scratch + sample * 2 * n;
  write_taken(n, count_of(keep, sample, kmax), kmax, warp_sums, kept + sample * kmax,
              [&](i32 i) { return static_cast<typename KeyOf<T>::Float>(variance[i]) < 0; });
}
#endif

}  // namespace budgetprune
