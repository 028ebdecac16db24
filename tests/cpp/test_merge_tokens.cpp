// The kernels of merge_tokens, every CUDA thread an operating-system thread: a missing barrier is a race that
// ThreadSanitizer sees, an index outside an error of AddressSanitizer's. The transpose of a merge is its adjoint.
#define SIMT_THREADS
#include "cuda_emulated.h"

#include <random>
#include <vector>

#include "expect.h"
#include "merge_tokens.cu"

using namespace budgetprune;

// <merge(x), g> = <x, merge'(g)> = <weight, dots(g, x)>, for lists of random lengths that also hold what is no token.
static void adjoint(i32 samples, MergeShape shape) {
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  const auto numbers = [&](i64 count) {
    std::vector<float> all(static_cast<size_t>(count));
    for (float& value : all) value = normal(generator);
    return all;
  };
  const i64 n = shape.tokens, m = shape.outputs, e = shape.entries, c = shape.channels;
  const auto x = numbers(samples * n * c), grad = numbers(samples * m * c), weight = numbers(samples * e);
  std::vector<i32> offsets, index;
  for (i32 b = 0; b < samples; ++b) {
    std::vector<i32> own;
    for (i64 j = 0; j <= m; ++j) own.push_back(i32(generator() % u32(e + 1)));
    std::sort(own.begin(), own.end());
    own.front() = -3, own.back() = i32(e) + 9;  // clamped
    offsets.insert(offsets.end(), own.begin(), own.end());
    for (i64 j = 0; j < e; ++j) index.push_back(i32(generator() % u32(n + 4)) - 2);
  }
  std::vector<float> out(size_t(samples * m * c), NAN), back(size_t(samples * n * c), NAN);
  std::vector<float> dots(size_t(samples * e), NAN);
  EXPECT(launch_merge_tokens(DType::f32, shape, x.data(), n * c, c, offsets.data(), index.data(), weight.data(),
                             samples, out.data(), nullptr) == 0);
  EXPECT(launch_merge_dots(DType::f32, shape, grad.data(), x.data(), n * c, c, offsets.data(), index.data(), samples,
                           dots.data(), nullptr) == 0);
  std::vector<i32> to_offsets(size_t(samples * (n + 1)), -7), to_index(size_t(samples * e), -7), entry = to_index;
  EXPECT(launch_merge_transpose(shape, offsets.data(), index.data(), samples, to_offsets.data(), to_index.data(),
                                entry.data(), nullptr) == 0);
  std::vector<float> moved;
  for (i64 j = 0; j < samples * e; ++j) moved.push_back(weight[size_t(j / e * e + entry[size_t(j)])]);
  EXPECT(launch_merge_tokens(DType::f32, MergeShape{shape.outputs, shape.tokens, shape.entries, c}, grad.data(), m * c,
                             c, to_offsets.data(), to_index.data(), moved.data(), samples, back.data(), nullptr) == 0);
  double forward = 0, backward = 0, by_weight = 0, size = 1;
  for (size_t j = 0; j < out.size(); ++j) {
    forward += double(out[j]) * grad[j];
    size += std::abs(double(out[j]) * grad[j]);
  }
  for (size_t j = 0; j < back.size(); ++j) backward += double(back[j]) * x[j];
  for (size_t j = 0; j < dots.size(); ++j) by_weight += double(dots[j]) * weight[j];
  EXPECT(std::abs(forward - backward) < 1e-5 * size && std::abs(forward - by_weight) < 1e-5 * size);
}

int main() {
  adjoint(1, {40, 3, 50, 36});  // the warps of a block share a list
  adjoint(1, {260, 9, 12, 5});  // a warp each, one channel at a time; two blocks of transposed lists
  return failures != 0;
}
