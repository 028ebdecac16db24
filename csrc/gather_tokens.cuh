// gather_tokens.cuh: the rows of x at the kept positions, with what attention asks of them.
//
//   x       [B, P + N, C]   any element; copied in units of V (16 bytes where alignment allows)
//   kept    [B, Kmax]       ascending positions counted after the P prefix rows, padded with -1
//   tokens  [B, P + Kmax, C] padded with zeros, or packed [total, C]
//   cu_seqlens [B + 1]      where each sample begins when packed
// A kernel clamps what it reads from kept, so it stays inside x whatever kept holds.
#pragma once
#include "team.cuh"

namespace budgetprune {

// How many of a row of kept come before its padding.
BP_FN i32 kept_count(const i32* kept, i32 kmax) {
  i32 low = 0, high = kmax;
  while (low < high) {
    const i32 middle = (low + high) / 2;
    if (kept[middle] >= 0) low = middle + 1;
    else high = middle;
  }
  return low;
}

// The row of x behind the i-th token of a sample, or -1 where it is padding.
BP_FN i64 source_row(const i32* kept, i64 i, i64 prefix, i64 rows, i32 kmax) {
  if (i < prefix) return i;
  if (i - prefix >= kmax || kept[i - prefix] < 0) return -1;
  const i64 row = prefix + kept[i - prefix];
  return row < rows ? row : rows - 1;
}

// The inverse: which token of its sample a row of x became, or -1 where it was dropped.
BP_FN i64 token_of_row(const i32* kept, i64 row, i64 prefix, i32 count) {
  if (row < prefix) return row;
  i32 low = 0, high = count;
  while (low < high) {
    const i32 middle = (low + high) / 2;
    if (kept[middle] < row - prefix) low = middle + 1;
    else high = middle;
  }
  return low < count && kept[low] == row - prefix ? prefix + low : -1;
}

// The sample that packed token `at` belongs to, `samples` where it is past the last.
BP_FN i64 sample_of(const i32* cu_seqlens, i64 samples, i64 at) {
  i64 low = 0, high = samples;
  while (low < high) {
    const i64 middle = (low + high) / 2;
    if (cu_seqlens[middle + 1] <= at) low = middle + 1;
    else high = middle;
  }
  return low;
}

#ifdef __CUDACC__
// Where a sample's tokens lie among all packed ones: every block adds up the lengths before it, its threads a sample
// each. `sums` is 32 ints of shared memory. Uniform over the block.
__device__ inline i64 packed_start(const i32* kept, i64 sample, i32 kmax, i64 prefix, i32* sums) {
  i64 mine = 0;
  for (i64 b = threadIdx.x; b < sample; b += blockDim.x) mine += prefix + kept_count(kept + b * kmax, kmax);
  u32 all;
  BlockTeam{sums}.before(u32(mine), all);  // B * (P + Kmax) is below 2^31
  return i64(all);
}

// cu_seqlens, by one block.
__device__ inline void write_starts(const i32* kept, i64 samples, i32 kmax, i64 prefix, i32* cu_seqlens, i32* sums) {
  u32 done = 0;
  for (i64 base = 0; base < samples; base += blockDim.x) {
    const i64 b = base + threadIdx.x;
    const u32 length = b < samples ? u32(prefix) + u32(kept_count(kept + b * kmax, kmax)) : 0u;
    u32 all;
    const u32 before = BlockTeam{sums}.before(length, all);
    if (b < samples) cu_seqlens[b] = i32(done + before);
    done += all;
  }
  if (threadIdx.x == 0) cu_seqlens[samples] = i32(done);
}

// A warp copies up to 32 rows: lane r knows the source of row r, or -1 for zeros. Four loads are in flight, of one wide
// row or of four narrow ones.
template <typename V>
__device__ void copy_rows(const V* from, i64 from_stride, i64 source, V* to, i32 rows, i64 units) {
  const i32 lane = threadIdx.x % 32;
  if (units <= 32) {
    for (i32 r = 0; r < rows; r += 4) {
      V value[4];
#pragma unroll
      for (i32 j = 0; j < 4; ++j) {
        const i64 row = __shfl_sync(full_warp, source, (r + j) % 32);
        value[j] = row >= 0 && lane < units ? from[row * from_stride + lane] : V{};
      }
#pragma unroll
      for (i32 j = 0; j < 4; ++j)
        if (r + j < rows && lane < units) to[(r + j) * units + lane] = value[j];
    }
    return;
  }
  for (i32 r = 0; r < rows; ++r) {
    const i64 row = __shfl_sync(full_warp, source, r);
    const V* const in = from + row * from_stride;
    V* const out = to + r * units;
    for (i64 u = lane; u < units; u += 128) {
      V value[4];
#pragma unroll
      for (i32 j = 0; j < 4; ++j) value[j] = row >= 0 && u + 32 * j < units ? in[u + 32 * j] : V{};
#pragma unroll
      for (i32 j = 0; j < 4; ++j)
        if (u + 32 * j < units) out[u + 32 * j] = value[j];
    }
  }
}

// What one launch of the gather knows; strides in units of what is copied. `total` is the packed size, below 0: padded.
struct Gather {
  i64 samples, prefix, rows, batch_stride, row_stride, units, total;
  i32 kmax, chunks;  // blocks of a sample
};

// The rows of a block: chunk `blockIdx.x % chunks` of a sample, four warps of `per_warp` rows.
struct GatherPart {
  i64 sample, first;  // of this warp
  i32 count;
  __device__ GatherPart(const Gather& op, i64 length) {
    const i64 per_warp = (length + 4 * i64(op.chunks) - 1) / (4 * i64(op.chunks));
    sample = blockIdx.x / op.chunks;
    first = (i64(blockIdx.x % op.chunks) * 4 + threadIdx.x / 32) * per_warp;
    const i64 left = length - first;
    count = i32(left < 0 ? 0 : left < per_warp ? left : per_warp);
  }
};

// Rows, positions, mask and cu_seqlens in one launch. Each warp takes its rows 32 at a time.
template <typename V, typename F>
__device__ void gather_rows(const Gather& op, const i32* kept, i32* positions, bool* mask, i32* cu_seqlens, F copy) {
  __shared__ i32 sums[32];
  const i32 lane = threadIdx.x % 32;
  const i64 length = op.prefix + op.kmax;
  if (blockIdx.x == 0) write_starts(kept, op.samples, op.kmax, op.prefix, cu_seqlens, sums);
  const GatherPart part(op, length);
  if (part.sample >= op.samples) return;  // no sample at all
  const i32* mine = kept + part.sample * op.kmax;
  i64 start = part.sample * length, present = length;
  if (op.total >= 0) {
    start = packed_start(kept, part.sample, op.kmax, op.prefix, sums);
    // A wrong total cuts off, or is filled up with padding by the last sample.
    const i64 room = op.total > start ? op.total - start : 0;
    present = op.prefix + kept_count(mine, op.kmax);
    if (present > room || part.sample == op.samples - 1) present = room;
  }
  const bool last_part = part.sample == op.samples - 1 && blockIdx.x % op.chunks == u32(op.chunks - 1) &&
                         threadIdx.x / 32 == 3 && op.total >= 0;
  const i64 end = last_part ? present : part.first + part.count < present ? part.first + part.count : present;
  for (i64 i = part.first; i < end; i += 32) {
    const i32 here = i32(end - i < 32 ? end - i : 32);
    const i64 source = lane < here ? source_row(mine, i + lane, op.prefix, op.rows, op.kmax) : -1;
    if (lane < here) {
      positions[start + i + lane] = source < 0 ? 0 : i32(source);
      if (mask) mask[start + i + lane] = source >= 0;
    }
    copy(part.sample, source, start + i, here);
  }
}

template <typename V>
__global__ void __launch_bounds__(128, 6) gather_tokens_kernel(Gather op, const V* x, const i32* kept, V* tokens,
                                                            i32* positions, bool* mask, i32* cu_seqlens) {
  gather_rows<V>(op, kept, positions, mask, cu_seqlens, [&](i64 sample, i64 source, i64 to, i32 rows) {
    copy_rows(x + sample * op.batch_stride, op.row_stride, source, tokens + to * op.units, rows, op.units);
  });
}

// Each row of dX, its token's gradient or zeros, written once. A lane looks up one row for all others.
template <typename V>
__global__ void __launch_bounds__(128, 6) gather_tokens_backward_kernel(Gather op, const V* grad, const i32* kept,
                                                                     const i32* cu_seqlens, V* dx) {
  const i32 lane = threadIdx.x % 32;
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
    copy_rows(grad, op.units, source, dx + (part.sample * op.rows + i) * op.units, here, op.units);
  }
}
#endif

}  // namespace budgetprune
