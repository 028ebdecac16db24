// gumbel_topk.cu: launches the kernels. No torch: raw pointers and a stream.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "gumbel_topk_backward.cuh"
#include "launch.h"

namespace budgetprune {

// A row's keys fit in the shared memory that every launch may use without asking; longer rows take `scratch`.
static constexpr i32 max_shared_tokens = 11264;
bool gumbel_topk_needs_scratch(i32 n) { return n > max_shared_tokens; }

template <typename T>
static void run(const GumbelTopk& op, const void* logits, const i32* keep, const i64* key, bool key_per_row,
                   i64 rows, u32* scratch, void* gate, i32* kept, void* stats, cudaStream_t stream) {
  using Float = typename KeyOf<T>::Float;
  launch(gumbel_topk_kernel<T>, u32(rows), 256, scratch ? 0 : size_t(op.n) * sizeof(u32), stream, 
      op, static_cast<const T*>(logits), keep, key, key_per_row, scratch, static_cast<T*>(gate), kept,
      static_cast<Float*>(stats));
}

int launch_gumbel_topk(DType dtype, const GumbelTopk& op, const void* logits, const i32* keep, const i64* key,
                       bool key_per_row, i64 rows, u32* scratch, void* gate, i32* kept, void* stats, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  switch (dtype) {
    case DType::f32: run<float>(op, logits, keep, key, key_per_row, rows, scratch, gate, kept, stats, s); break;
    case DType::f16: run<__half>(op, logits, keep, key, key_per_row, rows, scratch, gate, kept, stats, s); break;
    case DType::bf16:
      run<__nv_bfloat16>(op, logits, keep, key, key_per_row, rows, scratch, gate, kept, stats, s);
      break;
    case DType::f64: run<double>(op, logits, keep, key, key_per_row, rows, scratch, gate, kept, stats, s); break;
  }
  return cudaGetLastError();
}

template <typename T>
static void run_backward(const GumbelTopk& op, const void* grad, const void* logits, const i64* key,
                            bool key_per_row, i64 rows, const void* stats, u32* scratch, void* out,
                            cudaStream_t stream) {
  using Float = typename KeyOf<T>::Float;
  const bool shared = op.estimator == Estimator::softmax && !scratch;
  launch(gumbel_topk_backward_kernel<T>, u32(rows), 256, shared ? size_t(op.n) * sizeof(u32) : 0, stream, 
      op, static_cast<const T*>(grad), static_cast<const T*>(logits), key, key_per_row,
      static_cast<const Float*>(stats), scratch, static_cast<T*>(out));
}

int launch_gumbel_topk_backward(DType dtype, const GumbelTopk& op, const void* grad, const void* logits, const i64* key,
                                bool key_per_row, i64 rows, const void* stats, u32* scratch, void* out, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  switch (dtype) {
    case DType::f32: run_backward<float>(op, grad, logits, key, key_per_row, rows, stats, scratch, out, s); break;
    case DType::f16: run_backward<__half>(op, grad, logits, key, key_per_row, rows, stats, scratch, out, s); break;
    case DType::bf16:
      run_backward<__nv_bfloat16>(op, grad, logits, key, key_per_row, rows, stats, scratch, out, s);
      break;
    case DType::f64: run_backward<double>(op, grad, logits, key, key_per_row, rows, stats, scratch, out, s); break;
  }
  return cudaGetLastError();
}

}  // namespace budgetprune
