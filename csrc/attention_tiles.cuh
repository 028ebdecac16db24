// attention_tiles.cuh: what the attention kernels on tensor cores share: tiles of 16-bit rows in shared memory, and
// their products. A warp has 16 rows; lane 4 g + t holds of them rows g and g + 8, and of columns 2 t and 2 t + 1.
#pragma once
#include "ptx.cuh"
#include "team.cuh"

#ifdef __CUDACC__
namespace budgetprune {

constexpr float log2_e = 1.4426950408889634f;

// Rows begin 16 bytes past a multiple of 32 banks or a part of one, so that ldmatrix reads eight without a conflict.
template <i32 depth>
struct TileRows {
  static constexpr i32 stride = depth + 8;
};

// Asks for `count` rows of `d` numbers into a tile: row r is from[place(r)], or zeros where place is below 0. Zeros
// beyond d too.
template <i32 depth, typename T, typename F>
__device__ void fetch_rows_at(T* tile, const T* from, i32 d, i64 stride, i32 count, F place) {
  constexpr i32 pieces = depth / 8;
  for (i32 at = threadIdx.x; at < count * pieces; at += blockDim.x) {
    const i32 row = at / pieces, c = at % pieces * 8, source = place(row);
    const bool present = source >= 0 && c < d;
    copy_async_16(tile + row * TileRows<depth>::stride + c, present ? from + i64(source) * stride + c : from, present);
  }
}
template <i32 depth, typename T>
__device__ void fetch_rows(T* tile, const T* from, i32 first, i32 total, i32 d, i64 stride, i32 count) {
  fetch_rows_at<depth>(tile, from, d, stride, count, [=](i32 row) { return first + row < total ? first + row : -1; });
}

// The 16 rows of a warp as the left operand, 16 columns from `column` on.
template <i32 depth, typename T>
__device__ void left_operand(u32 (&a)[4], const T* rows, i32 column) {
  const i32 lane = threadIdx.x % 32;
  ldmatrix_x4(a, rows + (lane / 8 % 2 * 8 + lane % 8) * TileRows<depth>::stride + column + lane / 16 * 8);
}
// Two right operands, rows of the tile being columns of the product: those from `row` on, and eight further.
template <i32 depth, typename T>
__device__ void right_rows(u32 (&near)[2], u32 (&far)[2], const T* tile, i32 row, i32 column) {
  const i32 lane = threadIdx.x % 32;
  u32 r[4];
  ldmatrix_x4(r, tile + (row + lane / 16 * 8 + lane % 8) * TileRows<depth>::stride + column + lane / 8 % 2 * 8);
  near[0] = r[0], near[1] = r[1], far[0] = r[2], far[1] = r[3];
}
// Two right operands, columns of the tile being columns of the product: those from `column` on, and eight further.
template <i32 depth, typename T>
__device__ void right_columns(u32 (&near)[2], u32 (&far)[2], const T* tile, i32 row, i32 column) {
  const i32 lane = threadIdx.x % 32;
  u32 r[4];
  ldmatrix_x4_trans(r, tile + (row + lane / 8 % 2 * 8 + lane % 8) * TileRows<depth>::stride + column + lane / 16 * 8);
  near[0] = r[0], near[1] = r[1], far[0] = r[2], far[1] = r[3];
}

// s = rows . tile rows, 32 of them from `row` on: [4][4] numbers of this lane.
template <i32 depth, typename T>
__device__ void products_of_rows(float (&s)[4][4], const T* rows, const T* tile, i32 row) {
#pragma unroll
  for (i32 i = 0; i < 4; ++i)
#pragma unroll
    for (i32 e = 0; e < 4; ++e) s[i][e] = 0;
#pragma unroll 2
  for (i32 c = 0; c < depth; c += 16) {  // not unrolled further: the operands of all steps would not fit in registers
    u32 a[4];
    left_operand<depth>(a, rows, c);
#pragma unroll
    for (i32 pair = 0; pair < 2; ++pair) {
      u32 near[2], far[2];
      right_rows<depth>(near, far, tile, row + 16 * pair, c);
      mma_16x8x16<T>(s[2 * pair], a, near);
      mma_16x8x16<T>(s[2 * pair + 1], a, far);
    }
  }
}

// sum += p . tile, p being [16 rows, 32 columns] as products_of_rows leaves them, the tile's rows from `row` on.
template <i32 depth, typename T>
__device__ void add_weighted_rows(float (&sum)[depth / 8][4], const float (&p)[4][4], const T* tile, i32 row) {
#pragma unroll
  for (i32 half = 0; half < 2; ++half) {
    const float(&left)[4] = p[2 * half], (&right)[4] = p[2 * half + 1];
    const u32 a[4] = {pack2<T>(left[0], left[1]), pack2<T>(left[2], left[3]), pack2<T>(right[0], right[1]),
                      pack2<T>(right[2], right[3])};
#pragma unroll
    for (i32 c = 0; c < depth; c += 16) {
      u32 near[2], far[2];
      right_columns<depth>(near, far, tile, row + 16 * half, c);
      mma_16x8x16<T>(sum[c / 8], a, near);
      mma_16x8x16<T>(sum[c / 8 + 1], a, far);
    }
  }
}

// The two numbers of a lane in each row and piece of eight columns, times `factor` of the row's half, into rows of d.
template <i32 depth, typename T>
__device__ void store_row(T* out, const float (&sum)[depth / 8][4], i32 half, float factor, i32 d) {
#pragma unroll
  for (i32 i = 0; i < depth / 8; ++i) {
    const i32 c = 8 * i + 2 * i32(threadIdx.x % 4);
    if (c < d) *reinterpret_cast<u32*>(out + c) = pack2<T>(sum[i][2 * half] * factor, sum[i][2 * half + 1] * factor);
  }
}

// The sum of x over the four lanes that share a row.
__device__ inline float row_total(float x) {
  x += __shfl_xor_sync(full_warp, x, 1);
  return x + __shfl_xor_sync(full_warp, x, 2);
}

}  // namespace budgetprune
#endif
