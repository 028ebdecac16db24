// row_in_registers.cuh: a row that a warp or a block holds in registers, each thread `items` neighbouring tokens.
//
// Group, the threads of one row:
//   rank()                      my place among them
//   total(x)                    sum of x over all, on every thread; u32, or float (fixed order)
//   totals(a, b)                the same of two floats at once
//   highest(x)                  over all, unsigned
//   before(x, all)              sum of x over lower ranks; all: over all
//   kth(keys, k, need)          the k-th highest key (k >= 1), and how many tokens with exactly that key stay
// WarpGroup needs no barrier: many short rows. BlockGroup spreads a row over a block: few rows, or long ones.
// Keys are those of select_topk.cuh; 0 is no token's key, and stands where a thread has no token.
#pragma once
#include "select_topk.cuh"

#ifdef __CUDACC__
namespace budgetprune {

struct WarpGroup {
  __device__ i32 rank() const { return threadIdx.x % 32; }
  __device__ u32 total(u32 x) const { return __reduce_add_sync(full_warp, x); }
  __device__ float total(float x) const { return warp_total(x); }
  __device__ void totals(float& a, float& b) const { a = warp_total(a), b = warp_total(b); }
  __device__ u32 highest(u32 x) const { return __reduce_max_sync(full_warp, x); }
  __device__ u32 before(u32 x, u32& all) const { return warp_before(x, all); }

  // One bit of the key a step, by counting: no memory at all (RTop-K, Xie et al. 2024, bisects values so; here keys,
  // which makes it exact).
  template <i32 items>
  __device__ u32 kth(const u32 (&keys)[items], i32 k, i32& need) const {
    u32 low = 0, left = full_warp;
    for (u32 bit = 0x80000000u; bit && left > u32(k); bit >>= 1) {
      const u32 middle = low | bit;
      u32 count = 0;
#pragma unroll
      for (i32 j = 0; j < items; ++j) count += keys[j] >= middle;
      count = total(count);
      if (count >= u32(k)) low = middle, left = count;
    }
    u32 smallest = full_warp, above = 0;
#pragma unroll
    for (i32 j = 0; j < items; ++j) smallest = keys[j] >= low && keys[j] < smallest ? keys[j] : smallest;
    smallest = __reduce_min_sync(full_warp, smallest);
#pragma unroll
    for (i32 j = 0; j < items; ++j) above += keys[j] > smallest;
    need = k - i32(total(above));
    return smallest;
  }
};

struct BlockGroup {
  struct Shared {
    i32 counts[4][256];
    u32 words[2][32];
    float numbers[2][2][32];
  };
  Shared* shared;
  mutable u32 turn = 0;  // two buffers take turns, so that one barrier a call is enough

  __device__ i32 rank() const { return threadIdx.x; }
  __device__ static i32 lane() { return threadIdx.x % 32; }
  __device__ static i32 warp() { return threadIdx.x / 32; }
  __device__ static i32 warps() { return blockDim.x / 32; }

  // `mine`, the same on all lanes of a warp; lane w gets that of warp w, or 0 where there is no such warp.
  __device__ u32 of_all_warps(u32 mine) const {
    u32* words = shared->words[turn++ & 1u];
    if (lane() == 0) words[warp()] = mine;
    __syncthreads();
    return lane() < warps() ? words[lane()] : 0u;
  }
  __device__ u32 total(u32 x) const {
    return __reduce_add_sync(full_warp, of_all_warps(__reduce_add_sync(full_warp, x)));
  }
  __device__ u32 highest(u32 x) const {
    return __reduce_max_sync(full_warp, of_all_warps(__reduce_max_sync(full_warp, x)));
  }
  __device__ u32 before(u32 x, u32& all) const {
    u32 of_warp;
    const u32 here = warp_before(x, of_warp), other = of_all_warps(of_warp);
    all = __reduce_add_sync(full_warp, other);
    return here + __reduce_add_sync(full_warp, lane() < warp() ? other : 0u);
  }
  __device__ void totals(float& a, float& b) const {
    a = warp_total(a), b = warp_total(b);
    float(&numbers)[2][32] = shared->numbers[turn++ & 1u];
    if (lane() == 0) numbers[0][warp()] = a, numbers[1][warp()] = b;
    __syncthreads();
    a = warp_total(lane() < warps() ? numbers[0][lane()] : 0.0f);
    b = warp_total(lane() < warps() ? numbers[1][lane()] : 0.0f);
  }
  __device__ float total(float x) const {
    float unused = 0;
    totals(x, unused);
    return x;
  }

