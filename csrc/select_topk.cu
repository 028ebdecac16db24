// select_topk.cu: launches the kernel. No torch: raw pointers and a stream.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "select_topk.cuh"
#include "launch.h"

namespace budgetprune {

template <typename T>
static void run(const void* scores, const i32* keep, i64 rows, i32 n, i32 kmax, i32* kept, cudaStream_t stream) {
  launch(select_topk_kernel<T>, u32(rows), 256, 0, stream, static_cast<const T*>(scores), keep, n, kmax, kept);
}

int launch_select_topk(DType dtype, const void* scores, const i32* keep, i64 rows, i32 n, i32 kmax, i32* kept,
                       void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  switch (dtype) {
    case DType::f32: run<float>(scores, keep, rows, n, kmax, kept, s); break;
    case DType::f16: run<__half>(scores, keep, rows, n, kmax, kept, s); break;
    case DType::bf16: run<__nv_bfloat16>(scores, keep, rows, n, kmax, kept, s); break;
    case DType::f64: run<double>(scores, keep, rows, n, kmax, kept, s); break;
  }
  return cudaGetLastError();
}

}  // namespace budgetprune
