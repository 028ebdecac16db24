// attention_received.cuh: the softmax attention that each key gets, mean over heads. Row rules for all
// devices, and the CUDA kernels.
//
//   q [B, H, Q, D]; k [B, Hkv, N, D]; mask [B, N] or null, of the queries too where Q == N
//   scores [B, N]: mean over heads, and over the chosen queries, of softmax(scale q . k) over the existing keys
// A block of the GPU owns some queries of one head and the CPU a kv head, so the drivers are apart; they
// share which queries are chosen.
#pragma once
#include "portable.h"

namespace budgetprune {

enum class QueryRows { last, cls, all };  // FastV; PruMerge and VisionZip; towers without CLS

// Whether query i exists: padding is known where queries and keys are the same tokens.
BP_FN bool query_exists(const bool* mask, i64 i, i64 queries, i64 keys) {
  return !mask || queries != keys || mask[i];
}

// The queries to look at, [first, end): one for `last` and `cls`. `last` without any existing query: none.
BP_FN void chosen_queries(QueryRows rows, const bool* mask, i64 queries, i64 keys, i64& first, i64& end) {
  first = 0;
  end = rows == QueryRows::all ? queries : 1;
  if (rows != QueryRows::last) return;
  end = queries;
  while (end > 0 && !query_exists(mask, end - 1, queries, keys)) --end;
  first = end > 0 ? end - 1 : 0;
}

#ifdef __CUDACC__
// x summed (or its maximum) over the block, in one order; `slots` is 32 numbers of shared memory.
template <typename A>
__device__ A block_reduce(A x, bool maximum, A* slots) {
  for (i32 step = 16; step > 0; step /= 2) {
    const A other = __shfl_xor_sync(0xffffffffu, x, step);
    x = !maximum ? x + other : other > x ? other : x;
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = x;
  __syncthreads();
  x = slots[0];
  for (i32 w = 1; w < i32(blockDim.x) / 32; ++w) x = !maximum ? x + slots[w] : slots[w] > x ? slots[w] : x;
  return x;
}

// One block per (b, h, chunk of queries): a warp per key for the scores, then softmax, then the sum over its
// queries. `scratch` and `parts` are [B, H * chunks, N]; parts carries the weight of a mean already.
template <typename T>
__global__ void attention_received_kernel(const T* q, const T* k, const bool* mask, i32 rows, i64 heads, i64 kv_heads,
                                          i64 queries, i64 keys, i64 d, i64 chunks, double scale,
                                          typename Accumulate<T>::type* scratch,
                                          typename Accumulate<T>::type* parts) {
  using A = typename Accumulate<T>::type;
  BP_DYNAMIC_SHARED(shared_bytes);
  A* slots = reinterpret_cast<A*>(shared_bytes);
  A* query = slots + 32;
  __shared__ i64 chosen[2];
  const i64 b = blockIdx.x / (heads * chunks), h = blockIdx.x / chunks % heads, chunk = blockIdx.x % chunks;
  const bool* exists = mask ? mask + b * keys : nullptr;
  const T* head = k + (b * kv_heads + h / (heads / kv_heads)) * keys * d;
  A *s = scratch + blockIdx.x * keys, *sum = parts + blockIdx.x * keys;
  if (threadIdx.x == 0) chosen_queries(QueryRows(rows), exists, queries, keys, chosen[0], chosen[1]);
  __syncthreads();
  const bool all = QueryRows(rows) == QueryRows::all;
  A counted = 0;
  for (i64 i = chosen[0] + threadIdx.x; i < chosen[1]; i += blockDim.x)
    counted += A(!all || query_exists(exists, i, queries, keys));
  const A weight = A(1) / (A(heads) * block_reduce(counted, false, slots));
  for (i64 j = threadIdx.x; j < keys; j += blockDim.x) sum[j] = 0;
  for (i64 i = chosen[0] + chunk; i < chosen[1]; i += chunks) {
    if (all && !query_exists(exists, i, queries, keys)) continue;
    __syncthreads();
    for (i64 c = threadIdx.x; c < d; c += blockDim.x)
      query[c] = A(q[((b * heads + h) * queries + i) * d + c]) * A(scale);
    __syncthreads();
    for (i64 j = threadIdx.x / 32; j < keys; j += blockDim.x / 32) {
      if (exists && !exists[j]) continue;
      A dot = 0;
      for (i64 c = threadIdx.x % 32; c < d; c += 32) dot += query[c] * A(head[j * d + c]);
      for (i32 step = 16; step > 0; step /= 2) dot += __shfl_xor_sync(0xffffffffu, dot, step);
      if (threadIdx.x % 32 == 0) s[j] = dot;
    }
    __syncthreads();
    A best = -A(1) / A(0), total = 0;
    for (i64 j = threadIdx.x; j < keys; j += blockDim.x)
      if (!exists || exists[j]) best = s[j] > best ? s[j] : best;
    best = block_reduce(best, true, slots);
    for (i64 j = threadIdx.x; j < keys; j += blockDim.x)
      if (!exists || exists[j]) total += s[j] = exp(s[j] - best);
    total = block_reduce(total, false, slots);
    for (i64 j = threadIdx.x; j < keys; j += blockDim.x)
      if (!exists || exists[j]) sum[j] += s[j] / total * weight;
  }
}

// scores[b, j] = the parts of b in their order.
template <typename A>
__global__ void received_sum_kernel(const A* parts, i64 batch, i64 count, i64 keys, A* scores) {
  const i64 at = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= batch * keys) return;
  A sum = 0;
  for (i64 p = 0; p < count; ++p) sum += parts[(at / keys * count + p) * keys + at % keys];
  scores[at] = sum;
}
#endif

}  // namespace budgetprune
