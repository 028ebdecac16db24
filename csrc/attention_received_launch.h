// attention_received_launch.h: which kernels serve a shape; shared by attention_received.cu and fastv_select.cu.
#pragma once
#include "attention_received_row.cuh"

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

// The first of two launches, in attention_received.cu. `tickets` [B], or null, is set to 0.
void launch_scores_of_row(DType dtype, const ReceivedShape& n, const void* q, const void* k, const bool* mask, i32 rows,
                          double scale, void* s, void* stats, u32* tickets, cudaStream_t stream);

}  // namespace budgetprune
