// The kernels of greedy_select, every CUDA thread an operating-system thread: a missing barrier is a race that
// ThreadSanitizer sees, an index outside an error of AddressSanitizer's. All ways of a launch keep the same tokens.
#define SIMT_THREADS
#include "cuda_emulated.h"

#include <random>
#include <vector>

#include "expect.h"
#include "greedy_select.cu"

using namespace budgetprune;

struct Case {
  i32 samples, n, channels;
  std::vector<float> similarity, relevance;
  Case(i32 samples, i32 n, i32 channels) : samples(samples), n(n), channels(channels) {
    std::mt19937 generator(0);
    std::normal_distribution<float> normal;
    std::vector<float> x(size_t(samples) * n * channels);
    for (float& value : x) value = normal(generator);
    for (i32 b = 0; b < samples; ++b)
      for (i32 i = 0; i < n; ++i) {
        relevance.push_back(0.1f + std::abs(normal(generator)));
        for (i32 j = 0; j < n; ++j) {
          float dot = 0;
          for (i32 c = 0; c < channels; ++c)
            dot += x[(size_t(b) * n + i) * channels + c] * x[(size_t(b) * n + j) * channels + c];
          similarity.push_back(dot / float(channels));
        }
      }
  }
};

static std::vector<i32> select(const Case& at, i32 k, bool dpp, bool in_memory) {
  const size_t rows = size_t(at.samples);
  std::vector<i32> kept(rows * k, -7), keep(rows, k);
  keep[0] = k / 2;
  std::vector<float> factor(rows * k * at.n), scratch(in_memory ? 2 * rows * at.n : 0);
  std::vector<u32> nearest(rows * at.n);
  EXPECT(launch_greedy_select(DType::f32, at.similarity.data(), dpp ? at.relevance.data() : nullptr, keep.data(),
                              at.samples, at.n, k, dpp, nearest.data(), factor.data(),
                              in_memory ? scratch.data() : nullptr, nullptr, kept.data(), nullptr) == 0);
  for (i32 b = 0; b < at.samples; ++b)
    for (i32 j = 0; j < k; ++j) {
      const i32 here = kept[size_t(b) * k + j];
      if (j >= keep[b]) EXPECT(here == -1);
      else EXPECT(here < at.n && here > (j ? kept[size_t(b) * k + j - 1] : -1));
    }
  return kept;
}

static std::vector<i32> in_turns_of(const Case& at, i32 k) {
  const size_t rows = size_t(at.samples), tiles = size_t(at.n + dpp_tile - 1) / dpp_tile;
  std::vector<i32> kept(rows * k, -7), keep(rows, k);
  keep[0] = k / 2;
  std::vector<float> factor(rows * k * at.n), scratch(2 * rows * at.n);
  std::vector<u64> turns((2 * rows * (tiles * 8 + 4) + 7) / 8);
  launch_turns<float>(at.similarity.data(), at.relevance.data(), keep.data(), at.samples, at.n, k, turns.data(),
                      factor.data(), scratch.data(), kept.data(), nullptr);
  return kept;
}

int main() {
  const Case at(2, 150, 40);
  EXPECT(select(at, 14, false, false) == select(at, 14, false, true));
  const auto kept = select(at, 14, true, false);
  EXPECT(kept == select(at, 14, true, true));
  EXPECT(kept == in_turns_of(at, 14));
  return failures != 0;
}
