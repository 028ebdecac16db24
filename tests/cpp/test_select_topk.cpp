// The body of select_topk on one thread and on many equals a stable sort.
#include <algorithm>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "expect.h"
#include "select_topk.cuh"
#include "thread_team.h"

using namespace budgetprune;

template <typename T>
std::vector<i32> sorted_answer(const std::vector<T>& scores, i32 k, i32 kmax) {
  std::vector<i32> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](i32 a, i32 b) { return key_of(scores[a]) > key_of(scores[b]); });
  order.resize(k);
  std::sort(order.begin(), order.end());
  order.resize(kmax, -1);
  return order;
}

template <typename T>
void compare(const std::vector<T>& scores, i32 k, i32 kmax) {
  using Key = typename KeyOf<T>::Key;
  const i32 n = i32(scores.size());
  const auto expected = sorted_answer(scores, k, kmax);
  std::vector<Key> keys(n);
  for (i32 i = 0; i < n; ++i) keys[i] = key_of(scores[i]);

  std::vector<i32> kept(kmax + 1, -7);  // one beyond: nothing may be written there
  select_topk_row(SerialTeam{}, keys.data(), n, k, kmax, static_cast<i32*>(nullptr), kept.data());
  EXPECT(std::equal(expected.begin(), expected.end(), kept.begin()) && kept[kmax] == -7, "serial n=%d k=%d", n, k);

  for (const i32 threads : {2, 7}) {
    std::vector<i32> together(kmax + 1, -7), counts(256);
    run_team(threads, [&](const ThreadTeam& team) {
      select_topk_row(team, scores.data(), n, k, kmax, counts.data(), together.data());
    });
    EXPECT(std::equal(expected.begin(), expected.end(), together.begin()) && together[kmax] == -7,
           "%d threads n=%d k=%d", threads, n, k);
  }
}

template <typename T>
void compare_many() {
  std::mt19937 generator(0);
  std::normal_distribution<T> normal;
  const T infinity = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  for (const i32 n : {1, 7, 577}) {
    std::vector<T> scores(n), ties(n, T(0.5)), odd(n);
    for (auto& score : scores) score = normal(generator);
    for (i32 i = 0; i < n; i += 2) ties[i] = T(i % 3);
    const T values[] = {nan, infinity, -infinity, T(0), T(-0.0), std::numeric_limits<T>::denorm_min(), T(1)};
    for (i32 i = 0; i < n; ++i) odd[i] = values[generator() % 7];
    for (const i32 k : {0, 1, n / 2, n}) {
      compare(scores, k, n);
      compare(ties, k, k);
      compare(odd, k, k);
    }
  }
}

int main() {
  compare_many<float>();
  compare_many<double>();
  std::printf(failures ? "%d failures\n" : "select_topk: ok\n", failures);
  return failures != 0;
}
