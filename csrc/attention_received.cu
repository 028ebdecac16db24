// attention_received.cu: launches the kernels. No torch: raw pointers and a stream.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "attention_received_all.cuh"
#include "attention_received_launch.h"
#include "launch.h"

namespace budgetprune {

template <typename T, i32 group, bool wide>
static void scores_of_row(const ReceivedShape& n, const void* q, const void* k, const bool* mask, i32 rows,
                          double scale, void* s, void* stats, u32* tickets, cudaStream_t stream) {
  using A = typename Accumulate<T>::type;
  const i64 tiles = (n.heads / n.kv_heads + group - 1) / group;
  launch(scores_of_row_kernel<T, group, wide>, u32(n.batch * n.kv_heads * tiles * n.splits()), row_threads, 0, stream,
         n, static_cast<const T*>(q), static_cast<const T*>(k), mask, rows, scale, static_cast<A*>(s),
         static_cast<A*>(stats), tickets);
}

template <typename T>
static void scores_of_row(const ReceivedShape& n, const void* q, const void* k, const bool* mask, i32 rows,
                          double scale, void* s, void* stats, u32* tickets, cudaStream_t stream) {
  if constexpr (sizeof(T) <= sizeof(float)) {
    const i64 size = sizeof(T), per_kv = n.heads / n.kv_heads;
    if (n.d > 0 && n.d * size <= 32 * 16 && aligned_to_16(n, q, k, size)) {
      if (per_kv == 1)
        scores_of_row<T, 1, true>(n, q, k, mask, rows, scale, s, stats, tickets, stream);
      else if (per_kv <= 4)
        scores_of_row<T, 4, true>(n, q, k, mask, rows, scale, s, stats, tickets, stream);
      else
        scores_of_row<T, 8, true>(n, q, k, mask, rows, scale, s, stats, tickets, stream);
      return;
    }
  }
  scores_of_row<T, 8, false>(n, q, k, mask, rows, scale, s, stats, tickets, stream);
}

void launch_scores_of_row(DType dtype, const ReceivedShape& n, const void* q, const void* k, const bool* mask, i32 rows,
                          double scale, void* s, void* stats, u32* tickets, cudaStream_t stream) {
  switch (dtype) {
    case DType::f32: scores_of_row<float>(n, q, k, mask, rows, scale, s, stats, tickets, stream); break;
    case DType::f16: scores_of_row<__half>(n, q, k, mask, rows, scale, s, stats, tickets, stream); break;
    case DType::bf16: scores_of_row<__nv_bfloat16>(n, q, k, mask, rows, scale, s, stats, tickets, stream); break;
    case DType::f64: scores_of_row<double>(n, q, k, mask, rows, scale, s, stats, tickets, stream); break;
  }
}

template <typename T>
static void run_row(const ReceivedShape& n, const void* q, const void* k, const bool* mask, i32 rows, double scale,
                    void* s, void* stats, void* scores, cudaStream_t stream) {
  using A = typename Accumulate<T>::type;
  scores_of_row<T>(n, q, k, mask, rows, scale, s, stats, nullptr, stream);
  const u32 chunks = u32((n.keys + 127) / 128);
  launch(mean_of_heads_kernel<A>, u32(n.batch) * chunks, 128, size_t(n.heads) * 2 * sizeof(A), stream, n,
         static_cast<const A*>(s), static_cast<const A*>(stats), mask, rows, static_cast<A*>(scores));
}

template <typename T, i32 depth>
static void run_tiles(const ReceivedShape& n, const void* q, const void* k, const bool* mask, double scale, void* lse,
                      void* parts, cudaStream_t stream) {
  const size_t shared = 2 * tile_columns * TileRows<depth>::stride * sizeof(T);
  const auto blocks = [&](i64 rows) { return u32((rows + tile_rows - 1) / tile_rows * n.heads * n.batch); };
  launch(score_tiles_kernel<T, depth, ScorePass::lse>, blocks(n.queries), 256, shared, stream, n,
         static_cast<const T*>(q), static_cast<const T*>(k), mask, float(scale), nullptr, static_cast<float*>(lse));
  launch(score_tiles_kernel<T, depth, ScorePass::sums>, blocks(n.keys), 256, shared, stream, n,
         static_cast<const T*>(q), static_cast<const T*>(k), mask, float(scale), static_cast<const float*>(lse),
         static_cast<float*>(parts));
}

template <typename T>
static bool on_tensor_cores(const ReceivedShape& n, const void* q, const void* k, const bool* mask, double scale,
                            void* lse, void* parts, cudaStream_t stream) {
  if constexpr (sizeof(T) == 2) {
    if (!fits_tensor_cores(n, q, k)) return false;
    if (n.d <= 32) run_tiles<T, 32>(n, q, k, mask, scale, lse, parts, stream);
    else if (n.d <= 64) run_tiles<T, 64>(n, q, k, mask, scale, lse, parts, stream);
    else if (n.d <= 80) run_tiles<T, 80>(n, q, k, mask, scale, lse, parts, stream);
    else run_tiles<T, 128>(n, q, k, mask, scale, lse, parts, stream);
    return true;
  } else {
    return false;
  }
}

// `scratch`: room for lse [B, H, Q], or for scores [B, H * chunks, N]; `parts` [B, H * chunks, N].
template <typename T>
static void run_all(const ReceivedShape& n, const void* q, const void* k, const bool* mask, i64 chunks, double scale,
                    void* scratch, void* parts, void* scores, cudaStream_t stream) {
  using A = typename Accumulate<T>::type;
  i64 count = n.heads;
  if (!on_tensor_cores<T>(n, q, k, mask, scale, scratch, parts, stream)) {
    count = n.heads * chunks;
    launch(attention_received_plain_kernel<T>, u32(n.batch * count), 256, (32 + n.d) * sizeof(A), stream, n,
           static_cast<const T*>(q), static_cast<const T*>(k), mask, chunks, scale, static_cast<A*>(scratch),
           static_cast<A*>(parts));
  }
  launch(received_mean_kernel<A>, u32((n.keys + 255) / 256 * n.batch), 256, 0, stream, n, static_cast<const A*>(parts),
         count, mask, static_cast<A*>(scores));
}

int launch_attention_received(DType dtype, const ReceivedShape& n, const void* q, const void* k, const bool* mask,
                              i32 rows, i64 chunks, double scale, void* scratch, void* parts, void* scores,
                              void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  const auto go = [&](auto zero) {
    using T = decltype(zero);
    if (QueryRows(rows) == QueryRows::all) run_all<T>(n, q, k, mask, chunks, scale, scratch, parts, scores, s);
    else run_row<T>(n, q, k, mask, rows, scale, scratch, parts, scores, s);
  };
  switch (dtype) {
    case DType::f32: go(float{}); break;
    case DType::f16: go(__half{}); break;
    case DType::bf16: go(__nv_bfloat16{}); break;
    case DType::f64: go(double{}); break;
  }
  return cudaGetLastError();
}

}  // namespace budgetprune
