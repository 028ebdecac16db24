// The kernels of attention, every CUDA thread an operating-system thread: see test_kernels.cpp. Two runs must agree bit
// for bit.
#define SIMT_THREADS
#include "cuda_emulated.h"

#include <random>
#include <vector>

#include "attention_received.cu"
#include "expect.h"
#include "gated_attention.cu"

using namespace budgetprune;

static std::vector<float> random_numbers(size_t count) {
  static std::mt19937 generator(0);
  std::normal_distribution<float> normal;
  std::vector<float> numbers(count);
  for (float& x : numbers) x = normal(generator);
  return numbers;
}
static std::vector<__half> halves(const std::vector<float>& from) { return {from.begin(), from.end()}; }

template <typename F>
static void twice_alike(const char* name, F run) {
  const auto first = run();
#ifdef __SANITIZE_THREAD__  // a second run would tell it nothing new, and takes long
  const auto& second = first;
#else
  const auto second = run();
#endif
  EXPECT(std::memcmp(first.data(), second.data(), first.size() * sizeof first[0]) == 0, "%s", name);
  float sum = 0;
  for (float x : first) sum += x;
  EXPECT(sum == sum, "%s", name);
}

int main() {
  const i64 batch = 1, heads = 2, kv_heads = 1, length = 66, d = 24;
  const auto q = halves(random_numbers(batch * heads * length * d)), grad = halves(random_numbers(q.size()));
  const auto k = halves(random_numbers(batch * kv_heads * length * d)), v = halves(random_numbers(k.size()));
  const ReceivedShape shape{batch, heads, kv_heads, length, length, d,
                            {heads * length * d, length * d, d}, {kv_heads * length * d, length * d, d}};
  for (QueryRows rows : {QueryRows::last, QueryRows::all})
    twice_alike("attention_received", [&] {
      std::vector<float> scratch(batch * heads * length), parts(batch * heads * length), scores(batch * length);
      EXPECT(launch_attention_received(DType::f16, shape, q.data(), k.data(), nullptr, i32(rows), 1, 0.2,
                                       scratch.data(), parts.data(), scores.data(), nullptr) == 0);
      float sum = 0;
      for (float x : scores) sum += x;
      EXPECT(std::abs(sum - 1) < 1e-4f);
      return scores;
    });

  std::vector<float> gate(batch * length);
  for (i64 j = 0; j < length; ++j) gate[j] = j % 3 ? 1.0f : 0.0f;
  const i64 sizes[] = {batch, heads, kv_heads, length, length, d};
  twice_alike("gated_attention", [&] {
    std::vector<__half> out(q.size()), dq(q.size()), dk(k.size()), dv(k.size());
    std::vector<float> lse(batch * heads * length), delta(2 * lse.size());
    std::vector<float> dgate(gate.size()), parts(kv_heads * gate.size());
    std::vector<i32> order(batch * (length + 2));
    EXPECT(launch_gated_attention(DType::f16, q.data(), k.data(), v.data(), gate.data(), nullptr, sizes, true, 0.2,
                                  out.data(), lse.data(), order.data(), nullptr) == 0);
    EXPECT(launch_gated_attention_backward(DType::f16, grad.data(), q.data(), k.data(), v.data(), gate.data(), nullptr,
                                           out.data(), lse.data(), sizes, true, 0.2, dq.data(), dk.data(), dv.data(),
                                           dgate.data(), delta.data(), parts.data(), order.data(), nullptr) == 0);
    std::vector<float> all(dgate);
    for (const auto* numbers : {&out, &dq, &dk, &dv}) all.insert(all.end(), numbers->begin() + d, numbers->end());
    return all;
  });
  return failures != 0;
}
