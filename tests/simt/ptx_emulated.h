// ptx_emulated.h: the wrappers of csrc/ptx.cuh for the emulator.
//
// The layouts are those of the PTX manual for mma.m16n8k16 and ldmatrix.m8n8: lane 4 g + t holds rows g and g + 8.
#pragma once

namespace budgetprune {

template <typename T>
T half_of(u32 word, i32 index) {
  T value;
  const std::uint16_t bits = std::uint16_t(word >> (16 * index));
  std::memcpy(&value, &bits, 2);
  return value;
}

template <typename T>
u32 pack2(float low, float high) {
  const T pair[2] = {T(low), T(high)};
  u32 word;
  std::memcpy(&word, pair, 4);
  return word;
}

template <typename T>
void mma_16x8x16(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  struct In { u32 a[4], b[2]; float c[4]; };
  struct Out { float c[4]; };
  In mine;
  std::copy(a, a + 4, mine.a), std::copy(b, b + 2, mine.b), std::copy(c, c + 4, mine.c);
  const Out out = simt::collective<simt::Kind<20>, Out>(0xffffffffu, mine, [](const In* in, Out* result) {
    float left[16][16], right[16][8];
    for (i32 lane = 0; lane < 32; ++lane)
      for (i32 r = 0; r < 4; ++r)
        for (i32 e = 0; e < 2; ++e) {
          const i32 g = lane / 4, t = lane % 4;
          left[g + 8 * (r % 2)][2 * t + e + 8 * (r / 2)] = float(half_of<T>(in[lane].a[r], e));
          if (r < 2) right[2 * t + e + 8 * r][g] = float(half_of<T>(in[lane].b[r], e));
        }
    for (i32 lane = 0; lane < 32; ++lane)
      for (i32 r = 0; r < 4; ++r) {
        double sum = in[lane].c[r];
        for (i32 k = 0; k < 16; ++k) sum += double(left[lane / 4 + 8 * (r / 2)][k]) * right[k][2 * (lane % 4) + r % 2];
        result[lane].c[r] = float(sum);
      }
  });
  std::copy(out.c, out.c + 4, c);
}

// Lane 8 i + r names row r of matrix i, eight 16-bit numbers, 16-byte aligned.
template <bool transposed>
void load_matrices(u32 (&r)[4], const void* row) {
  if (reinterpret_cast<std::uintptr_t>(row) % 16) simt::fail("ldmatrix: a row is not 16-byte aligned");
  struct Out { u32 r[4]; };
  const auto mine = reinterpret_cast<std::uintptr_t>(row);
  const Out out = simt::collective<simt::Kind<21 + transposed>, Out>(
      0xffffffffu, mine, [](const std::uintptr_t* rows, Out* result) {
        for (i32 lane = 0; lane < 32; ++lane)
          for (i32 i = 0; i < 4; ++i) {
            std::uint16_t pair[2];
            for (i32 e = 0; e < 2; ++e) {
              const i32 line = transposed ? 2 * (lane % 4) + e : lane / 4;
              const i32 column = transposed ? lane / 4 : 2 * (lane % 4) + e;
              std::memcpy(&pair[e], reinterpret_cast<const char*>(rows[8 * i + line]) + 2 * column, 2);
            }
            std::memcpy(&result[lane].r[i], pair, 4);
          }
      });
  std::copy(out.r, out.r + 4, r);
}
inline void ldmatrix_x4(u32 (&r)[4], const void* row) { load_matrices<false>(r, row); }
inline void ldmatrix_x4_trans(u32 (&r)[4], const void* row) { load_matrices<true>(r, row); }

inline void copy_async_16(void* shared, const void* global, bool present) {
  if (reinterpret_cast<std::uintptr_t>(shared) % 16 || (present && reinterpret_cast<std::uintptr_t>(global) % 16))
    simt::fail("cp.async: an address is not 16-byte aligned");
  simt::current->copies.back().push_back({shared, global, present});
}
inline void copy_async_commit() { simt::current->copies.emplace_back(); }
template <i32 groups>
void copy_async_wait() {
  auto& copies = simt::current->copies;
  while (i32(copies.size()) - 1 > groups) {
    for (const simt::Copy& copy : copies.front())
      if (copy.present) std::memcpy(copy.to, copy.from, 16);
      else std::memset(copy.to, 0, 16);
    copies.erase(copies.begin());
  }
}

}  // namespace budgetprune
