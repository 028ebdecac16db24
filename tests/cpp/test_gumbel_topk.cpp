// The body of gumbel_topk on one thread and on many: same tokens, gates and noise bit for bit, same statistics and
// gradient up to the order of additions. And the logarithm, on every uniform there is.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "expect.h"
#include "gumbel_topk_backward.cuh"
#include "thread_team.h"

using namespace budgetprune;

double units(float got, double exact) {
  const float size = std::fabs(float(exact));
  return std::fabs(got - exact) / (std::nextafter(size, std::numeric_limits<float>::infinity()) - size);
}

void check_logarithm() {
  double worst = 0, worst_outer = 0;
  for (u32 k = 0; k < (1u << 24); k += BUDGETPRUNE_LOG_STRIDE) {
    const double rest = ((0xffffffu - k) + 0.5) * 0x1p-24;
    const double exact = k < (1u << 23) ? std::log((k + 0.5) * 0x1p-24) : std::log1p(-rest);
    const float log_u = log_uniform(k);
    worst = std::max(worst, units(log_u, exact));
    worst_outer = std::max(worst_outer, units(noise_of<Noise::gumbel>(k), -std::log(-double(log_u))));
  }
  EXPECT(worst < 1.0 && worst_outer < 1.0, "worst errors %.3f and %.3f units in the last place", worst, worst_outer);
}

void check_known_words() {
  u32 words[4];
  philox(0, 0, words);  // Random123's published answer
  EXPECT(words[0] == 0x6627e8d5u && words[1] == 0xe169c58du && words[2] == 0xbc57ac4cu && words[3] == 0x9b00dbd8u,
         "%08x %08x %08x %08x", words[0], words[1], words[2], words[3]);
}

template <typename V>
bool alike(V a, V b, V scale) {
  return a == b || (a != a && b != b) || std::fabs(a - b) <= scale * (V(1) + std::fabs(b));
}

template <typename V>
void compare(const std::vector<V>& logits, i32 k, Estimator estimator, Noise noise) {
  const i32 n = i32(logits.size());
  const V close = sizeof(V) == 4 ? V(1e-4) : V(1e-10);
  const GumbelTopk op{n, n, 0.7, estimator, noise};
  const i64 key[] = {-5, 77};
  const RowNoise at = row_noise(key, false, 3, n);
  std::vector<V> slope(n);
  for (i32 i = 0; i < n; ++i) slope[i] = V(std::sin(i));

  std::vector<u32> keys(n), shared_keys(n), bits(n), shared_bits(n);
  std::vector<i32> kept(n), shared_kept(n), counts(256);
  std::vector<V> gate(n), shared_gate(n), stats(2), shared_stats(2), grad(n), shared_grad(n);
  gumbel_topk_row(SerialTeam{}, op, logits.data(), k, at, counts.data(), keys.data(), gate.data(), kept.data(),
                  stats.data());
  gumbel_topk_backward_row(SerialTeam{}, op, slope.data(), logits.data(), at, stats.data(), bits.data(), grad.data());
  EXPECT(std::count(gate.begin(), gate.end(), V(1)) == k, "n=%d k=%d", n, k);

  run_team(6, [&](const ThreadTeam& team) {
    gumbel_topk_row(team, op, logits.data(), k, at, counts.data(), shared_keys.data(), shared_gate.data(),
                    shared_kept.data(), shared_stats.data());
    team.sync();
    gumbel_topk_backward_row(team, op, slope.data(), logits.data(), at, stats.data(), shared_bits.data(),
                             shared_grad.data());
  });
  EXPECT(kept == shared_kept && gate == shared_gate, "n=%d k=%d estimator=%d", n, k, int(estimator));
  for (i32 j = 0; j < 2; ++j)
    EXPECT(alike(stats[j], shared_stats[j], close), "stats n=%d k=%d estimator=%d: %g %g", n, k, int(estimator),
           double(stats[j]), double(shared_stats[j]));
  for (i32 i = 0; i < n; ++i)
    EXPECT(alike(grad[i], shared_grad[i], close), "gradient n=%d k=%d at %d: %g %g", n, k, i, double(grad[i]),
           double(shared_grad[i]));
}

template <typename V>
void compare_many() {
  std::mt19937 generator(0);
  std::normal_distribution<V> normal;
  for (const i32 n : {1, 65, 577}) {
    std::vector<V> logits(n), odd(n);
    for (auto& logit : logits) logit = normal(generator);
    for (i32 i = 0; i < n; ++i) odd[i] = i % 3 ? -std::numeric_limits<V>::infinity() : V(1e4) * V(i % 2);
    if (n == 65) odd[12] = std::numeric_limits<V>::quiet_NaN();
    const std::pair<Estimator, Noise> pairs[] = {{Estimator::race, Noise::gumbel},
                                                 {Estimator::fermi, Noise::logistic},
                                                 {Estimator::softmax, Noise::none}};
    for (const auto& [estimator, noise] : pairs)
      for (const i32 k : {0, n / 3, n}) {
        compare(logits, k, estimator, noise);
        compare(odd, k, estimator, noise);
      }
  }
}

int main() {
  check_known_words();
  check_logarithm();
  compare_many<float>();
  compare_many<double>();
  std::printf(failures ? "%d failures\n" : "gumbel_topk: ok\n", failures);
  return failures != 0;
}
