// greedy_select.cuh: keep k tokens that differ from one another, chosen one at a time.
//
//   similarity [B, n, n]    s(i, j) in row i, column j; what is asked of token j against a chosen token i is in row i
//   relevance  [B, n]       dpp only, or null: ones
//   keep       [B]          how many of each sample, or null: kmax of every sample
//   kept       [B, kmax]    ascending positions, padded with -1
//
// max_min: the token whose distance 1 - s to the nearest chosen one is largest; first, the token whose nearest other
// token is farthest. dpp: the token with the largest conditional variance d^2 under L = diag(r) S diag(r), by rows c of
// an incremental Cholesky factor. Every operation is rounded by itself and in one order, so that CPU and GPU agree bit
// for bit. Ties go to the lower position; NaN ranks first.
#pragma once
#include "select_topk.cuh"

namespace budgetprune {

#ifdef __CUDA_ARCH__
BP_FN double mul_rn(double a, double b) { return __dmul_rn(a, b); }
BP_FN double add_rn(double a, double b) { return __dadd_rn(a, b); }
BP_FN float div_rn(float a, float b) { return __fdiv_rn(a, b); }
BP_FN double div_rn(double a, double b) { return __ddiv_rn(a, b); }
BP_FN float sqrt_rn(float a) { return __fsqrt_rn(a); }
BP_FN double sqrt_rn(double a) { return __dsqrt_rn(a); }
#else
BP_FN double mul_rn(double a, double b) { return a * b; }
BP_FN double add_rn(double a, double b) { return a + b; }
BP_FN float div_rn(float a, float b) { return a / b; }
BP_FN double div_rn(double a, double b) { return a / b; }
BP_FN float sqrt_rn(float a) { return std::sqrt(a); }
BP_FN double sqrt_rn(double a) { return std::sqrt(a); }
#endif

// ------------------------------------------------------------------------------------------------ max_min, per token
//
// The distance of a token to those chosen is held as an unsigned integer, so that the least of several and the largest
// of all are taken exactly: 0 for NaN, else radix key + 1. A radix key is at least 0x007fffff, which leaves 1 free to
// mark a token that is taken; all ones is a token that nothing was compared with yet.
template <typename Key>
BP_FN Key untouched() { return ~Key(0); }

template <typename F>
BP_FN typename KeyOf<F>::Key distance_of(F similarity) {
  return radix_key(F(1) - similarity) + 1;  // NaN has the key of all ones, and wraps to 0
}
template <typename F>
BP_FN typename KeyOf<F>::Key nearer(typename KeyOf<F>::Key distance, F similarity) {
  const typename KeyOf<F>::Key other = distance_of(similarity);
  return distance == 1 || distance < other ? distance : other;
}
// What the next token is chosen by: NaN all ones, a taken token 0.
template <typename Key>
BP_FN Key rank_of(Key distance) { return distance - 1; }

// The larger of two similarities; NaN stays. What is less similar than all has the key of -inf.
template <typename F>
BP_FN F minus_infinity() {
  return sizeof(F) == 4 ? F(float_of(u32(0x007fffffu))) : F(float_of(u64(0x000fffffffffffffull)));
}
template <typename F>
BP_FN F more_similar(F best, F other) { return (other > best) | (other != other) ? other : best; }

// ---------------------------------------------------------------------------------------------------- dpp, per token
//
// A token that is taken has d^2 = -1. A d^2 that rounding cannot tell from 0 counts as 0: the token adds nothing to
// the span of those chosen.
template <typename F>
BP_FN F negligible(F own) {  // 2^-18 of what the token began with, or 2^-47 of it in double: 32 units in the last place
  return own > F(0) ? mul_rn(own, F(1) / F(sizeof(F) == 4 ? 1ll << 18 : 1ll << 47)) : F(0);
}

template <typename F>
BP_FN F scaled(F chosen, F similarity, F own) { return mul_rn(mul_rn(chosen, similarity), own); }

// One group of four rows of c, as a sum that does not wait for itself.
template <typename F>
BP_FN F four_products(F a0, F b0, F a1, F b1, F a2, F b2, F a3, F b3) {
  return add_rn(add_rn(mul_rn(a0, b0), mul_rn(a1, b1)), add_rn(mul_rn(a2, b2), mul_rn(a3, b3)));
}

// The new entry of c, given L between the chosen token and this one, their product so far, and the chosen token's d.
template <typename F>
BP_FN F cholesky_entry(F entry, F product, F root) { return div_rn(add_rn(entry, -product), root); }

template <typename F>
BP_FN F variance_left(F variance, F entry, F limit) {
  const F left = add_rn(variance, -mul_rn(entry, entry));
  return variance < F(0) ? variance : left <= limit ? F(0) : left;
}

#ifdef __CUDACC__

template <typename Key>
struct Best {
  Key key;
  i32 at;
};

template <typename Key>
__device__ void take_better(Best<Key>& mine, Key key, i32 at) {
  if (key > mine.key || (key == mine.key && at < mine.at)) mine = {key, at};
}

template <typename Key>
__device__ void warp_best(Best<Key>& mine) {
  for (i32 step = 16; step > 0; step /= 2) {
    const Key key = __shfl_xor_sync(0xffffffffu, mine.key, step);
    const i32 at = __shfl_xor_sync(0xffffffffu, mine.at, step);
    take_better(mine, key, at);
  }
}

// The best of the whole block, on every thread. One barrier: `slots`, 32 of them, must be others in the next call.
template <typename Key>
__device__ Best<Key> block_best(Best<Key> mine, Best<Key>* slots) {
  warp_best(mine);
  const i32 lane = threadIdx.x % 32;
  if (lane == 0) slots[threadIdx.x / 32] = mine;
  __syncthreads();
  mine = lane < i32(blockDim.x) / 32 ? slots[lane] : Best<Key>{0, 0x7fffffff};
  warp_best(mine);
  return mine;
}

// The positions i < n with taken(i), in order.
template <typename F>
__device__ void write_taken(i32 n, i32 k, i32 kmax, i32* warp_sums, i32* kept, F taken) {
  const BlockTeam team{warp_sums};
  for (i32 i = k + team.rank(); i < kmax; i += team.size()) kept[i] = -1;
  i32 written = 0;
  for (i32 base = 0; base < n; base += team.size()) {
    const i32 i = base + team.rank();
    const bool mine = i < n && taken(i);
    i32 total;
    const i32 slot = written + team.scan(mine, total);
    if (mine) kept[slot] = i;
    written += total;
  }
}

// The distance of every token to its nearest other. A block of 8 warps takes 32 columns, so a row is read whole.
template <typename T>
__global__ void __launch_bounds__(256)
    nearest_token_kernel(const T* similarity, i32 n, u32 tiles, typename KeyOf<T>::Key* nearest) {
  using F = typename KeyOf<T>::Float;
  __shared__ F partial[8][32];
  const i64 sample = blockIdx.x / tiles;
  const i32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const i32 column = i32(blockIdx.x % tiles) * 32 + lane;
  F best = minus_infinity<F>();
  if (column < n) {
    const T* const from = similarity + sample * n * n + column;
#pragma unroll 4
    for (i32 i = warp; i < n; i += 8) {
      const F other = static_cast<F>(from[i64(i) * n]);
      if (i != column) best = more_similar(best, other);
    }
  }
  partial[warp][lane] = best;
  __syncthreads();
  if (warp == 0 && column < n) {
    for (i32 w = 1; w < 8; ++w) best = more_similar(best, partial[w][lane]);
    nearest[sample * n + column] = distance_of(best);
  }
}

// One block per sample. The distances are in `scratch`, [B, n], or where that is null in shared memory.
template <typename T>
__global__ void __launch_bounds__(1024)
    max_min_kernel(const T* similarity, const typename KeyOf<T>::Key* nearest, const i32* keep, i32 n, i32 kmax,
                   typename KeyOf<T>::Key* scratch, i32* kept) {
  using F = typename KeyOf<T>::Float;
  using Key = typename KeyOf<T>::Key;
  __shared__ Best<Key> slots[64];
  __shared__ i32 warp_sums[33];
  BP_DYNAMIC_SHARED(bytes);
  const i64 sample = blockIdx.x;
  const i32 k = count_of(keep, sample, kmax), me = threadIdx.x, threads = blockDim.x;
  Key* const distance = scratch ? scratch + sample * n : reinterpret_cast<Key*>(bytes);
  similarity += sample * n * n;
  Best<Key> best{0, 0x7fffffff};
  for (i32 i = me; i < n; i += threads) {
    distance[i] = untouched<Key>();
    take_better(best, rank_of(nearest[sample * n + i]), i);
  }
  for (i32 t = 0; t < k; ++t) {
    const i32 chosen = block_best(best, slots + 32 * (t % 2)).at;
    best = {0, 0x7fffffff};
    const T* const row = similarity + i64(chosen) * n;
    const i32 last = t + 1 == k ? 0 : n;  // after the last choice no distance is needed
    for (i32 base = me; base < last; base += 4 * threads) {
      F near[4];
#pragma unroll
      for (i32 u = 0; u < 4; ++u) {
        const i32 i = base + u * threads;
        near[u] = i < n ? static_cast<F>(row[i]) : F(0);
      }
#pragma unroll
      for (i32 u = 0; u < 4; ++u) {
        const i32 i = base + u * threads;
        if (i >= n) continue;
        const Key now = i == chosen ? Key(1) : nearer(distance[i], near[u]);
        distance[i] = now;
        take_better(best, rank_of(now), i);
      }
    }
    if (last == 0 && chosen % threads == me) distance[chosen] = 1;
  }
  write_taken(n, k, kmax, warp_sums, kept + sample * kmax, [&](i32 i) { return distance[i] == 1; });
}
#endif

}  // namespace budgetprune
