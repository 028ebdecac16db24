// select_topk.cuh: keep the k best tokens of each row, in their own order.
//
//   scores  [rows, n]     any float type, higher is kept
//   keep    [rows]        how many of each row, or null: kmax of every row
//   kept    [rows, kmax]  ascending positions, padded with -1
// Ties go to the lower position, so CPU and GPU agree bit for bit.
// Radix select, 8 bits a pass: Alabi et al., "Fast k-Selection Algorithms for Graphics
// Processing Units", JEA 2012.
#pragma once
#include "team.cuh"

namespace budgetprune {

// Order-preserving key: a > b as floats <=> key(a) > key(b) as unsigned. -0 equals +0 and NaN ranks
// first, as in torch.sort. Integer work only, so NVRTC's flushing of denormals changes nothing.
BP_FN u32 radix_key(float score) {
  u32 bits;
  memcpy(&bits, &score, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0xffffffffu;
  if (bits == 0x80000000u) bits = 0u;
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
BP_FN u64 radix_key(double score) {
  u64 bits;
  memcpy(&bits, &score, sizeof bits);
  if ((bits & 0x7fffffffffffffffull) > 0x7ff0000000000000ull) return ~0ull;
  if (bits == 0x8000000000000000ull) bits = 0ull;
  return bits >> 63 ? ~bits : bits | 0x8000000000000000ull;
}
// The score of a key. NaN comes back as NaN, -0 as +0.
BP_FN float float_of(u32 key) {
  const u32 bits = key & 0x80000000u ? key & 0x7fffffffu : ~key;
  float score;
  memcpy(&score, &bits, sizeof score);
  return score;
}
BP_FN double float_of(u64 key) {
  const u64 bits = key >> 63 ? key & 0x7fffffffffffffffull : ~key;
  double score;
  memcpy(&score, &bits, sizeof score);
  return score;
}

template <typename T>
struct KeyOf {
  using Float = float;
  using Key = u32;
};
template <>
struct KeyOf<double> {
  using Float = double;
  using Key = u64;
};
template <>
struct KeyOf<u32> {  // keys already made
  using Key = u32;
};
template <>
struct KeyOf<u64> {
  using Key = u64;
};
template <typename T>
BP_FN typename KeyOf<T>::Key key_of(T score) {
  return radix_key(static_cast<typename KeyOf<T>::Float>(score));
}
BP_FN u32 key_of(u32 key) { return key; }
BP_FN u64 key_of(u64 key) { return key; }

// The highest digit that, with all higher ones, has at least `need` tokens; `need` becomes what is left for it.
template <typename Team>
BP_FN i32 digit_of_kth(const Team&, const i32* counts, i32& need) {
  i32 digit = 255;
  while (digit > 0 && counts[digit] < need) need -= counts[digit--];
  return digit;
}
#ifdef __CUDACC__
// Every warp of the block for itself: lane l has the eight digits from 255 - 8 l down.
__device__ inline i32 digit_of_kth(const BlockTeam&, const i32* counts, i32& need) {
  const i32 lane = threadIdx.x % 32, top = 255 - 8 * lane;
  u32 own = 0, all;
  for (i32 j = 0; j < 8; ++j) own += u32(counts[top - j]);
  i32 left = need - i32(warp_before(own, all)), digit = top;
  const u32 found = __ballot_sync(full_warp, left <= i32(own));
  while (digit > top - 7 && counts[digit] < left) left -= counts[digit--];
  const i32 from = found ? __ffs(i32(found)) - 1 : 31;
  need = __shfl_sync(full_warp, left, from);
  return __shfl_sync(full_warp, digit, from);
}
#endif

// The k-th best key of a row, and in `need` how many tokens with exactly that key stay.
// `counts` is 256 ints of scratch shared by the team. k must be at least 1.
template <typename Team, typename T>
BP_FN typename KeyOf<T>::Key kth_key(const Team& team, const T* scores, i32 n, i32 k, i32* counts, i32& need) {
  using Key = typename KeyOf<T>::Key;
  Key prefix = 0, mask = 0;
  need = k;
  for (i32 shift = 8 * i32(sizeof(Key)) - 8; shift >= 0; shift -= 8) {
    for (i32 b = team.rank(); b < 256; b += team.size()) counts[b] = 0;
    team.sync();
    for (i32 i = team.rank(); i < n; i += team.size()) {
      const Key key = key_of(scores[i]);
      if ((key & mask) == prefix) team.add(&counts[(key >> shift) & 255u], 1);
    }
    team.sync();
    prefix |= Key(digit_of_kth(team, counts, need)) << shift;  // from the same 256 counts, so all agree
    mask |= Key(255) << shift;
    team.sync();
  }
  return prefix;
}

// The same answer for a team of one, whose histograms would be a chain of single additions: one bit of the key a pass,
// each pass a comparison and a count, which are vectors, until exactly k keys are left. `keys` are keys already made.
// Then all tokens with the k-th key stay, and `need` is k.
template <typename Key>
BP_FN Key kth_key(const SerialTeam&, const Key* keys, i32 n, i32 k, i32*, i32& need) {
  Key low = 0;
  i32 left = n;  // keys from `low` on, never fewer than k
  for (Key bit = ~(~Key(0) >> 1); bit && left > k; bit >>= 1) {
    const Key middle = low | bit;
    i32 count = 0;
    for (i32 i = 0; i < n; ++i) count += keys[i] >= middle;
    if (count >= k) low = middle, left = count;
  }
  Key kth = ~Key(0);  // the lowest key from `low` on, which lower keys wrap around to lie above
  for (i32 i = 0; i < n; ++i) kth = Key(keys[i] - low) < kth ? Key(keys[i] - low) : kth;
  kth += low;
  need = k;
  if (left > k)
    for (i32 i = 0; i < n; ++i) need -= keys[i] > kth;
  return kth;
}

// Positions of the keys above kth and of the first `need` that equal it.
template <typename Team, typename T>
BP_FN void compact(const Team& team, const T* scores, i32 n, i32, typename KeyOf<T>::Key kth, i32 need, i32* kept) {
  i32 written = 0, equal_seen = 0;
  for (i32 base = 0; base < n; base += team.size()) {
    const i32 i = base + team.rank();
    const auto key = i < n ? key_of(scores[i]) : typename KeyOf<T>::Key(0);
    const bool equal = i < n && key == kth;
    i32 equal_total, keep_total;
    const i32 equal_before = equal_seen + team.scan(equal, equal_total);
    const bool keep = i < n && (key > kth || (equal && equal_before < need));
    const i32 slot = written + team.scan(keep, keep_total);
    if (keep) kept[slot] = i;
    equal_seen += equal_total;
    written += keep_total;
  }
}
#ifdef __CUDACC__
// For a block four tokens of each thread at a time: a row of 16384 takes four rounds. The two sums share a word.
template <typename T>
__device__ void compact(const BlockTeam& team, const T* scores, i32 n, i32, typename KeyOf<T>::Key kth, i32 need,
                        i32* kept) {
  i32 above_seen = 0, equal_seen = 0;
  for (i32 base = 0; base < n; base += 4 * team.size()) {
    const i32 first = base + 4 * team.rank();
    bool above[4], equal[4];
    u32 own = 0, all;
    for (i32 j = 0; j < 4; ++j) {
      const bool inside = first + j < n;
      const auto key = inside ? key_of(scores[first + j]) : typename KeyOf<T>::Key(0);
      above[j] = inside && key > kth;
      equal[j] = inside && key == kth;
      own += u32(above[j]) + (u32(equal[j]) << 16);
    }
    const u32 before = team.before(own, all);
    i32 higher = above_seen + i32(before & 0xffffu), same = equal_seen + i32(before >> 16);
    for (i32 j = 0; j < 4; ++j) {
      if (above[j] || (equal[j] && same < need)) kept[higher + (same < need ? same : need)] = first + j;
      higher += above[j];
      same += equal[j];
    }
    above_seen += i32(all & 0xffffu);
    equal_seen += i32(all >> 16);
  }
}
#endif
// For a team of one without a branch on the data: a position that is not kept is overwritten by the next one. Where
// `need` is k the first k keys from kth on stay, and each position waits for one addition only.
template <typename Key>
BP_FN void compact(const SerialTeam&, const Key* keys, i32 n, i32 k, Key kth, i32 need, i32* kept) {
  i32 i = 0, written = 0;
  if (need == k) {
    for (; written + 8 <= k && i + 8 <= n; i += 8) {
      for (i32 j = i; j < i + 8; ++j) {
        kept[written] = j;
        written += keys[j] >= kth;
      }
    }
    for (; written < k && i < n; ++i) {
      kept[written] = i;
      written += keys[i] >= kth;
    }
    return;
  }
  for (; written < k && i < n; ++i) {
    const i32 equal = keys[i] == kth;
    kept[written] = i;
    written += i32(keys[i] > kth) | (equal & i32(need > 0));
    need -= equal;
  }
}

// One row. Returns the k-th best key, or 0 for k = 0.
template <typename Team, typename T>
BP_FN typename KeyOf<T>::Key select_topk_row(const Team& team, const T* scores, i32 n, i32 k, i32 kmax, i32* counts,
                                             i32* kept) {
  using Key = typename KeyOf<T>::Key;
  for (i32 i = k + team.rank(); i < kmax; i += team.size()) kept[i] = -1;
  if (k <= 0) return Key(0);
  i32 need;
  const Key kth = kth_key(team, scores, n, k, counts, need);
  compact(team, scores, n, k, kth, need, kept);
  return kth;
}

// How many tokens of a row to keep, inside [0, kmax] whatever keep holds.
BP_FN i32 count_of(const i32* keep, i64 row, i32 kmax) {
  const i32 k = keep ? keep[row] : kmax;
  return k < 0 ? 0 : k > kmax ? kmax : k;
}

#ifdef __CUDACC__
// One block per row, for rows that registers do not hold. Read by nvcc through select_topk.cu and by NVRTC directly.
template <typename T>
__global__ void __launch_bounds__(1024, 1) select_topk_kernel(const T* scores, const i32* keep, i32 n, i32 kmax,
                                                            i32* kept) {
  __shared__ i32 counts[256], warp_sums[32];
  const i64 row = blockIdx.x;
  select_topk_row(BlockTeam{warp_sums}, scores + row * n, n, count_of(keep, row, kmax), kmax, counts,
                  kept + row * kmax);
}
#endif

}  // namespace budgetprune
