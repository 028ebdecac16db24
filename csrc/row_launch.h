// row_launch.h: which kernel serves a row of n tokens, for ops whose rows lie in registers.
//
// N up to about 1024: a warp a row where there are rows enough to fill the chip twice, or where a row is no more than a
// warp holds four tokens of. N up to about 8192: a block a row. Beyond: a block that keeps its keys in memory.
#pragma once
#include "portable.h"

namespace budgetprune {

template <i32 count>
struct Items {
  static constexpr i32 value = count;
};

// A row begins up to 3 tokens into its first group of four.
inline i32 span_of(i32 n) { return n + 3; }
constexpr i32 longest_in_registers = 8192 - 3;

inline bool chip_is_full(i64 rows) {
  int device = 0, processors = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  return rows >= 2 * i64(processors);
}

// Calls warps(Items<items>, grid) or block(Items<items>, grid, threads). n is at most longest_in_registers.
template <typename Warps, typename Block>
void for_row_in_registers(i64 rows, i32 n, Warps warps, Block block) {
  const i32 span = span_of(n), threads = (span + 3) / 4;
  const u32 by_warps = u32((rows + 3) / 4);
  const bool full = span <= 1024 && chip_is_full(rows);
  if (span <= 128) warps(Items<4>{}, by_warps);
  else if (span <= 384 && full) warps(Items<12>{}, by_warps);
  else if (span <= 640 && full) warps(Items<20>{}, by_warps);
  else if (full) warps(Items<32>{}, by_warps);
  else if (span <= 4096) block(Items<4>{}, u32(rows), u32(threads + 31) / 32 * 32);
  else block(Items<8>{}, u32(rows), u32(threads + 63) / 64 * 32);
}

}  // namespace budgetprune
