// fastv_select.cuh: FastV's choice in two launches: the last row's scores, then mean over heads, rank and compaction.
//
//   image [B, N]   which keys are image tokens; all other existing tokens stay
//   kept [B, width] ascending positions of what stays, padded with -1
// Keys to rank by: 0 where nothing exists, the highest of all for what stays anyway, and NaN's below it.
#pragma once
#include "attention_received_row.cuh"
#include "select_topk.cuh"

namespace budgetprune {

BP_FN u32 rank_key(bool exists, bool image, float score) {
  const u32 key = radix_key(score);
  return !exists ? 0u : !image ? 0xffffffffu : key == 0xffffffffu ? 0xfffffffeu : key;
}
BP_FN u32 rank_key(bool exists, bool image, double score) { return rank_key(exists, image, float(score)); }

#ifdef __CUDACC__
// As mean_of_heads_kernel; the block that finishes a sample last ranks its tokens. `tickets` were set to 0 by
// scores_of_row_kernel; ranks is [B, N] of scratch.
template <typename A>
__global__ void __launch_bounds__(128) fastv_rank_kernel(ReceivedShape n, const A* s, const A* stats, const bool* mask,
                                                         const bool* image, const i32* keep, i32 max_keep, i32 width,
                                                         u32* tickets, A* scores, u32* ranks, i32* kept) {
  BP_DYNAMIC_SHARED(bytes);
  __shared__ i32 slots[32], counts[256];
  __shared__ u32 arrived;
  const i64 chunks = (n.keys + blockDim.x - 1) / blockDim.x, b = blockIdx.x / chunks;
  const i64 first_key = i64(blockIdx.x % chunks) * blockDim.x;
  const bool *exists = mask ? mask + b * n.keys : nullptr, *images = image + b * n.keys;
  if (chosen_row(QueryRows::last, exists, n.queries, n.keys, slots) >= 0)
    mean_of_heads(n, b, first_key, s, stats, exists, reinterpret_cast<A*>(bytes), scores);
  else if (first_key + threadIdx.x < n.keys)
    scores[b * n.keys + first_key + threadIdx.x] = 0;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) arrived = atomicAdd(&tickets[b], 1u) + 1u;
  __syncthreads();
  if (arrived != u32(chunks)) return;
  __threadfence();
  const i32 count = i32(n.keys);
  u32* const mine = ranks + b * n.keys;
  u32 always = 0, candidates = 0, unused;
  for (i32 j = i32(threadIdx.x); j < count; j += i32(blockDim.x)) {
    const bool here = !exists || exists[j];
    // Other blocks wrote some of the scores: past the first cache, which may hold what was there before.
    mine[j] = rank_key(here, images[j], *const_cast<const volatile A*>(scores + b * n.keys + j));
    always += here && !images[j];
    candidates += here && images[j];
  }
  const BlockTeam team{slots};
  team.before(always, unused), always = unused;
  team.before(candidates, unused), candidates = unused;
  const i32 wanted = count_of(keep, b, max_keep), best = wanted < i32(candidates) ? wanted : i32(candidates);
  const i32 k = i32(always) + best < width ? i32(always) + best : width;
  select_topk_row(team, mine, count, k, width, counts, kept + b * width);
}
#endif

}  // namespace budgetprune
