// gumbel_topk.cu: launches the kernels. No torch: raw pointers and a stream.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "gumbel_topk_registers.cuh"
#include "launch.h"
#include "row_launch.h"

namespace budgetprune {

// A longer row's keys fit in the shared memory of any chip from sm_80 on (99 KB or more); beyond they take `scratch`.
static constexpr i32 max_shared_tokens = 24576;
bool gumbel_topk_needs_scratch(i32 n) { return n > max_shared_tokens; }

template <typename T>
static u32 threads_of(i32 n) {
  return n > longest_in_registers ? widest_block<T> : 256;
}

template <typename T>
static void run(const GumbelTopk& op, const void* logits_in, const i32* keep, const i64* key, bool key_per_row,
                i64 rows, u32* scratch, void* gate_out, i32* kept, void* stats, cudaStream_t stream) {
  const auto logits = static_cast<const T*>(logits_in);
  const auto gate = static_cast<T*>(gate_out);
  if constexpr (sizeof(T) <= sizeof(float)) {
    if (op.n <= longest_in_registers)
      return for_row_in_registers(
          rows, op.n,
          [&](auto items, u32 grid) {
            launch(gumbel_topk_warps<T, items.value>, grid, 128, 0, stream, op, logits, keep, key, key_per_row, rows,
                   gate, kept, static_cast<float*>(stats));
          },
          [&](auto items, u32 grid, u32 threads) {
            launch(gumbel_topk_block<T, items.value>, grid, threads, 0, stream, op, logits, keep, key, key_per_row,
                   rows, gate, kept, static_cast<float*>(stats));
          });
  }
  launch(gumbel_topk_kernel<T>, u32(rows), threads_of<T>(op.n), scratch ? 0 : size_t(op.n) * sizeof(u32), stream, op,
         logits, keep, key, key_per_row, scratch, gate, kept, static_cast<typename KeyOf<T>::Float*>(stats));
}

int launch_gumbel_topk(DType dtype, const GumbelTopk& op, const void* logits, const i32* keep, const i64* key,
                       bool key_per_row, i64 rows, u32* scratch, void* gate, i32* kept, void* stats, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  const auto go = [&](auto zero) {
    run<decltype(zero)>(op, logits, keep, key, key_per_row, rows, scratch, gate, kept, stats, s);
  };
  switch (dtype) {
    case DType::f32: go(float{}); break;
    case DType::f16: go(__half{}); break;
    case DType::bf16: go(__nv_bfloat16{}); break;
    case DType::f64: go(double{}); break;
  }
  return cudaGetLastError();
}

template <typename T>
static void run_backward(const GumbelTopk& op, const void* grad_in, const void* logits_in, const i64* key,
                         bool key_per_row, i64 rows, const void* stats, u32* scratch, void* out_in,
                         cudaStream_t stream) {
  const auto grad = static_cast<const T*>(grad_in), logits = static_cast<const T*>(logits_in);
  const auto out = static_cast<T*>(out_in);
  if constexpr (sizeof(T) <= sizeof(float)) {
    if (op.n <= longest_in_registers)
      return for_row_in_registers(
          rows, op.n,
          [&](auto items, u32 grid) {
            launch(gumbel_topk_backward_warps<T, items.value>, grid, 128, 0, stream, op, grad, logits, key, key_per_row,
                   rows, static_cast<const float*>(stats), out);
          },
          [&](auto items, u32 grid, u32 threads) {
            launch(gumbel_topk_backward_block<T, items.value>, grid, threads, 0, stream, op, grad, logits, key,
                   key_per_row, rows, static_cast<const float*>(stats), out);
          });
  }
  const bool shared = op.estimator == Estimator::softmax && !scratch;
  launch(gumbel_topk_backward_kernel<T>, u32(rows), threads_of<T>(op.n), shared ? size_t(op.n) * sizeof(u32) : 0,
         stream, op, grad, logits, key, key_per_row, static_cast<const typename KeyOf<T>::Float*>(stats), scratch, out);
}

int launch_gumbel_topk_backward(DType dtype, const GumbelTopk& op, const void* grad, const void* logits, const i64* key,
                                bool key_per_row, i64 rows, const void* stats, u32* scratch, void* out, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  const auto go = [&](auto zero) {
    run_backward<decltype(zero)>(op, grad, logits, key, key_per_row, rows, stats, scratch, out, s);
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
