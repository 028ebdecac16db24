// philox.cuh: noise from a key, the same bits on every device.
//
//   key      (seed, offset), two 64-bit integers
//   bits     element i is lane i % 4 of philox(seed, counter = (offset + i / 4, 0))
//   uniform  u = ((bits & 0xffffff) + 1/2) / 2^24, strictly inside (0, 1)
// Nothing is stored and nothing is advanced: asking again gives the same noise, whichever thread asks.
// Philox4x32-10: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011, section 3.3.
//
// The logarithm is our own, from separately rounded products and sums. A math library, or a multiply-add fused on one
// device only, would draw noise that differs in the last bit, and two devices would keep different tokens. Both arms of
// a choice are computed before it is made: a loop with a branch in it is not turned into vectors.
#pragma once
#include "portable.h"

namespace budgetprune {

// Four independent 32-bit words for one counter.
BP_FN void philox(u64 seed, u64 counter, u32* words) {
  u32 c0 = u32(counter), c1 = u32(counter >> 32), c2 = 0, c3 = 0, k0 = u32(seed), k1 = u32(seed >> 32);
  for (i32 round = 0; round < 10; ++round) {
    const u64 left = u64(0xD2511F53u) * c0, right = u64(0xCD9E8D57u) * c2;
    c0 = u32(right >> 32) ^ c1 ^ k0;
    c2 = u32(left >> 32) ^ c3 ^ k1;
    c1 = u32(right);
    c3 = u32(left);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}

BP_FN float as_float(u32 bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
BP_FN u32 as_bits(float value) {
  u32 bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// log(2^e (1 + f)) for f in [sqrt(1/2) - 1, sqrt(2) - 1]: f - f^2/2 + f^3 P(f) + e log 2, small terms first. P is a
// minimax fit, 7e-10 relative; its even and odd powers are two short chains that run side by side. log 2 is split so
// that e * 0.693359375 is exact.
BP_FN float log_of_parts(float e, float f) {
  const float square = mul_rn(f, f);
  float even = 0x1.1457a6p-4f, odd = -0x1.de3c16p-4f;
  even = add_rn(mul_rn(even, square), 0x1.e6f06ap-4f);
  odd = add_rn(mul_rn(odd, square), -0x1.fc2208p-4f);
  even = add_rn(mul_rn(even, square), 0x1.233768p-3f);
  odd = add_rn(mul_rn(odd, square), -0x1.555c4ep-3f);
  even = add_rn(mul_rn(even, square), 0x1.99a4b6p-3f);
  odd = add_rn(mul_rn(odd, square), -0x1.000006p-2f);
  even = add_rn(mul_rn(even, square), 0x1.555548p-2f);
  const float p = add_rn(even, mul_rn(odd, f));
  float small = mul_rn(mul_rn(f, square), p);
  small = add_rn(small, mul_rn(e, -2.12194440e-4f));
  small = add_rn(small, mul_rn(square, -0.5f));
  return add_rn(add_rn(f, small), mul_rn(e, 0.693359375f));
}

// x = 2^e (1 + f), exactly, for a positive normal x.
BP_FN void split(float x, float& e, float& f) {
  const i32 exponent = (i32(as_bits(x)) - 0x3f3504f3) >> 23;  // 0x3f3504f3 is sqrt(1/2)
  e = float(exponent);
  f = add_rn(as_float(as_bits(x) - (u32(exponent) << 23)), -1.0f);
}

// log(u) for u = (k + 1/2) / 2^24, 0 <= k < 2^24. Near 1 u itself is no float: there f comes from 1 - u, which is one,
// so that the largest noise is right to the last bit too.
BP_FN float log_uniform(u32 k) {
  float e, f;
  split(mul_rn(float(i32(2 * k + 1)), 0x1p-25f), e, f);
  const float rest = float(i32(2 * (0xffffffu - k) + 1));  // (1 - u) 2^25
  const bool near_one = rest < 9827678.0f;                 // (1 - sqrt(1/2)) 2^25
  const float f_one = mul_rn(rest, -0x1p-25f), f_half = add_rn(1.0f, mul_rn(rest, -0x1p-24f));
  const float e_upper = near_one ? 0.0f : -1.0f, f_upper = near_one ? f_one : f_half;
  const bool upper = k >= 0x800000u;
  return log_of_parts(upper ? e_upper : e, upper ? f_upper : f);
}

enum class Noise : i32 { none, gumbel, logistic };

// gumbel: -log(-log u); logistic: log u - log(1 - u).
template <Noise kind>
BP_FN float noise_of(u32 word) {
  if (kind == Noise::none) return 0.0f;
  const u32 k = word & 0xffffffu;
  const float log_u = log_uniform(k);
  if (kind == Noise::logistic) return add_rn(log_u, -log_uniform(0xffffffu - k));
  float e, f;
  split(-log_u, e, f);
  return -log_of_parts(e, f);
}

}  // namespace budgetprune
