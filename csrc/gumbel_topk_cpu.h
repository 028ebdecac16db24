// gumbel_topk_cpu.h: the row bodies of gumbel_topk, compiled once per vector width. `flatten` inlines the whole body
// into each clone; a call left behind would run code of the oldest x86-64.
#pragma once
#include "gumbel_topk_backward.cuh"

#ifdef __GNUC__
#define BP_FLATTEN __attribute__((flatten))
#else
#define BP_FLATTEN
#endif

namespace budgetprune {

struct RowScratch {
  u32* keys;    // [n]
  i32* counts;  // [256]
};

BP_SIMD BP_FLATTEN void gumbel_topk_row_f32(const GumbelTopk& op, const float* logits, i32 k, const RowNoise& at,
                                            const RowScratch& scratch, float* gate, i32* kept, float* stats) {
  gumbel_topk_row(SerialTeam{}, op, logits, k, at, scratch.counts, scratch.keys, gate, kept, stats);
}
BP_SIMD BP_FLATTEN void gumbel_topk_row_f64(const GumbelTopk& op, const double* logits, i32 k, const RowNoise& at,
                                            const RowScratch& scratch, double* gate, i32* kept, double* stats) {
  gumbel_topk_row(SerialTeam{}, op, logits, k, at, scratch.counts, scratch.keys, gate, kept, stats);
}
BP_SIMD BP_FLATTEN void gumbel_topk_backward_row_f32(const GumbelTopk& op, const float* grad, const float* logits,
                                                     const RowNoise& at, const float* stats, u32* bits, float* out) {
  gumbel_topk_backward_row(SerialTeam{}, op, grad, logits, at, stats, bits, out);
}
BP_SIMD BP_FLATTEN void gumbel_topk_backward_row_f64(const GumbelTopk& op, const double* grad, const double* logits,
                                                     const RowNoise& at, const double* stats, u32* bits, double* out) {
  gumbel_topk_backward_row(SerialTeam{}, op, grad, logits, at, stats, bits, out);
}

}  // namespace budgetprune
