// select_topk_registers.cuh: select_topk for rows that registers hold, N up to about 8192; a warp or a block each.
#pragma once
#include "row_in_registers.cuh"

#ifdef __CUDACC__
namespace budgetprune {

// My first token lies `rank * items - shift` into the row, shift being what makes four of them lie aligned in memory.
template <typename Group, i32 items, typename T>
__device__ void select_topk_in_registers(const Group& group, i32 threads, const T* scores, i32 n, i32 k, i32 kmax,
                                         i32* kept) {
  const i32 shift = i32(reinterpret_cast<u64>(scores) / sizeof(T) % 4), first = group.rank() * items - shift;
  const bool aligned = is_aligned(scores, first);
  u32 keys[items];
#pragma unroll
  for (i32 j = 0; j < items; j += 4) {
    float x[4];
    load_four(scores, first + j, n, aligned, x, 0.0f);
    for (i32 e = 0; e < 4; ++e) keys[j + e] = first + j + e >= 0 && first + j + e < n ? radix_key(x[e]) : 0u;
  }
  u32 kth;
  bool mine[items];
  keep_in_order(group, keys, first, k, kth, kept, mine);
  for (i32 i = k + group.rank(); i < kmax; i += threads) kept[i] = -1;
}

template <typename T, i32 items>
__global__ void __launch_bounds__(128) select_topk_warps(const T* scores, const i32* keep, i64 rows, i32 n, i32 kmax,
                                                         i32* kept) {
  const i64 row = i64(blockIdx.x) * 4 + threadIdx.x / 32;
  if (row < rows)
    select_topk_in_registers<WarpGroup, items>(WarpGroup{}, 32, scores + row * n, n, count_of(keep, row, kmax), kmax,
                                               kept + row * kmax);
}

template <typename T, i32 items>
__global__ void __launch_bounds__(1024, 1) select_topk_block(const T* scores, const i32* keep, i64, i32 n, i32 kmax,
                                                          i32* kept) {
  __shared__ BlockGroup::Shared shared;
  const i64 row = blockIdx.x;
  select_topk_in_registers<BlockGroup, items>(BlockGroup{&shared}, i32(blockDim.x), scores + row * n, n,
                                              count_of(keep, row, kmax), kmax, kept + row * kmax);
}

}  // namespace budgetprune
#endif
