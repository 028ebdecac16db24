// gather_tokens.cu: launches the kernels, in the widest unit that alignment allows. Raw pointers and a stream.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "gather_tokens_gated.cuh"
#include "launch.h"

namespace budgetprune {

// Blocks of four warps, enough to fill a large chip a few times over, and at most 32 rows a warp at once.
static i32 chunks_of(i64 samples, i64 length) {
  const i64 wanted = (4 * 132 + samples) / (samples + 1), most = (length + 3) / 4, least = (length + 127) / 128;
  const i64 chunks = wanted < least ? least : wanted;
  return i32(chunks > most ? most : chunks);
}

// One block at least: it writes cu_seqlens, also of no samples.
static u32 grid_of(i64 samples, i32 chunks) { return samples > 0 ? u32(samples * chunks) : 1u; }

// 16, 4 or 1: the widest unit that divides every byte count and address.
static i64 unit_of(u64 bits) { return bits % 16 == 0 ? 16 : bits % 4 == 0 ? 4 : 1; }

template <typename F>
static void with_unit(i64 unit, F f) {
  if (unit == 16) f(uint4{});
  else if (unit == 4) f(u32{});
  else f(static_cast<unsigned char>(0));
}

template <typename F>
static void with_type(DType dtype, F f) {
  switch (dtype) {
    case DType::f32: f(float{}); break;
    case DType::f16: f(__half{}); break;
    case DType::bf16: f(__nv_bfloat16{}); break;
    case DType::f64: f(double{}); break;
  }
}

static u64 address(const void* p) { return reinterpret_cast<u64>(p); }

// Strides and row_bytes are bytes. `total` is the packed size, below 0: padded; `mask` is null when packed.
int launch_gather_tokens(const void* x, i64 batch_stride, i64 row_stride, const i32* kept, i64 samples, i64 prefix,
                         i64 rows, i32 kmax, i64 row_bytes, i64 total, void* tokens, i32* positions, bool* mask,
                         i32* cu_seqlens, void* stream) {
  const i64 length = prefix + kmax, unit = unit_of(address(x) | address(tokens) |
                                                   u64(batch_stride | row_stride | row_bytes));
  const i32 chunks = length > 0 ? chunks_of(samples, length) : 1;
  const Gather op{samples, prefix, rows, batch_stride / unit, row_stride / unit, row_bytes / unit, total, kmax, chunks};
  with_unit(unit, [&](auto zero) {
    using V = decltype(zero);
    launch(gather_tokens_kernel<V>, grid_of(samples, chunks), 128, 0, static_cast<cudaStream_t>(stream), op,
           static_cast<const V*>(x), kept, static_cast<V*>(tokens), positions, mask, cu_seqlens);
  });
  return cudaGetLastError();
}

int launch_gather_tokens_backward(const void* grad, const i32* kept, const i32* cu_seqlens, i64 samples, i64 prefix,
                                  i64 rows, i32 kmax, i64 row_bytes, i64 total, void* dx, void* stream) {
  const i64 unit = unit_of(address(grad) | address(dx) | u64(row_bytes));
  const i32 chunks = chunks_of(samples, rows);
  const Gather op{samples, prefix, rows, 0, 0, row_bytes / unit, total, kmax, chunks};
  with_unit(unit, [&](auto zero) {
    using V = decltype(zero);
    launch(gather_tokens_backward_kernel<V>, grid_of(samples, chunks), 128, 0, static_cast<cudaStream_t>(stream), op,
           static_cast<const V*>(grad), kept, cu_seqlens, static_cast<V*>(dx));
  });
  return cudaGetLastError();
}

// Strides and channels are elements of `size` bytes.
static bool all_wide(u64 addresses, u64 elements, size_t size) {
  return addresses % 16 == 0 && elements * size % 16 == 0;
}

int launch_gather_tokens_gated(DType dtype, const void* x, i64 batch_stride, i64 row_stride, const void* gate,
                               const i32* kept, i64 samples, i64 prefix, i64 rows, i32 kmax, i64 channels, i64 total,
                               void* tokens, i32* positions, bool* mask, i32* cu_seqlens, void* stream) {
  const i64 length = prefix + kmax;
  const i32 chunks = length > 0 ? chunks_of(samples, length) : 1;
  const Gather op{samples, prefix, rows, batch_stride, row_stride, channels, total, kmax, chunks};
  with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    const bool wide = all_wide(address(x) | address(tokens), u64(batch_stride | row_stride | channels), sizeof(T));
    launch(gather_tokens_gated_kernel<T>, grid_of(samples, chunks), 128, 0, static_cast<cudaStream_t>(stream), op,
           static_cast<const T*>(x), static_cast<const typename Accumulate<T>::type*>(gate), wide, kept,
           static_cast<T*>(tokens), positions, mask, cu_seqlens);
  });
  return cudaGetLastError();
}

int launch_gather_tokens_gated_backward(DType dtype, const void* grad, const void* x, i64 batch_stride, i64 row_stride,
                                        const void* gate, const i32* kept, const i32* cu_seqlens, i64 samples,
                                        i64 prefix, i64 rows, i32 kmax, i64 channels, i64 total, void* dx, void* dgate,
                                        void* stream) {
  const i32 chunks = chunks_of(samples, rows);
  const Gather op{samples, prefix, rows, batch_stride, row_stride, channels, total, kmax, chunks};
  with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = typename Accumulate<T>::type;
    const bool wide = all_wide(address(x) | address(grad) | address(dx), u64(batch_stride | row_stride | channels),
                               sizeof(T));
    launch(gather_tokens_gated_backward_kernel<T>, grid_of(samples, chunks), 128, 0,
           static_cast<cudaStream_t>(stream), op, static_cast<const T*>(grad), static_cast<const T*>(x),
           static_cast<const A*>(gate), wide, kept, cu_seqlens, static_cast<T*>(dx), static_cast<A*>(dgate));
  });
  return cudaGetLastError();
}

}  // namespace budgetprune