  // Radix select, eight bits a pass and one barrier: every warp reads the histogram for itself.
  template <i32 items>
  __device__ u32 kth(const u32 (&keys)[items], i32 k, i32& need) const {
    for (i32 i = threadIdx.x; i < 4 * 256; i += blockDim.x) shared->counts[i / 256][i % 256] = 0;
    __syncthreads();
    u32 prefix = 0, mask = 0;
    need = k;
#pragma unroll
    for (i32 pass = 0; pass < 4; ++pass) {
      const i32 shift = 24 - 8 * pass;
#pragma unroll
      for (i32 j = 0; j < items; ++j)
        if (keys[j] != 0 && (keys[j] & mask) == prefix) atomicAdd(&shared->counts[pass][(keys[j] >> shift) & 255u], 1);
      __syncthreads();
      prefix |= u32(digit_of_kth(BlockTeam{}, shared->counts[pass], need)) << shift;
      mask |= 255u << shift;
    }
    return prefix;
  }
};

// Four elements that begin at p[i], those outside [0, n) being `outside`; one load where they are all inside and
// `aligned` says that p + i may be read at once.
template <typename T>
struct alignas(4 * sizeof(T)) Four {
  T at[4];
};
template <typename T>
__device__ void load_four(const T* p, i32 i, i32 n, bool aligned, float (&x)[4], float outside) {
  if (aligned && i >= 0 && i + 4 <= n) {
    const Four<T> all = *reinterpret_cast<const Four<T>*>(p + i);
    for (i32 j = 0; j < 4; ++j) x[j] = float(all.at[j]);
  } else {
    for (i32 j = 0; j < 4; ++j) x[j] = i + j >= 0 && i + j < n ? float(p[i + j]) : outside;
  }
}
template <typename T>
__device__ void store_four(T* p, i32 i, i32 n, bool aligned, const float (&x)[4]) {
  if (aligned && i >= 0 && i + 4 <= n) {
    Four<T> all;
    for (i32 j = 0; j < 4; ++j) all.at[j] = T(x[j]);
    *reinterpret_cast<Four<T>*>(p + i) = all;
  } else {
    for (i32 j = 0; j < 4; ++j)
      if (i + j >= 0 && i + j < n) p[i + j] = T(x[j]);
  }
}
template <typename T>
__device__ bool is_aligned(const T* p, i32 i) {
  return (reinterpret_cast<u64>(p) + u64(i64(i)) * sizeof(T)) % (4 * sizeof(T)) == 0;
}

// Which tokens of a row stay, written in their order; mine[j] says whether my token first + j is one of them.
template <typename Group, i32 items>
__device__ void keep_in_order(const Group& group, const u32 (&keys)[items], i32 first, i32 k, u32& kth,
                              i32* kept, bool (&mine)[items]) {
  i32 need = 0;
  kth = k > 0 ? group.kth(keys, k, need) : full_warp;  // for k = 0 nothing is above, and none that equals it stays
  u32 own = 0, all;                                    // above kth in the low half, equal to it in the high one
#pragma unroll
  for (i32 j = 0; j < items; ++j) own += keys[j] > kth ? 1u : keys[j] == kth ? 0x10000u : 0u;
  const u32 earlier = group.before(own, all);
  i32 above = earlier & 0xffffu, equal = earlier >> 16;
#pragma unroll
  for (i32 j = 0; j < items; ++j) {
    const bool same = keys[j] == kth, stays = keys[j] > kth || (same && equal < need);
    if (stays) kept[above + (equal < need ? equal : need)] = first + j;
    above += keys[j] > kth;
    equal += same;
    mine[j] = stays;
  }
}

}  // namespace budgetprune
#endif
