// gather_tokens.cu: launches the kernels in the widest unit that alignment allows. Raw pointers and a stream.
#include "gather_tokens.cuh"
#include "launch.h"

namespace budgetprune {

constexpr u32 warps = 4;  // of a block; each owns a row

static u32 blocks(i64 rows) { return u32((rows + warps - 1) / warps); }

// 16, 4 or 1: the widest unit that divides every byte count and address.
static i64 unit_of(u64 bits) { return bits % 16 == 0 ? 16 : bits % 4 == 0 ? 4 : 1; }

template <typename F>
static void with_unit(i64 unit, F f) {
  if (unit == 16) f(uint4{});
  else if (unit == 4) f(u32{});
  else f(static_cast<unsigned char>(0));
}

// Strides and row_bytes are bytes. `mask` is null when packed; cu_seqlens is always written.
int launch_gather_tokens(const void* x, i64 batch_stride, i64 row_stride, const i32* kept, i64 samples, i64 prefix,
                         i64 rows, i32 kmax, i64 row_bytes, i64 outputs, void* tokens, i32* positions, bool* mask,
                         i32* cu_seqlens, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  launch(kept_lengths_kernel, 1, 32, 0, s, kept, samples, kmax, prefix, cu_seqlens);
  const u64 bits = reinterpret_cast<u64>(x) | reinterpret_cast<u64>(tokens) | u64(batch_stride | row_stride) |
                   u64(row_bytes);
  const i64 unit = unit_of(bits);
  if (outputs > 0)
    with_unit(unit, [&](auto zero) {
      using V = decltype(zero);
      launch(gather_tokens_kernel<V>, blocks(outputs), 32 * warps, 0, s, 
          static_cast<const V*>(x), batch_stride / unit, row_stride / unit, kept, mask ? nullptr : cu_seqlens, samples,
          prefix, rows, kmax, row_bytes / unit, outputs, static_cast<V*>(tokens), positions, mask);
    });
  return cudaGetLastError();
}

int launch_gather_tokens_backward(const void* grad, const i32* kept, const i32* cu_seqlens, i64 samples, i64 prefix,
                                  i64 rows, i32 kmax, i64 row_bytes, i64 grad_rows, void* dx, void* stream) {
  const i64 unit = unit_of(reinterpret_cast<u64>(grad) | reinterpret_cast<u64>(dx) | u64(row_bytes));
  with_unit(unit, [&](auto zero) {
    using V = decltype(zero);
    launch(gather_tokens_backward_kernel<V>, blocks(samples * rows), 32 * warps, 0, static_cast<cudaStream_t>(stream), 
        static_cast<const V*>(grad), kept, cu_seqlens, samples, prefix, rows, kmax, row_bytes / unit, grad_rows,
        static_cast<V*>(dx));
  });
  return cudaGetLastError();
}

}  // namespace budgetprune
