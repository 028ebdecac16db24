// merge_tokens.cuh: weighted sums of tokens, each output token over its own list of input tokens.
//
//   x        [B, N, C]    any float type
//   offsets  [B, M + 1]   ascending; list m of a sample is entries offsets[m] .. offsets[m + 1] - 1
//   index    [B, E]       the input token of each entry; -1 is none
//   weight   [B, E]       in the type that sums are made in
//   out      [B, M, C]    sum over list m of weight[e] x[index[e]]
//
// Two more maps close the set under differentiation. The transpose lists, for every input token, the entries that take
// it: merging the gradient by it is the gradient of x. The dots, <g[list of e], x[index[e]]>, are that of the weights.
// The kernels pass over an index outside [0, N) and stay inside the E entries whatever offsets holds.
#pragma once
#include "portable.h"

namespace budgetprune {

struct MergeShape {
  i32 tokens, outputs, entries;  // N, M, E
  i64 channels;                  // C
};

BP_FN i32 bounded(i32 offset, i32 entries) { return offset < 0 ? 0 : offset > entries ? entries : offset; }

// The list that holds entry e, or -1.
BP_FN i32 list_of(const i32* offsets, i32 outputs, i32 e) {
  i32 low = 0, high = outputs + 1;  // the first offset above e
  while (low < high) {
    const i32 middle = (low + high) / 2;
    if (offsets[middle] <= e) low = middle + 1;
    else high = middle;
  }
  return low > outputs ? -1 : low - 1;
}

#ifdef __CUDACC__

constexpr i32 merge_warps = 8;  // of a block

// 16 bytes of channels, or a single one.
template <typename T, i32 Width>
struct alignas(Width * sizeof(T)) Channels {
  T of[Width];
};

template <i32 Width, typename T, typename F>
__device__ void add_scaled(const Channels<T, Width>& from, F weight, F* sum) {
#pragma unroll
  for (i32 i = 0; i < Width; ++i) sum[i] += weight * static_cast<F>(from.of[i]);
}

// 32 * Width channels of one output token by `team` warps of a block, 1, 2, 4 or 8: warp w of them takes every team-th
// entry from the w-th on, 32 at a time, one a lane, and the partial sums are added in the order of the warps.
template <i32 Width, typename T, typename F>
__device__ void merge_list(const MergeShape& shape, const T* x, i64 row_stride, const i32* index, const F* weight,
                           i32 begin, i32 end, i64 channel, i32 team, F* partial, T* out) {
  const i32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, member = warp & (team - 1);
  const bool inside = channel < shape.channels;
  x += channel;
  F sum[Width] = {};
  for (i32 base = begin + member; base < end; base += 32 * team) {
    const i32 e = base + lane * team;
    i32 mine = -1;
    F scale = 0;
    if (e < end) mine = index[e], scale = weight[e];
    if (mine >= shape.tokens) mine = -1;
    for (i32 l = 0; l < 32 && base + l * team < end; l += 4) {  // a lane past the end holds no token
      Channels<T, Width> from[4];
      i32 row[4];
      F by[4];
#pragma unroll
      for (i32 u = 0; u < 4; ++u) {
        row[u] = __shfl_sync(0xffffffffu, mine, l + u);
        by[u] = __shfl_sync(0xffffffffu, scale, l + u);
        if (inside && row[u] >= 0)
          from[u] = *reinterpret_cast<const Channels<T, Width>*>(x + row[u] * row_stride);
      }
#pragma unroll
      for (i32 u = 0; u < 4; ++u)
        if (inside && row[u] >= 0) add_scaled(from[u], by[u], sum);
    }
  }
  if (team > 1) {  // the same for the whole block
#pragma unroll
    for (i32 i = 0; i < Width; ++i) partial[(warp * Width + i) * 32 + lane] = sum[i];
    __syncthreads();
    if (member != 0) return;
    for (i32 other = warp + 1; other < warp + team; ++other)
#pragma unroll
      for (i32 i = 0; i < Width; ++i) sum[i] += partial[(other * Width + i) * 32 + lane];
  }
  if (!out || !inside) return;
  Channels<T, Width> to;
#pragma unroll
  for (i32 i = 0; i < Width; ++i) to.of[i] = static_cast<T>(sum[i]);
  *reinterpret_cast<Channels<T, Width>*>(out + channel) = to;
}

// `team` warps per output token and slice of 32 vectors. Strides of x are elements; `wide`: 16 bytes at a time.
template <typename T>
__global__ void __launch_bounds__(256)
    merge_tokens_kernel(MergeShape shape, const T* x, i64 batch_stride, i64 row_stride, const i32* offsets,
                        const i32* index, const typename Accumulate<T>::type* weight, u32 samples, bool wide, i32 team,
                        T* out) {
  using F = typename Accumulate<T>::type;
  constexpr i32 width = 16 / sizeof(T);
  __shared__ F partial[merge_warps * width * 32];
  // Units are below 2^31 (merge_tokens.cpp): a division of 64 bits is a call.
  const u32 vector = wide ? width : 1, slices = u32((shape.channels + 32 * vector - 1) / (32 * vector));
  const u32 unit = blockIdx.x * (merge_warps / u32(team)) + threadIdx.x / 32 / u32(team);
  const u32 list = unit / slices, outputs = u32(shape.outputs), sample = list / outputs;
  const i64 channel = i64(unit - list * slices) * 32 * vector + threadIdx.x % 32 * vector;
  T* to = nullptr;
  i32 begin = 0, end = 0;
  if (sample < samples) {
    const i32* const own = offsets + i64(sample) * (i64(outputs) + 1) + (list - sample * outputs);
    begin = bounded(own[0], shape.entries), end = bounded(own[1], shape.entries);
    x += sample * batch_stride, index += i64(sample) * shape.entries, weight += i64(sample) * shape.entries;
    to = out + list * shape.channels;
  }
  if (wide) merge_list<width>(shape, x, row_stride, index, weight, begin, end, channel, team, partial, to);
  else merge_list<1>(shape, x, row_stride, index, weight, begin, end, channel, team, partial, to);
}

template <i32 Width, typename T>
__device__ typename Accumulate<T>::type dot_of_rows(const T* a, const T* b, i64 channels) {
  using F = typename Accumulate<T>::type;
  using V = Channels<T, Width>;
  F sum = 0;
#pragma unroll 2
  for (i64 c = threadIdx.x % 32 * Width; c < channels; c += 32 * Width) {
    const V p = *reinterpret_cast<const V*>(a + c), q = *reinterpret_cast<const V*>(b + c);
#pragma unroll
    for (i32 i = 0; i < Width; ++i) sum += static_cast<F>(p.of[i]) * static_cast<F>(q.of[i]);
  }
  for (i32 step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  return sum;
}

// One warp per entry: dots[e] = <grad[list of e], x[index[e]]>, 0 for an entry of no list or no token.
template <typename T>
__global__ void __launch_bounds__(256)
    merge_dots_kernel(MergeShape shape, const T* grad, const T* x, i64 batch_stride, i64 row_stride, const i32* offsets,
                      const i32* index, u32 samples, bool wide, typename Accumulate<T>::type* dots) {
  constexpr i32 width = 16 / sizeof(T);
  const u32 at = blockIdx.x * merge_warps + threadIdx.x / 32, entries = u32(shape.entries);
  if (at >= samples * entries) return;
  const i64 sample = at / entries;
  const i32 token = index[at];
  const i32 list = list_of(offsets + sample * (i64(shape.outputs) + 1), shape.outputs, i32(at % entries));
  typename Accumulate<T>::type sum = 0;
  if (list >= 0 && token >= 0 && token < shape.tokens) {  // the same for the whole warp
    const T* const a = grad + (sample * shape.outputs + list) * shape.channels;
    const T* const b = x + sample * batch_stride + token * row_stride;
    sum = wide ? dot_of_rows<width>(a, b, shape.channels) : dot_of_rows<1>(a, b, shape.channels);
  }
  if (threadIdx.x % 32 == 0) dots[at] = sum;
}

// A block of 256 threads holds the lists of 256 input tokens, a thread each, and reads all entries of its sample twice:
// to count its own, and to write them in order. Nothing is sorted, and nothing depends on which thread comes first.
__global__ void __launch_bounds__(256)
    merge_transpose_kernel(MergeShape shape, const i32* offsets, const i32* index, u32 tiles, i32* to_offsets,
                           i32* to_index, i32* to_entry) {
  constexpr i32 stage = 1024;
  __shared__ i32 token[stage];
  __shared__ i32 warp_sums[3][merge_warps];
  const i64 sample = blockIdx.x / tiles;
  const i32 tile = i32(blockIdx.x % tiles), me = threadIdx.x, lane = me % 32, warp = me / 32;
  const i32 first = tile * 256, mine = first + me;
  offsets += sample * (i64(shape.outputs) + 1), index += sample * shape.entries;
  to_offsets += sample * (i64(shape.tokens) + 1), to_index += sample * shape.entries;
  to_entry += sample * shape.entries;
  const i32 begin = bounded(offsets[0], shape.entries), end = bounded(offsets[shape.outputs], shape.entries);

  const auto staged = [&](i32 base, i32& below, i32& valid) {  // how many entries it holds
    const i32 held = end - base < stage ? end - base : stage;
    __syncthreads();
    for (i32 e = me; e < held; e += 256) {
      i32 found = index[base + e];
      if (found < 0 || found >= shape.tokens) found = -1;
      token[e] = found;
      below += found >= 0 && found < first;
      valid += found >= 0;
    }
    __syncthreads();
    return held;
  };

  i32 own = 0, below = 0, valid = 0, unused = 0;
  for (i64 base = begin; base < end; base += stage) {
    const i32 held = staged(i32(base), below, valid);
    for (i32 e = 0; e < held; ++e) own += token[e] == mine;
  }
  i32 before = own;  // of the warp up to here, then of the block before this thread
  for (i32 step = 1; step < 32; step *= 2) {
    const i32 other = __shfl_up_sync(0xffffffffu, before, step);
    if (lane >= step) before += other;
  }
  for (i32 step = 16; step > 0; step /= 2) {
    below += __shfl_xor_sync(0xffffffffu, below, step);
    valid += __shfl_xor_sync(0xffffffffu, valid, step);
  }
  if (lane == 31) warp_sums[0][warp] = before, warp_sums[1][warp] = below, warp_sums[2][warp] = valid;
  __syncthreads();
  before -= own, below = 0, valid = 0;
  for (i32 w = 0; w < merge_warps; ++w) {
    if (w < warp) before += warp_sums[0][w];
    below += warp_sums[1][w], valid += warp_sums[2][w];
  }
  i32 at = below + before;
  if (mine <= shape.tokens) to_offsets[mine] = at;
  for (i64 base = begin; base < end; base += stage) {
    const i32 held = staged(i32(base), unused, unused);
    for (i32 e = 0; e < held; ++e)
      if (token[e] == mine) {
        to_entry[at] = i32(base) + e;
        to_index[at++] = list_of(offsets, shape.outputs, i32(base) + e);
      }
  }
  for (i64 e = i64(valid) + me; tile == 0 && e < shape.entries; e += 256) to_entry[e] = 0, to_index[e] = -1;
}
#endif

}  // namespace budgetprune
