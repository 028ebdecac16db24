// cuda_fp16.h: CUDA's half for the emulator; every conversion rounds to nearest, ties to even.
#pragma once
#include <cstdint>
#include <cstring>

struct __half {
  uint16_t bits;
  __half() = default;
  explicit __half(double v) : __half(float(v)) {}
  explicit __half(int v) : __half(float(v)) {}
  __half(float v) {
    uint32_t x;
    std::memcpy(&x, &v, 4);
    const uint32_t sign = x >> 16 & 0x8000u;
    x &= 0x7fffffffu;
    if (x > 0x7f800000u) {
      bits = uint16_t(sign | 0x7e00u);
    } else if (x >= 0x477ff000u) {  // from 65520 on
      bits = uint16_t(sign | 0x7c00u);
    } else if (x >= 0x38800000u) {  // normal
      bits = uint16_t(sign | ((x - 0x38000000u + 0xfffu + (x >> 13 & 1u)) >> 13));
    } else {  // the sum with 1/2 rounds at the last bit of a denormal half
      float magnitude, half_unit = 0.5f;
      std::memcpy(&magnitude, &x, 4);
      magnitude += half_unit;
      uint32_t y;
      std::memcpy(&y, &magnitude, 4);
      bits = uint16_t(sign | (y - 0x3f000000u));
    }
  }
  operator float() const {
    const uint32_t sign = uint32_t(bits & 0x8000u) << 16, exponent = bits >> 10 & 31u, fraction = bits & 0x3ffu;
    uint32_t x;
    if (exponent == 31) {
      x = sign | 0x7f800000u | fraction << 13;
    } else if (exponent) {
      x = sign | (exponent + 112) << 23 | fraction << 13;
    } else {
      const float small = float(fraction) * 0x1p-24f;
      std::memcpy(&x, &small, 4);
      x |= sign;
    }
    float v;
    std::memcpy(&v, &x, 4);
    return v;
  }
};
