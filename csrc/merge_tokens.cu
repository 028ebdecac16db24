// merge_tokens.cu: launches the kernels. No torch: raw pointers and a stream.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "launch.h"
#include "merge_tokens.cuh"

namespace budgetprune {

static u32 blocks(i64 units, i64 per_block) { return u32((units + per_block - 1) / per_block); }

// 16 bytes at a time, where every address and stride allows it.
static bool is_wide(const void* a, const void* b, i64 strides_in_bytes) {
  return ((reinterpret_cast<u64>(a) | reinterpret_cast<u64>(b) | u64(strides_in_bytes)) & 15) == 0;
}

template <typename T>
static void merge(const MergeShape& shape, const void* x, i64 batch_stride, i64 row_stride, const i32* offsets,
                  const i32* index, const void* weight, i64 samples, void* out, cudaStream_t stream) {
  using F = typename Accumulate<T>::type;
  constexpr i64 item = sizeof(T);
  const bool wide = is_wide(x, out, (batch_stride | row_stride | shape.channels) * item);
  const i64 slice = 32 * (wide ? 16 / item : 1), slices = (shape.channels + slice - 1) / slice;
  i32 team = 1;  // a warp walks a short list alone; the warps of a block share long ones
  while (team < merge_warps && i64(shape.entries) >= 4 * team * i64(shape.outputs)) team *= 2;
  launch(merge_tokens_kernel<T>, blocks(samples * shape.outputs * slices, merge_warps / team), 32 * merge_warps, 0,
         stream, shape, static_cast<const T*>(x), batch_stride, row_stride, offsets, index,
         static_cast<const F*>(weight), samples, wide, team, static_cast<T*>(out));
}

int launch_merge_tokens(DType dtype, const MergeShape& shape, const void* x, i64 batch_stride, i64 row_stride,
                        const i32* offsets, const i32* index, const void* weight, i64 samples, void* out,
                        void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  const auto run = dtype == DType::f32   ? merge<float>
                   : dtype == DType::f16 ? merge<__half>
                   : dtype == DType::f64 ? merge<double>
                                         : merge<__nv_bfloat16>;
  run(shape, x, batch_stride, row_stride, offsets, index, weight, samples, out, s);
  return cudaGetLastError();
}

template <typename T>
static void dots(const MergeShape& shape, const void* grad, const void* x, i64 batch_stride, i64 row_stride,
                 const i32* offsets, const i32* index, i64 samples, void* out, cudaStream_t stream) {
  const bool wide = is_wide(grad, x, (batch_stride | row_stride | shape.channels) * i64(sizeof(T)));
  launch(merge_dots_kernel<T>, blocks(samples * shape.entries, merge_warps), 32 * merge_warps, 0, stream, shape,
         static_cast<const T*>(grad), static_cast<const T*>(x), batch_stride, row_stride, offsets, index, samples, wide,
         static_cast<typename Accumulate<T>::type*>(out));
}

int launch_merge_dots(DType dtype, const MergeShape& shape, const void* grad, const void* x, i64 batch_stride,
                      i64 row_stride, const i32* offsets, const i32* index, i64 samples, void* out, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  const auto run = dtype == DType::f32   ? dots<float>
                   : dtype == DType::f16 ? dots<__half>
                   : dtype == DType::f64 ? dots<double>
                                         : dots<__nv_bfloat16>;
  run(shape, grad, x, batch_stride, row_stride, offsets, index, samples, out, s);
  return cudaGetLastError();
}

int launch_merge_transpose(const MergeShape& shape, const i32* offsets, const i32* index, i64 samples, i32* to_offsets,
                           i32* to_index, i32* to_entry, void* stream) {
  const i64 tiles = shape.tokens / 256 + 1;  // offset N has a thread too
  launch(merge_transpose_kernel, u32(samples * tiles), 256, 0, static_cast<cudaStream_t>(stream), shape, offsets, index,
         tiles, to_offsets, to_index, to_entry);
  return cudaGetLastError();
}

}  // namespace budgetprune
