// gather_tokens_gated.cuh: the gather with a gate on each token, and its gradient.
//
//   tokens = gate x for kept rows, x for the prefix;  dx = gate dy;  dgate = dy . x where kept, 0 where dropped
// gate [B, N] in the type that sums are made in.
#pragma once
#include "gather_tokens.cuh"

#ifdef __CUDACC__
namespace budgetprune {

// As many elements as one access takes: 16 bytes where `Pack` says so, else one.
template <typename T, i32 count>
struct alignas(sizeof(T) * count) Pack {
  T at[count];
};

// One row by a warp: out = factor * in; returns the dot product of `in` and `other` over the row where it is given.
template <typename P, i32 count, typename T, typename A>
__device__ A scale_row(const T* in, const T* other, A factor, T* out, i64 channels) {
  A dot = 0;
  for (i64 c = i64(threadIdx.x % 32) * count; c < channels; c += 32 * count) {
    P value = *reinterpret_cast<const P*>(in + c);
    if (other) {
      const P with = *reinterpret_cast<const P*>(other + c);
      for (i32 j = 0; j < count; ++j) dot += A(value.at[j]) * A(with.at[j]);
    }
    for (i32 j = 0; j < count; ++j) value.at[j] = T(A(value.at[j]) * factor);
    *reinterpret_cast<P*>(out + c) = value;
  }
  return other ? warp_total(dot) : dot;
}
template <typename T, typename A>
__device__ A scale_row(bool wide, const T* in, const T* other, A factor, T* out, i64 channels) {
  constexpr i32 count = 16 / sizeof(T);
  return wide ? scale_row<Pack<T, count>, count>(in, other, factor, out, channels)
              : scale_row<Pack<T, 1>, 1>(in, other, factor, out, channels);
}
template <typename T>
__device__ void zero_row(bool wide, T* out, i64 channels) {
  constexpr i32 count = 16 / sizeof(T);
  if (wide)
    for (i64 c = i64(threadIdx.x % 32) * count; c < channels; c += 32 * count)
      *reinterpret_cast<uint4*>(out + c) = uint4{0, 0, 0, 0};
  else
    for (i64 c = threadIdx.x % 32; c < channels; c += 32) out[c] = T(0.0f);
}

// `wide`: every row begins on 16 bytes and is a multiple of them long. op.units counts elements.
template <typename T>
__global__ void __launch_bounds__(128, 4) gather_tokens_gated_kernel(Gather op, const T* x,
                                                                  const typename Accumulate<T>::type* gate, bool wide,
                                                                  const i32* kept, T* tokens, i32* positions,
                                                                  bool* mask, i32* cu_seqlens) {
  using A = typename Accumulate<T>::type;
  const i64 candidates = op.rows - op.prefix;
  gather_rows<T>(op, kept, positions, mask, cu_seqlens, [&](i64 sample, i64 source, i64 to, i32 rows) {
    for (i32 r = 0; r < rows; ++r) {
      const i64 row = __shfl_sync(full_warp, source, r);
      T* const out = tokens + (to + r) * op.units;
      if (row < 0) {
        zero_row(wide, out, op.units);
      } else {
        const A factor = row < op.prefix ? A(1) : gate[sample * candidates + row - op.prefix];
        scale_row<T, A>(wide, x + sample * op.batch_stride + row * op.row_stride, nullptr, factor, out, op.units);
      }
    }
  });
}

// A warp a row of dX: the gradient times the gate, or zeros; and the row's dot product for the gate.
template <typename T>
__global__ void __launch_bounds__(128, 4)
    gather_tokens_gated_backward_kernel(Gather op, const T* grad, const T* x,
                                        const typename Accumulate<T>::type* gate, bool wide, const i32* kept,
                                        const i32* cu_seqlens, T* dx, typename Accumulate<T>::type* dgate) {
  using A = typename Accumulate<T>::type;
  const i32 lane = threadIdx.x % 32;
  const i64 candidates = op.rows - op.prefix;
  const GatherPart part(op, op.rows);
  const i32* mine = kept + part.sample * op.kmax;
  const i32 count = kept_count(mine, op.kmax);
  const i64 start = op.total >= 0 ? i64(cu_seqlens[part.sample]) : part.sample * (op.prefix + op.kmax);
  const i64 bound = op.total >= 0 ? op.total : op.samples * (op.prefix + op.kmax);
  for (i64 i = part.first; i < part.first + part.count; i += 32) {
    const i64 left = part.first + part.count - i;
    const i32 here = i32(left < 32 ? left : 32);
    i64 source = lane < here ? token_of_row(mine, i + lane, op.prefix, count) : -1;
    if (source >= 0) source += start;
    if (source >= bound) source = -1;
    for (i32 r = 0; r < here; ++r) {
      const i64 row = i + r, token = __shfl_sync(full_warp, source, r);
      T* const out = dx + (part.sample * op.rows + row) * op.units;
      A dot = 0;
      if (token < 0) {
        zero_row(wide, out, op.units);
      } else {
        const T* const in = x + part.sample * op.batch_stride + row * op.row_stride;
        const A factor = row < op.prefix ? A(1) : gate[part.sample * candidates + row - op.prefix];
        dot = scale_row<T, A>(wide, grad + token * op.units, in, factor, out, op.units);
      }
      if (lane == 0 && row >= op.prefix) dgate[part.sample * candidates + row - op.prefix] = dot;
    }
  }
}

}  // namespace budgetprune
#endif
