// gather_tokens_cpu.h: what only the CPU's gather does: it checks positions before it believes them, and scales rows.
#pragma once
#include "gather_tokens.cuh"
#include "torch_support.h"

namespace budgetprune {

// Reads each row of kept once, whole: in range, ascending, padded at the end only.
inline void check_positions(const i32* kept, int64_t samples, int64_t kmax, int64_t tokens) {
  for (int64_t b = 0; b < samples; ++b)
    for (int64_t i = 0; i < kmax; ++i) {
      const i32 here = kept[b * kmax + i], before = i ? kept[b * kmax + i - 1] : -1;
      const bool padding = here == -1;
      STD_TORCH_CHECK(padding || (0 <= here && here < tokens), "gather_tokens: kept must be in [0, N=", tokens,
                      ") or -1, got ", here, " in row ", b);
      STD_TORCH_CHECK(padding || i == 0 || before != -1, "gather_tokens: kept must have -1 only at the end, got ", here,
                      " after -1 in row ", b);
      STD_TORCH_CHECK(padding || here > before, "gather_tokens: kept must ascend strictly, got ", here, " after ",
                      before, " in row ", b);
    }
}

inline void check_starts(const i32* starts, const i32* kept, int64_t samples, int64_t kmax, int64_t prefix,
                         int64_t total) {
  for (int64_t b = 0, start = 0; b <= samples; ++b) {
    STD_TORCH_CHECK(starts[b] == start, "gather_tokens_backward: cu_seqlens must be as gather_tokens gave it");
    start += b < samples ? prefix + kept_count(kept + b * kmax, i32(kmax)) : 0;
    STD_TORCH_CHECK(b < samples || start == total, "gather_tokens_backward: grad must be [total, C]");
  }
}

// to = from * factor.
template <typename T, typename A>
void scale_row(const T* from, A factor, T* to, int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) to[c] = static_cast<T>(static_cast<A>(from[c]) * factor);
}
// a . b, in sixteen running sums.
template <typename A, typename T>
A dot_of_rows(const T* a, const T* b, int64_t channels) {
  A lanes[16] = {}, total = 0;
  int64_t c = 0;
  for (; c + 16 <= channels; c += 16)
    for (int64_t lane = 0; lane < 16; ++lane)
      lanes[lane] += static_cast<A>(a[c + lane]) * static_cast<A>(b[c + lane]);
  for (A lane : lanes) total += lane;
  for (; c < channels; ++c) total += static_cast<A>(a[c]) * static_cast<A>(b[c]);
  return total;
}

}  // namespace budgetprune
