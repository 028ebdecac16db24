// inclusion.cuh: how likely each token of a row is to be among the K kept, and the derivative of that.
//
//   keep_i <=> theta_i + noise_i > threshold, so with nu = -threshold
//   race    (Gumbel noise)    s_i = 1 - exp(-exp(theta_i + nu))    successive sampling
//   fermi   (logistic noise)  s_i = 1 / (1 + exp(-(theta_i + nu))) Pareto sampling: Rosen, JSPI 62, 1997
//   nu is the root of sum_i s_i = K.
// nu is kept as offset - center, center being the K-th noisy logit: theta_i - center is small where s_i is neither 0
// nor 1, so logits of 1e4 lose nothing, and offset 0 is already close to the root.
#pragma once
#include "philox.cuh"
#include "team.cuh"

namespace budgetprune {

enum class Estimator : i32 { race, fermi, softmax };

// exp(x) = scale (1 + rest). From -88 down scale is 0; x above 88 is not asked for; NaN stays NaN.
BP_FN void exp_parts(float x, float& scale, float& rest) {
  const float y = x < -88.0f ? -88.0f : x;
  const float shifted = y * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the integer part ends up in the low bits
  const float whole = shifted - 12582912.0f;
  const float r = (y - whole * 0.693359375f) + whole * 2.12194440e-4f;
  float p = 0.0013947599f;
  p = p * r + 0.008367247f;
  p = p * r + 0.041666266f;
  p = p * r + 0.16666538f;
  p = p * r + 0.5f;
  rest = r + r * r * p;
  scale = as_float((as_bits(shifted) - 0x4b400000u + 127u) << 23);  // 2^whole; whole = -127 gives 0
}
BP_FN float exp_of(float x) {
  float scale, rest;
  exp_parts(x, scale, rest);
  return scale + scale * rest;
}
BP_FN double exp_of(double x) { return exp(x); }
// exp(x) and 1 - exp(x), both to their last bits.
BP_FN void exp_and_complement(float x, float& value, float& complement) {
  float scale, rest;
  exp_parts(x, scale, rest);
  value = scale + scale * rest;
  complement = (1.0f - scale) - scale * rest;
}
BP_FN void exp_and_complement(double x, double& value, double& complement) {
  value = exp(x);
  complement = -expm1(x);
}

// s and d = ds/dx at x = theta + nu; x may be infinite.
template <Estimator estimator, typename V>
BP_FN void inclusion(V x, V& s, V& d) {
  if (estimator == Estimator::race) {
    const V rate = exp_of(x > V(7) ? V(7) : x);  // exp(-exp(7)) is 0
    V left_out;
    exp_and_complement(-rate, left_out, s);
    d = rate * left_out;
  } else {
    const V t = exp_of(x < V(0) ? x : -x);
    const V r = V(1) / (V(1) + t), tr = t * r;
    s = x < V(0) ? tr : r;
    d = tr * r;
  }
}

// When to stop: at this relative error of the sum, or after a step this small, which squares to less.
template <typename V>
struct Tolerance {
  static constexpr V sum = V(1e-6), step = V(2e-3);
};
template <>
struct Tolerance<double> {
  static constexpr double sum = 1e-14, step = 1e-7;
};

// The root of sum_i s_i = k over the offset, by Newton's method on log(sum_i s_i) inside a shrinking bracket.
// sums(offset, total, slope) gives sum_i s_i and sum_i d_i. The noise lies within 18 of 0 and a row has fewer than 2^31
// tokens, so the root lies within 60 of 0, if there is one. Where the finite logits are too few, the sum only tends to
// k and the answer is one where every slope is 0.
template <typename V, typename F>
BP_FN V find_offset(i32 k, F sums) {
  V low = V(-60), high = V(60), offset = V(0);
  for (i32 step = 0; step < 200; ++step) {
    V total, slope;
    sums(offset, total, slope);
    const V gap = total - V(k);
    if (!((gap < 0 ? -gap : gap) > Tolerance<V>::sum * V(k))) break;
    (gap < 0 ? low : high) = offset;
    V next = offset - total / slope * log(total / V(k));
    const V moved = next < offset ? offset - next : next - offset;
    const bool newton = low < next && next < high;
    if (!newton) next = low + (high - low) / 2;
    if (next == offset || next == low || next == high) break;
    offset = next;
    if (newton && moved < Tolerance<V>::step) break;
  }
  return offset;
}

template <Estimator estimator, typename Team>
BP_FN double solve_offset(const Team& team, const double* logits, i32 n, i32 k, double tau, double center, u32*) {
  return find_offset<double>(k, [=](double offset, double& total, double& slope) {
    team.sum(n, [=](i32 i, double& s, double& d) { inclusion<estimator>(logits[i] / tau - center + offset, s, d); },
             total, slope);
  });
}

// exp(theta - center), taken once: a step of the offset multiplies it. Beyond 80 a token is sure to be in wherever the
// offset lies, and at a rate of 88 it is.
BP_FN float rate_of(float logit, float tau, float center) {
  const float x = logit / tau - center;
  return exp_of(x > 80.0f ? 80.0f : x);
}
template <Estimator estimator>
BP_FN void inclusion_at_rate(float rate, float& s, float& d) {
  if (estimator == Estimator::race) {
    const float bounded = rate > 88.0f ? 88.0f : rate;
    float left_out;
    exp_and_complement(-bounded, left_out, s);
    d = bounded * left_out;
  } else {
    const float bounded = rate > 1e30f ? 1e30f : rate, r = 1.0f / (1.0f + bounded);
    s = bounded * r;
    d = s * r;
  }
}

// The same root by rates; `rates` is n words of scratch.
template <Estimator estimator, typename Team, typename T>
BP_FN float solve_offset(const Team& team, const T* logits, i32 n, i32 k, float tau, float center, u32* rates) {
  for (i32 i = team.rank(); i < n; i += team.size()) rates[i] = as_bits(rate_of(float(logits[i]), tau, center));
  team.sync();
  return find_offset<float>(k, [=](float offset, float& total, float& slope) {
    const float scale = exp_of(offset);
    team.sum(n, [=](i32 i, float& s, float& d) { inclusion_at_rate<estimator>(as_float(rates[i]) * scale, s, d); },
             total, slope);
  });
}

}  // namespace budgetprune
