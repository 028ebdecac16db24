// The CUDA kernels themselves, every CUDA thread an operating-system thread, so that ThreadSanitizer sees a missing
// barrier and AddressSanitizer an index outside. That the answers are right is for tests/ops to say, by fibers.
#define SIMT_THREADS
#include "cuda_emulated.h"

#include <random>
#include <vector>

#include "expect.h"
#include "gumbel_topk.cu"
#include "select_topk.cu"

using namespace budgetprune;

static std::vector<float> random_numbers(size_t count) {
  static std::mt19937 generator(0);
  std::normal_distribution<float> normal;
  std::vector<float> numbers(count);
  for (float& x : numbers) x = normal(generator);
  return numbers;
}

static void selection(i64 rows, i32 n, i32 k) {
  const auto scores = random_numbers(size_t(rows) * n);
  std::vector<i32> kept(size_t(rows) * k, -7);
  EXPECT(launch_select_topk(DType::f32, scores.data(), nullptr, rows, n, k, kept.data(), nullptr) == 0);
  for (i64 r = 0; r < rows; ++r) {
    float worst_kept = INFINITY;
    i32 better = 0;
    for (i32 j = 0; j < k; ++j) {
      EXPECT(j == 0 || kept[r * k + j - 1] < kept[r * k + j]);
      worst_kept = std::min(worst_kept, scores[r * n + kept[r * k + j]]);
    }
    for (i32 i = 0; i < n; ++i) better += scores[r * n + i] >= worst_kept;
    EXPECT(better == k);
  }
}

static void noisy_selection(i64 rows, i32 n, i32 k, Estimator estimator) {
  const auto logits = random_numbers(size_t(rows) * n), grad = random_numbers(size_t(rows) * n);
  std::vector<float> gate(size_t(rows) * n, -7.0f), stats(2 * rows), out(size_t(rows) * n, -7.0f);
  std::vector<i32> kept(size_t(rows) * k, -7);
  const i64 key[2] = {3, 4};
  const GumbelTopk op{n, k, 1.0, estimator, Noise::gumbel};
  EXPECT(!gumbel_topk_needs_scratch(n));
  EXPECT(launch_gumbel_topk(DType::f32, op, logits.data(), nullptr, key, false, rows, nullptr, gate.data(), kept.data(),
                            stats.data(), nullptr) == 0);
  EXPECT(launch_gumbel_topk_backward(DType::f32, op, grad.data(), logits.data(), key, false, rows, stats.data(),
                                     nullptr, out.data(), nullptr) == 0);
  for (i64 r = 0; r < rows; ++r) {
    float ones = 0, sum = 0;
    for (i32 i = 0; i < n; ++i) ones += gate[r * n + i], sum += out[r * n + i];
    EXPECT(ones == float(k));
    EXPECT(std::abs(sum) < 1e-4f);  // what one token gains the others lose
  }
}

int main() {
  selection(5, 100, 10);    // a warp a row
  selection(2, 300, 30);    // a block a row
  selection(1, 8200, 100);  // keys in memory
  for (Estimator estimator : {Estimator::race, Estimator::softmax}) {
    noisy_selection(5, 100, 10, estimator);
    noisy_selection(2, 301, 30, estimator);
  }
  return failures != 0;
}
