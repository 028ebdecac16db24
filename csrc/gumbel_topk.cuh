// gumbel_topk.cuh: keep the k tokens of each row whose logits, with noise on them, are highest; and the gradient.
//
//   logits  [rows, n]     any float type; ranked as float32
//   keep    [rows]        how many of each row, or null: kmax of every row
//   key     [2]|[rows, 2] (seed, offset) of the noise: one for all rows (element row * n + i) or one a row (element i)
//   gate    [rows, n]     exactly 1 where kept, else 0
//   kept    [rows, kmax]  ascending positions, padded with -1
//   stats   [rows, 2]     what backward needs: (center, offset) of inclusion.cuh, or (shift, sum) of the softmax
// Ties go to the lower position. Gumbel top-k: Kool et al., "Stochastic Beams and Where to Find Them", ICML 2019.
#pragma once
#include "inclusion.cuh"
#include "select_topk.cuh"

namespace budgetprune {

struct GumbelTopk {  // the numbers that all rows share
  i32 n, kmax;
  double tau;
  Estimator estimator;
  Noise noise;
};

struct RowNoise {  // where a row's noise begins
  u64 seed, offset, first;
};
BP_FN RowNoise row_noise(const i64* key, bool key_per_row, i64 row, i32 n) {
  return key_per_row ? RowNoise{u64(key[2 * row]), u64(key[2 * row + 1]), 0}
                     : RowNoise{u64(key[0]), u64(key[1]), u64(row) * u64(n)};
}

// f(i, word) for every i < n, once, by some thread of the team: word holds element i's random bits.
template <typename Team, typename F>
BP_FN void for_each_word(const Team& team, const RowNoise& at, i32 n, F f) {
  const u64 first_block = at.first / 4, blocks = (at.first + u64(n) + 3) / 4 - first_block;
  for (u64 b = u64(team.rank()) * Team::batch; b < blocks; b += u64(team.size()) * Team::batch) {
    u32 words[4 * Team::batch];
    const i32 count = i32(blocks - b < Team::batch ? blocks - b : Team::batch);
    for (i32 j = 0; j < count; ++j) philox(at.seed, at.offset + first_block + b + u64(j), words + 4 * j);
    const i32 base = i32(i64(4 * (first_block + b)) - i64(at.first));  // below 0 where a row begins inside a block
    const i32 begin = base < 0 ? 0 : base, end = n - base < 4 * count ? n : base + 4 * count;
    if constexpr (Team::batch == 1) {  // constant indices, so that the words stay in registers
      for (i32 e = 0; e < 4; ++e)
        if (begin <= base + e && base + e < end) f(base + e, words[e]);
    } else {
      for (i32 i = begin; i < end; ++i) f(i, words[i - base]);
    }
  }
}

// A denormal is 0 here: CUDA code built with -ftz=true sees it so, and all builds must rank alike.
BP_FN float flushed(float x) { return (as_bits(x) & 0x7f800000u) ? x : 0.0f; }

// The keys of the noisy logits. `tau` is 1 where the estimator ranks by logits + noise.
template <Noise kind, typename Team, typename T>
BP_FN void draw_keys(const Team& team, const T* logits, const RowNoise& at, i32 n, float tau, u32* keys) {
  if (kind == Noise::none) {
    for (i32 i = team.rank(); i < n; i += team.size())
      keys[i] = radix_key(flushed(flushed(float(logits[i])) / tau));
    return;
  }
  for_each_word(team, at, n, [=](i32 i, u32 word) {
    keys[i] = radix_key(add_rn(flushed(flushed(float(logits[i])) / tau), noise_of<kind>(word)));
  });
}

template <Noise kind, typename Team>
BP_FN void draw_noise(const Team& team, const RowNoise& at, i32 n, u32* bits) {
  for_each_word(team, at, n, [=](i32 i, u32 word) { bits[i] = as_bits(noise_of<kind>(word)); });
}
template <typename Team>
BP_FN void draw_noise(const Team& team, const RowNoise& at, i32 n, Noise kind, u32* bits) {
  switch (kind) {
    case Noise::gumbel: draw_noise<Noise::gumbel>(team, at, n, bits); break;
    case Noise::logistic: draw_noise<Noise::logistic>(team, at, n, bits); break;
    case Noise::none: draw_noise<Noise::none>(team, at, n, bits); break;
  }
}

// stats of the softmax of z / tau, z(i) being logits + noise and key(i) the key of that.
template <typename Team, typename V, typename F, typename G>
BP_FN void softmax_stats(const Team& team, i32 n, V tau, V* stats, F z, G key) {
  typename KeyOf<V>::Key top = 0;
  for (i32 i = team.rank(); i < n; i += team.size()) top = key(i) > top ? key(i) : top;
  const V shift = float_of(team.max(top));
  V total, unused;
  team.sum(n, [=](i32 i, V& p, V& zero) { p = exp_of((z(i) - shift) / tau), zero = 0; }, total, unused);
  if (team.rank() == 0) stats[0] = shift, stats[1] = total;
}

// stats of race and fermi. offset: NaN where a logit is NaN; infinite where no token can change places (K = 0, K = N,
// the K-th noisy logit is infinite, or all finite ones are kept). `keys` may be overwritten.
template <typename Team, typename T, typename V>
BP_FN void inclusion_stats(const Team& team, const T* logits, u32* keys, i32 k, float kth, const GumbelTopk& op,
                           V* stats) {
  i32 candidates, unknown;  // those above -inf; those that are NaN
  team.sum(op.n, [=](i32 i, i32& above, i32& nan) {
    above = keys[i] > 0x007fffffu;
    nan = keys[i] == 0xffffffffu;
  }, candidates, unknown);
  const bool fixed = k <= 0 || candidates <= k || !(kth - kth == 0.0f);
  V offset = V(as_float(unknown > 0 ? 0x7fc00000u : k <= 0 ? 0xff800000u : 0x7f800000u));
  const V center = fixed ? V(0) : V(kth), tau = V(op.tau);
  if (!fixed && unknown == 0)
    offset = op.estimator == Estimator::race ? solve_offset<Estimator::race>(team, logits, op.n, k, tau, center, keys)
                                             : solve_offset<Estimator::fermi>(team, logits, op.n, k, tau, center, keys);
  if (team.rank() == 0) stats[0] = center, stats[1] = offset;
}

// One row. `keys` is n words of scratch and `counts` 256, shared by the team; `stats` may be null.
template <typename Team, typename T, typename V>
BP_FN void gumbel_topk_row(const Team& team, const GumbelTopk& op, const T* logits, i32 k, const RowNoise& at,
                           i32* counts, u32* keys, T* gate, i32* kept, V* stats) {
  const float tau = op.estimator == Estimator::softmax ? 1.0f : float(op.tau);
  switch (op.noise) {
    case Noise::gumbel: draw_keys<Noise::gumbel>(team, logits, at, op.n, tau, keys); break;
    case Noise::logistic: draw_keys<Noise::logistic>(team, logits, at, op.n, tau, keys); break;
    case Noise::none: draw_keys<Noise::none>(team, logits, at, op.n, tau, keys); break;
  }
  for (i32 i = team.rank(); i < op.n; i += team.size()) gate[i] = T(0.0f);
  team.sync();
  const u32 kth = select_topk_row(team, keys, op.n, k, op.kmax, counts, kept);
  team.sync();
  for (i32 j = team.rank(); j < k; j += team.size()) gate[kept[j]] = T(1.0f);
  if (!stats) return;
  if (op.estimator == Estimator::softmax) {
    if constexpr (sizeof(V) == sizeof(u32)) {  // the keys are those of logits + noise
      softmax_stats(team, op.n, V(op.tau), stats, [=](i32 i) { return float_of(keys[i]); },
                    [=](i32 i) { return keys[i]; });
    } else {
      team.sync();
      draw_noise(team, at, op.n, op.noise, keys);
      team.sync();
      const auto z = [=](i32 i) { return V(logits[i]) + V(as_float(keys[i])); };
      softmax_stats(team, op.n, V(op.tau), stats, z, [=](i32 i) { return radix_key(z(i)); });
    }
  } else {
    inclusion_stats(team, logits, keys, k, float_of(kth), op, stats);
  }
}

#ifdef __CUDACC__
// Doubles take twice the registers, and so half the threads.
template <typename T>
constexpr i32 widest_block = sizeof(T) == sizeof(double) ? 512 : 1024;

// One block per row, for rows that registers do not hold and for doubles. Keys live in `scratch` [rows, n], or in n
// words of dynamic shared memory where it is null.
template <typename T>
__global__ void __launch_bounds__(widest_block<T>, 1)
    gumbel_topk_kernel(GumbelTopk op, const T* logits, const i32* keep, const i64* key, bool key_per_row, u32* scratch,
                       T* gate, i32* kept, typename KeyOf<T>::Float* stats) {
  BP_DYNAMIC_SHARED(shared_keys);
  __shared__ i32 counts[256], warp_sums[32];
  __shared__ double warp_totals[64];
  const i64 row = blockIdx.x, at = row * op.n;
  gumbel_topk_row(BlockTeam{warp_sums, warp_totals}, op, logits + at, count_of(keep, row, op.kmax),
                  row_noise(key, key_per_row, row, op.n), counts,
                  scratch ? scratch + at : reinterpret_cast<u32*>(shared_keys), gate + at, kept + row * op.kmax,
                  stats ? stats + 2 * row : nullptr);
}
#endif

}  // namespace budgetprune
