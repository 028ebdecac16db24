// attention_received.cu: launches the kernels. No torch: raw pointers and a stream.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "attention_received.cuh"
#include "launch.h"

namespace budgetprune {

template <typename T>
static void run(const void* q, const void* k, const bool* mask, i32 rows, const i64* n, i64 chunks, double scale,
                   void* scratch, void* parts, void* scores, cudaStream_t stream) {
  using A = typename Accumulate<T>::type;
  launch(attention_received_kernel<T>, u32(n[0] * n[1] * chunks), 256, (32 + n[5]) * sizeof(A), stream, 
      static_cast<const T*>(q), static_cast<const T*>(k), mask, rows, n[1], n[2], n[3], n[4], n[5], chunks, scale,
      static_cast<A*>(scratch), static_cast<A*>(parts));
  launch(received_sum_kernel<A>, u32((n[0] * n[4] + 255) / 256), 256, 0, stream, 
      static_cast<const A*>(parts), n[0], n[1] * chunks, n[4], static_cast<A*>(scores));
}

// n: B, H, Hkv, Q, N, D. `scratch` and `parts` hold [B, H * chunks, N] numbers of the type of `scores`.
int launch_attention_received(DType dtype, const void* q, const void* k, const bool* mask, i32 rows, const i64* n,
                              i64 chunks, double scale, void* scratch, void* parts, void* scores, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  switch (dtype) {
    case DType::f32: run<float>(q, k, mask, rows, n, chunks, scale, scratch, parts, scores, s); break;
    case DType::f16: run<__half>(q, k, mask, rows, n, chunks, scale, scratch, parts, scores, s); break;
    case DType::bf16: run<__nv_bfloat16>(q, k, mask, rows, n, chunks, scale, scratch, parts, scores, s); break;
    case DType::f64: run<double>(q, k, mask, rows, n, chunks, scale, scratch, parts, scores, s); break;
  }
  return cudaGetLastError();
}

}  // namespace budgetprune
