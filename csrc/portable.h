// portable.h: the only file that knows which compiler is reading it.
//
// Three readers, told apart by macros they define themselves:
//   g++ / clang++   neither              host code, runs on the CPU
//   nvcc            __CUDACC__           host and device code
//   NVRTC (CuPy)    __CUDACC_RTC__ too   device code, no standard headers
// A fourth, tests/simt, is g++ with both __CUDACC__ and BUDGETPRUNE_EMULATED: kernels run by an emulator.
#pragma once

#ifdef __CUDACC_RTC__
namespace budgetprune {
using i32 = int;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;
}  // namespace budgetprune
#else
#include <cmath>
#include <cstdint>
#include <cstring>
namespace budgetprune {
using i32 = std::int32_t;
using u32 = std::uint32_t;
using i64 = std::int64_t;
using u64 = std::uint64_t;
}  // namespace budgetprune
#endif

namespace budgetprune {
enum class DType { f32, f16, bf16, f64 };  // how a launcher is told the type behind a void*

// What sums are made in: float, or double for double.
template <typename T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
}  // namespace budgetprune

#ifdef __CUDACC__
#define BP_FN __host__ __device__ inline
#else
#define BP_FN inline
#endif

// The shared memory that a launch asked for, as bytes aligned to 16.
#if defined(__CUDACC__) && !defined(BUDGETPRUNE_EMULATED)
#define BP_DYNAMIC_SHARED(name)                                      \
  extern __shared__ __align__(16) unsigned char dynamic_shared[];    \
  unsigned char* const name = dynamic_shared
#endif

// Products and sums rounded one by one. A compiler that fuses them into an FMA on one device and
// not on another would draw different noise there, and so keep different tokens. The C++ files are
// built with -ffp-contract=off for the same reason.
namespace budgetprune {
#ifdef __CUDA_ARCH__
BP_FN float mul_rn(float a, float b) { return __fmul_rn(a, b); }
BP_FN float add_rn(float a, float b) { return __fadd_rn(a, b); }
#else
BP_FN float mul_rn(float a, float b) { return a * b; }
BP_FN float add_rn(float a, float b) { return a + b; }
#endif
}  // namespace budgetprune

// On x86-64 with g++ a function marked BP_SIMD is compiled once per vector width and the right one
// is bound at load time, so one wheel is fast everywhere. Nothing it calls may be left un-inlined.
// g++ knows the level x86-64-v4 (AVX-512 of any maker) since 12.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__)
#if __GNUC__ >= 12
#define BP_SIMD __attribute__((target_clones("default", "avx2", "arch=x86-64-v4")))
#else
#define BP_SIMD __attribute__((target_clones("default", "avx2")))
#endif
#else
#define BP_SIMD
#endif

// Before a loop over a vector's lanes whose items do not touch each other: make it vectors, do not unroll it first.
#if defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__)
#define BP_LANES _Pragma("GCC ivdep") _Pragma("GCC unroll 1")
#else
#define BP_LANES
#endif
