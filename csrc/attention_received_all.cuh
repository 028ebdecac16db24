// attention_received_all.cuh: all queries look, on the GPU; nothing of size [H, Q, N] is stored.
//
// Tensor cores (half, bfloat16, D a multiple of 8 up to 128), the same tile product twice:
//   score_tiles_kernel<lse>   a block holds 128 queries and runs over the keys: lse [B, H, Q] of each query's scores
//   score_tiles_kernel<sums>  a block holds 128 keys and runs over the queries: sum_i exp(s_ij - lse_i) [B, H, N]
// That is as much arithmetic as the forward of attention. Every sum has one owner and one order.
// Other types and sizes: attention_received_plain_kernel, a block per 32 queries of a head.
#pragma once
#include "attention_received_row.cuh"
#include "attention_tiles.cuh"

#ifdef __CUDACC__
namespace budgetprune {

constexpr i32 tile_rows = 128, tile_columns = 64;  // of a block: eight warps of 16 rows
enum class ScorePass { lse, sums };

// For `lse` the rows that a block holds are queries, the columns it runs over keys, and out is [B, H, Q]; for `sums`
// rows are keys, columns queries with their lse in `lse`, and out is [B, H, N]. Shared memory: two tiles of columns,
// which hold the rows first.
template <typename T, i32 depth, ScorePass pass>
__global__ void __launch_bounds__(256, depth < 128 ? 2 : 1)
    score_tiles_kernel(ReceivedShape n, const T* q, const T* k, const bool* mask, float scale, const float* lse,
                       float* out) {
  constexpr i32 stride = TileRows<depth>::stride, chunks = depth / 16;
  constexpr bool by_query = pass == ScorePass::lse;
  BP_DYNAMIC_SHARED(bytes);
  T* const tiles = reinterpret_cast<T*>(bytes);
  __shared__ float column_of[2][tile_columns];  // lse: 0 or -infinity; sums: the query's lse, or infinity
  const i32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const i32 row_count = i32(by_query ? n.queries : n.keys), column_count = i32(by_query ? n.keys : n.queries);
  const i32 row_tiles = (row_count + tile_rows - 1) / tile_rows, heads = i32(n.heads), d = i32(n.d);
  const i32 block = i32(blockIdx.x), h = block / row_tiles % heads, kv = h / (heads / i32(n.kv_heads));
  const i64 b = block / row_tiles / heads;
  const i32 first_row = block % row_tiles * tile_rows;
  const T* queries = q + b * n.q_strides[0] + h * n.q_strides[1];
  const T* keys = k + b * n.k_strides[0] + kv * n.k_strides[1];
  const bool* exists = mask ? mask + b * n.keys : nullptr;
  const bool* query_mask = n.queries == n.keys ? exists : nullptr;

  fetch_rows<depth>(tiles, by_query ? queries : keys, first_row, row_count, d,
                    by_query ? n.q_strides[2] : n.k_strides[2], tile_rows);
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();
  u32 rows[chunks][4];
#pragma unroll
  for (i32 c = 0; c < chunks; ++c)
    ldmatrix_x4(rows[c], tiles + (warp * 16 + lane / 8 % 2 * 8 + lane % 8) * stride + c * 16 + lane / 16 * 8);
  __syncthreads();

  const float infinite = __uint_as_float(0x7f800000u);
  const i32 steps = (column_count + tile_columns - 1) / tile_columns;
  const bool* column_mask = by_query ? exists : query_mask;
  const auto fetch = [&](i32 step) {
    const i32 first = step * tile_columns;
    T* const tile = tiles + step % 2 * tile_columns * stride;
    // What does not exist is read as zeros: whatever stands there, NaN too, must not reach a sum.
    const auto place = [=](i32 column) {
      const i32 j = first + column;
      return j < column_count && (!column_mask || column_mask[j]) ? j : -1;
    };
    fetch_rows_at<depth>(tile, by_query ? keys : queries, d, by_query ? n.k_strides[2] : n.q_strides[2], tile_columns,
                         place);
    if (threadIdx.x < tile_columns) {
      const i32 j = place(i32(threadIdx.x));
      float value;
      if (by_query) value = j >= 0 ? 0.0f : -infinite;
      else value = j >= 0 ? lse[(b * heads + h) * n.queries + j] : infinite;
      column_of[step % 2][threadIdx.x] = value;
    }
  };
  const float scale2 = scale * log2_e;
  float best[2] = {-infinite, -infinite}, sum[2] = {0, 0};  // of rows g and g + 8
  if (steps > 0) fetch(0);
  copy_async_commit();
  for (i32 step = 0; step < steps; ++step) {
    if (step + 1 < steps) fetch(step + 1);
    copy_async_commit();
    copy_async_wait<1>();
    __syncthreads();
    const T* tile = tiles + step % 2 * tile_columns * stride;
    const float* columns = column_of[step % 2];
#pragma unroll 1
    for (i32 at = 0; at < tile_columns; at += 32) {  // 32 columns at a time fit in registers
      float s[4][4] = {};
#pragma unroll
      for (i32 pair = 0; pair < 2; ++pair)
#pragma unroll
        for (i32 c = 0; c < chunks; ++c) {
          u32 r[4];
          ldmatrix_x4(r, tile + (at + pair * 16 + lane / 16 * 8 + lane % 8) * stride + c * 16 + lane / 8 % 2 * 8);
          const u32 left[2] = {r[0], r[1]}, right[2] = {r[2], r[3]};
          mma_16x8x16<T>(s[2 * pair], rows[c], left);
          mma_16x8x16<T>(s[2 * pair + 1], rows[c], right);
        }
      if (by_query) {
        float top[2] = {best[0], best[1]};
#pragma unroll
        for (i32 i = 0; i < 4; ++i)
#pragma unroll
          for (i32 e = 0; e < 4; ++e) {
            s[i][e] = s[i][e] * scale2 + columns[at + i * 8 + 2 * t + e % 2];
            top[e / 2] = s[i][e] > top[e / 2] ? s[i][e] : top[e / 2];
          }
#pragma unroll
        for (i32 half = 0; half < 2; ++half) {
          for (i32 lanes = 1; lanes < 4; lanes *= 2) {
            const float other = __shfl_xor_sync(full_warp, top[half], lanes);
            top[half] = other > top[half] ? other : top[half];
          }
          const float shift = top[half] == -infinite ? 0.0f : top[half];  // no finite score yet
          sum[half] *= exp2f(best[half] - shift);
#pragma unroll
          for (i32 i = 0; i < 4; ++i) sum[half] += exp2f(s[i][2 * half] - shift) + exp2f(s[i][2 * half + 1] - shift);
          best[half] = top[half];
        }
      } else {
#pragma unroll
        for (i32 i = 0; i < 4; ++i)
#pragma unroll
          for (i32 e = 0; e < 4; ++e) {
            const float of_query = columns[at + i * 8 + 2 * t + e % 2];
            sum[e / 2] += of_query == infinite ? 0.0f : exp2f(s[i][e] * scale2 - of_query);
          }
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (i32 half = 0; half < 2; ++half) {
    const float total = sum[half] + __shfl_xor_sync(full_warp, sum[half], 1);
    const float all = total + __shfl_xor_sync(full_warp, total, 2);
    const i32 row = first_row + warp * 16 + g + 8 * half;
    if (t != 0 || row >= row_count) continue;
    if (by_query) out[(b * heads + h) * n.queries + row] = best[half] + log2f(all);
    else out[(b * heads + h) * n.keys + row] = !exists || exists[row] ? all : 0.0f;
  }
}

// One block per (b, h, 32 queries): a warp per key for the scores, then softmax, then the sum over its queries.
// q and k are contiguous. `scratch` and `parts` are [B, H * chunks, N].
template <typename T>
__global__ void __launch_bounds__(256, 2)
    attention_received_plain_kernel(ReceivedShape n, const T* q, const T* k, const bool* mask, i64 chunks, double scale,
                                    typename Accumulate<T>::type* scratch, typename Accumulate<T>::type* parts) {
  using A = typename Accumulate<T>::type;
  BP_DYNAMIC_SHARED(bytes);
  A* const slots = reinterpret_cast<A*>(bytes);
  A* const query = slots + 32;
  const i64 b = blockIdx.x / (n.heads * chunks), h = blockIdx.x / chunks % n.heads, chunk = blockIdx.x % chunks;
  const bool* exists = mask ? mask + b * n.keys : nullptr;
  const T* head = k + (b * n.kv_heads + h / (n.heads / n.kv_heads)) * n.keys * n.d;
  A *s = scratch + blockIdx.x * n.keys, *sum = parts + blockIdx.x * n.keys;
  const auto over_block = [slots](A x, bool maximum) {  // the sum or the highest, in one order
    for (i32 step = 16; step > 0; step /= 2) {
      const A other = __shfl_xor_sync(full_warp, x, step);
      x = !maximum ? x + other : other > x ? other : x;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = x;
    __syncthreads();
    x = slots[0];
    for (i32 w = 1; w < i32(blockDim.x) / 32; ++w) x = !maximum ? x + slots[w] : slots[w] > x ? slots[w] : x;
    return x;
  };
  for (i64 j = threadIdx.x; j < n.keys; j += blockDim.x) sum[j] = 0;
  for (i64 i = chunk; i < n.queries; i += chunks) {
    if (!query_exists(exists, i, n.queries, n.keys)) continue;
    __syncthreads();
    for (i64 c = threadIdx.x; c < n.d; c += blockDim.x)
      query[c] = A(q[((b * n.heads + h) * n.queries + i) * n.d + c]) * A(scale);
    __syncthreads();
    for (i64 j = threadIdx.x / 32; j < n.keys; j += blockDim.x / 32) {
      if (exists && !exists[j]) continue;
      A dot = 0;
      for (i64 c = threadIdx.x % 32; c < n.d; c += 32) dot += query[c] * A(head[j * n.d + c]);
      dot = warp_total(dot);
      if (threadIdx.x % 32 == 0) s[j] = dot;
    }
    __syncthreads();
    A best = -A(1) / A(0), total = 0;
    for (i64 j = threadIdx.x; j < n.keys; j += blockDim.x)
      if (!exists || exists[j]) best = s[j] > best ? s[j] : best;
    best = over_block(best, true);
    for (i64 j = threadIdx.x; j < n.keys; j += blockDim.x)
      if (!exists || exists[j]) total += s[j] = exp(s[j] - best);
    total = over_block(total, false);
    for (i64 j = threadIdx.x; j < n.keys; j += blockDim.x)
      if (!exists || exists[j]) sum[j] += s[j] / total;
  }
}

// scores[b, j] = the parts of b in their order, over heads and existing queries. Grid: chunks of 256 keys * batch.
template <typename A>
__global__ void __launch_bounds__(256) received_mean_kernel(ReceivedShape n, const A* parts, i64 count,
                                                            const bool* mask, A* scores) {
  const i64 chunks = (n.keys + 255) / 256, b = blockIdx.x / chunks, j = i64(blockIdx.x % chunks) * 256 + threadIdx.x;
  __shared__ i32 sums[32];
  u32 counted = 0, all;
  for (i64 i = threadIdx.x; i < n.queries; i += blockDim.x)
    counted += query_exists(mask ? mask + b * n.keys : nullptr, i, n.queries, n.keys);
  BlockTeam{sums}.before(counted, all);
  if (j >= n.keys) return;
  A sum = 0;
  for (i64 p = 0; p < count; ++p) sum += parts[(b * count + p) * n.keys + j];
  scores[b * n.keys + j] = all > 0 ? sum / (A(n.heads) * A(all)) : A(0);
}

}  // namespace budgetprune
#endif
