// cpu_tiles.h: products of small matrices and row exponentials in scratch memory, for the CPU loops.
//
// A right-hand matrix is packed in panels of `width` columns, so the inner loop reads memory in order
// whatever its size: element (k, c) of a matrix with `depth` rows stands at
// panels[c / width * depth * width + k * width + c % width], and columns are padded with zeros.
// Here products and sums may fuse, so CPU and GPU need not agree bit for bit: FastV and PruMerge rank by such sums, and
// near ties may fall otherwise on another machine.
#pragma once
#include <limits>
#include <vector>

#include "portable.h"

namespace budgetprune {

template <typename A>
struct Tile {
  static constexpr i64 lanes = 64 / i64(sizeof(A)), width = 2 * lanes;
  static i64 padded(i64 n) { return (n + width - 1) / width * width; }
};

template <typename A>
constexpr A minus_infinity = -std::numeric_limits<A>::infinity();

// Zeroed memory of one thread, handed out in 64-byte aligned pieces.
template <typename A>
class Scratch {
 public:
  explicit Scratch(i64 elements, i64 pieces) : storage_(elements + (pieces + 1) * Tile<A>::lanes) {
    next_ = storage_.data();
    while (reinterpret_cast<std::uintptr_t>(next_) % 64) ++next_;
  }
  A* take(i64 elements) {
    A* piece = next_;
    next_ += (elements + Tile<A>::lanes - 1) / Tile<A>::lanes * Tile<A>::lanes;
    return piece;
  }

 private:
  std::vector<A> storage_;
  A* next_;
};

template <typename A>
inline A& panel_at(A* panels, i64 depth, i64 k, i64 c) {
  constexpr i64 w = Tile<A>::width;
  return panels[c / w * depth * w + k * w + c % w];
}

// c[m][n] (+)= sum over k < k_end of a(m, k) b(k, n): a(m, k) = a[m * am + k * ak], b is packed with `depth`
// rows, and columns of c are written up to the end of b's last panel.
void matmul(const float* a, i64 am, i64 ak, const float* panels, i64 depth, float* c, i64 ldc, i64 rows, i64 columns,
            i64 k_end, bool add);
void matmul(const double* a, i64 am, i64 ak, const double* panels, i64 depth, double* c, i64 ldc, i64 rows,
            i64 columns, i64 k_end, bool add);

// s[j] <- exp(s[j] + bias[j] - lse) over j < n, and 0 for n <= j < padded; returns lse = log sum exp(s + bias).
// n = 0 gives -infinity; NaN, or a row without a finite value, gives NaN as torch.softmax does.
float softmax_row(float* s, const float* bias, i64 n, i64 padded);
double softmax_row(double* s, const double* bias, i64 n, i64 padded);

// The backward row of a softmax with gates. Over j < n, with y = exp(min(s[j] + bias[j] - lse, cap)) and
// slope[j] - delta the derivative by the attention of j:
//   dgate[j] += y inverse[j] (slope[j] - delta);  slope[j] <- y (slope[j] - delta);  s[j] <- y
// Where present[j] is 0, y inverse[j] becomes y / (1 + y) and the last two are 0, as for n <= j < padded.
template <typename A>
struct SlopeRow {
  A *s, *slope, *dgate;
  const A *bias, *inverse, *present;
};
void slope_row(const SlopeRow<float>& row, float lse, float delta, float cap, i64 n, i64 padded);
void slope_row(const SlopeRow<double>& row, double lse, double delta, double cap, i64 n, i64 padded);

// s[r] = query . rows[r] over d numbers; nothing need be aligned.
void dot_rows(const float* query, const float* const* rows, i64 count, i64 d, float* s);
void dot_rows(const double* query, const double* const* rows, i64 count, i64 d, double* s);

}  // namespace budgetprune
