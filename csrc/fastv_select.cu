// fastv_select.cu: launches the kernels. No torch: raw pointers and a stream.
#include "attention_received_launch.h"
#include "fastv_select.cuh"
#include "launch.h"

namespace budgetprune {

// Scratch: s [B, H, N] and stats [B, H, splits, 2] in the type of `scores`; tickets [B]; ranks [B, N].
int launch_fastv_select(DType dtype, const ReceivedShape& n, const void* q, const void* k, const bool* mask,
                        const bool* image, const i32* keep, i32 max_keep, i32 width, double scale, void* s, void* stats,
                        u32* tickets, u32* ranks, void* scores, i32* kept, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  launch_scores_of_row(dtype, n, q, k, mask, i32(QueryRows::last), scale, s, stats, tickets, on);
  const auto go = [&](auto zero) {
    using A = decltype(zero);
    launch(fastv_rank_kernel<A>, u32((n.keys + 127) / 128 * n.batch), 128, size_t(n.heads) * 2 * sizeof(A), on, n,
           static_cast<const A*>(s), static_cast<const A*>(stats), mask, image, keep, max_keep, width, tickets,
           static_cast<A*>(scores), ranks, kept);
  };
  if (dtype == DType::f64) go(double{});
  else go(float{});
  return cudaGetLastError();
}

}  // namespace budgetprune
