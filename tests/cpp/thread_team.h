// thread_team.h: a team of real threads, so that the body a GPU block runs can be watched by ThreadSanitizer.
//
// A missing sync() in a body is a data race here, and a report. It does not model warps: BlockTeam's own scan, max and
// sum need a GPU.
#pragma once
#include <atomic>
#include <barrier>
#include <thread>
#include <vector>

#include "team.cuh"

namespace budgetprune {

struct Meeting {  // what the threads of one team share
  explicit Meeting(i32 threads) : barrier(threads), ints(threads), words(threads), numbers(2 * threads) {}
  std::barrier<> barrier;
  std::vector<i32> ints;
  std::vector<u64> words;
  std::vector<double> numbers;
};

struct ThreadTeam {
  i32 me, threads;
  Meeting* at;
  static constexpr i32 batch = 1;
  i32 rank() const { return me; }
  i32 size() const { return threads; }
  void sync() const { at->barrier.arrive_and_wait(); }
  void add(i32* p, i32 v) const { std::atomic_ref<i32>(*p).fetch_add(v, std::memory_order_relaxed); }
  i32 scan(i32 v, i32& total) const {
    at->ints[me] = v;
    sync();
    i32 before = 0;
    total = 0;
    for (i32 t = 0; t < threads; ++t) {
      if (t < me) before += at->ints[t];
      total += at->ints[t];
    }
    sync();
    return before;
  }
  template <typename V>
  V max(V v) const {
    at->words[me] = v;
    sync();
    for (i32 t = 0; t < threads; ++t) v = at->words[t] > v ? V(at->words[t]) : v;
    sync();
    return v;
  }
  template <typename V, typename F>
  void sum(i32 n, F f, V& a, V& b) const {
    double mine_a = 0, mine_b = 0;
    for (i32 i = me; i < n; i += threads) {
      V x, y;
      f(i, x, y);
      mine_a += x, mine_b += y;
    }
    at->numbers[2 * me] = mine_a, at->numbers[2 * me + 1] = mine_b;
    sync();
    double total_a = 0, total_b = 0;
    for (i32 t = 0; t < threads; ++t) total_a += at->numbers[2 * t], total_b += at->numbers[2 * t + 1];
    sync();
    a = V(total_a), b = V(total_b);
  }
};

template <typename F>
void run_team(i32 threads, F body) {
  Meeting meeting(threads);
  std::vector<std::thread> members;
  for (i32 t = 0; t < threads; ++t) members.emplace_back([&, t] { body(ThreadTeam{t, threads, &meeting}); });
  for (auto& member : members) member.join();
}

}  // namespace budgetprune
