// cuda_bf16.h: CUDA's bfloat16 for the emulator; conversion rounds to nearest, ties to even.
#pragma once
#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(double v) : __nv_bfloat16(float(v)) {}
  explicit __nv_bfloat16(int v) : __nv_bfloat16(float(v)) {}
  __nv_bfloat16(float v) {
    uint32_t x;
    std::memcpy(&x, &v, 4);
    bits = (x & 0x7fffffffu) > 0x7f800000u ? uint16_t(0x7fc0u) : uint16_t((x + 0x7fffu + (x >> 16 & 1u)) >> 16);
  }
  operator float() const {
    const uint32_t x = uint32_t(bits) << 16;
    float v;
    std::memcpy(&v, &x, 4);
    return v;
  }
};
