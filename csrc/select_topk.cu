// select_topk.cu: launches the kernels. No torch: raw pointers and a stream.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "launch.h"
#include "row_launch.h"
#include "select_topk_registers.cuh"

namespace budgetprune {

template <typename T>
static void run(const void* scores_in, const i32* keep, i64 rows, i32 n, i32 kmax, i32* kept, cudaStream_t stream) {
  const auto scores = static_cast<const T*>(scores_in);
  if constexpr (sizeof(T) <= sizeof(float)) {
    if (n <= longest_in_registers)
      return for_row_in_registers(
          rows, n,
          [&](auto items, u32 grid) {
            launch(select_topk_warps<T, items.value>, grid, 128, 0, stream, scores, keep, rows, n, kmax, kept);
          },
          [&](auto items, u32 grid, u32 threads) {
            launch(select_topk_block<T, items.value>, grid, threads, 0, stream, scores, keep, rows, n, kmax, kept);
          });
  }
  launch(select_topk_kernel<T>, u32(rows), n > longest_in_registers ? 1024 : 256, 0, stream, scores, keep, n, kmax,
         kept);
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
