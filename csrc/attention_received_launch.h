// attention_received_launch.h: which kernels serve a shape; shared by attention_received.cu and fastv_select.cu.
#pragma once
#include "attention_received_row.cuh"
#include "launch.h"

namespace budgetprune {

inline bool aligned_to_16(const void* p, const i64* strides, i64 d, i64 size) {
  return reinterpret_cast<u64>(p) % 16 == 0 &&
         u64(strides[0] * size | strides[1] * size | strides[2] * size | d * size) % 16 == 0;
}
inline bool aligned_to_16(const ReceivedShape& n, const void* q, const void* k, i64 size) {
  return aligned_to_16(q, n.q_strides, n.d, size) && aligned_to_16(k, n.k_strides, n.d, size);
}
// For 16-bit types: every row is whole pieces of eight.
inline bool fits_tensor_cores(const ReceivedShape& n, const void* q, const void* k) {
  return n.d > 0 && n.d <= 128 && aligned_to_16(n, q, k, 2);
}

#ifdef __CUDACC__
template <typename T, i32 group, bool wide>
void launch_scores_of_row(const ReceivedShape& n, const void* q, const void* k, const bool* mask, i32 rows,
                          double scale, void* s, void* stats, u32* tickets, cudaStream_t stream) {
  using A = typename Accumulate<T>::type;
  const i64 tiles = (n.heads / n.kv_heads + group - 1) / group;
  launch(scores_of_row_kernel<T, group, wide>, u32(n.batch * n.kv_heads * tiles * n.splits()), row_threads, 0, stream,
         n, static_cast<const T*>(q), static_cast<const T*>(k), mask, rows, scale, static_cast<A*>(s),
         static_cast<A*>(stats), tickets);
}

template <typename T>
void launch_scores_of_row(const ReceivedShape& n, const void* q, const void* k, const bool* mask, i32 rows,
                          double scale, void* s, void* stats, u32* tickets, cudaStream_t stream) {
  if constexpr (sizeof(T) <= sizeof(float)) {
    const i64 size = sizeof(T), per_kv = n.heads / n.kv_heads;
    if (n.d > 0 && n.d * size <= 32 * 16 && aligned_to_16(n, q, k, size)) {
      if (per_kv == 1)
        launch_scores_of_row<T, 1, true>(n, q, k, mask, rows, scale, s, stats, tickets, stream);
      else if (per_kv <= 4)
        launch_scores_of_row<T, 4, true>(n, q, k, mask, rows, scale, s, stats, tickets, stream);
      else
        launch_scores_of_row<T, 8, true>(n, q, k, mask, rows, scale, s, stats, tickets, stream);
      return;
    }
  }
  launch_scores_of_row<T, 8, false>(n, q, k, mask, rows, scale, s, stats, tickets, stream);
}
#endif

}  // namespace budgetprune
