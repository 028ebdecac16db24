// The kernels of the gather and of FastV's choice, thread for thread: see test_kernels.cpp.
#define SIMT_THREADS
#include "cuda_emulated.h"

#include <vector>

#include "attention_received.cu"
#include "expect.h"
#include "fastv_select.cu"
#include "gather_tokens.cu"

using namespace budgetprune;

static void gather() {
  const i64 samples = 3, rows = 40, channels = 9, prefix = 1;
  const i32 kmax = 6;
  std::vector<float> x(samples * rows * channels), dx(x.size(), -7.0f);
  std::vector<float> tokens(samples * (prefix + kmax) * channels, -7.0f);
  for (size_t i = 0; i < x.size(); ++i) x[i] = float(i);
  const std::vector<i32> kept = {0, 3, 9, 20, 30, 38, 5, 6, 7, -1, -1, -1, -1, -1, -1, -1, -1, -1};
  std::vector<i32> positions(samples * (prefix + kmax)), starts(samples + 1);
  const i64 row_bytes = channels * i64(sizeof(float)), total = 3 * prefix + 9;
  EXPECT(launch_gather_tokens(x.data(), rows * row_bytes, row_bytes, kept.data(), samples, prefix, rows, kmax,
                              row_bytes, total, tokens.data(), positions.data(), nullptr, starts.data(), nullptr) == 0);
  EXPECT(starts[1] == 7 && starts[2] == 11 && starts[3] == 12);
  for (i64 b = 0; b < samples; ++b)
    for (i32 t = starts[b]; t < starts[b + 1]; ++t)
      for (i64 c = 0; c < channels; ++c)
        EXPECT(tokens[t * channels + c] == x[(b * rows + positions[t]) * channels + c]);
  EXPECT(launch_gather_tokens_backward(tokens.data(), kept.data(), starts.data(), samples, prefix, rows, kmax,
                                       row_bytes, total, dx.data(), nullptr) == 0);
  for (size_t i = 0; i < x.size(); ++i) EXPECT(dx[i] == x[i] || dx[i] == 0.0f);
}

static void fastv() {
  const i64 batch = 2, heads = 2, length = 200, d = 8;
  std::vector<float> q(batch * heads * length * d, 0.5f), k(q.size());
  for (size_t i = 0; i < k.size(); ++i) k[i] = float(i * 37 % 101) / 50;
  const ReceivedShape n{batch, heads, heads, length, length, d, {heads * length * d, length * d, d},
                        {heads * length * d, length * d, d}};
  std::vector<char> image(batch * length, 1);
  for (i64 b = 0; b < batch; ++b)
    for (i64 j = 150; j < length; ++j) image[b * length + j] = 0;
  std::vector<float> s(batch * heads * length), stats(batch * heads * n.splits() * 2), scores(batch * length);
  std::vector<u32> tickets(batch), ranks(batch * length);
  std::vector<i32> kept(batch * 60, -7);
  EXPECT(launch_fastv_select(DType::f32, n, q.data(), k.data(), nullptr, reinterpret_cast<const bool*>(image.data()),
                             nullptr, 10, 60, 0.3, s.data(), stats.data(), tickets.data(), ranks.data(), scores.data(),
                             kept.data(), nullptr) == 0);
  for (i64 b = 0; b < batch; ++b)
    for (i32 i = 0; i < 60; ++i) EXPECT(i < 10 ? kept[b * 60 + i] < 150 : kept[b * 60 + i] == 140 + i);
}

int main() {
  gather();
  fastv();
  return failures != 0;
}
