// cuda_emulated.h: the words of CUDA C++ for g++. Forced in front of every .cu by tests/simt/build.py.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>

#include "simt.h"

#define __CUDACC__ 1
#define __host__
#define __device__
#define __global__
#define __constant__ static
#define __shared__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

#define threadIdx (simt::current->index)
#define blockIdx (simt::current->block->index)
#define blockDim (simt::current->block->dimensions)
#define gridDim (simt::current->block->grid)

struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(8) int2 { int x, y; };
struct alignas(8) float2 { float x, y; };
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }

inline void __syncthreads() { simt::barrier(); }
inline int __syncthreads_count(int vote) { return int(simt::barrier(vote != 0)); }
inline int __syncthreads_or(int vote) { return simt::barrier(vote != 0) != 0; }
inline int __syncthreads_and(int vote) { return simt::barrier(vote == 0) == 0; }
inline void __threadfence() {}  // blocks never run at once
inline void __threadfence_block() { __threadfence(); }

namespace simt {
template <typename Tag, typename Out, typename In, typename Act>
Out collective(uint32_t mask, const In& value, Act act) {
  static const char kind = 0;
  return meet<Out>(mask, value, &kind, act);
}
template <int tag>
struct Kind {};

// out[lane] = in[source(lane)], or the lane's own where source is outside its segment of `width` lanes.
template <typename Tag, typename T, typename Source>
T shuffle(uint32_t mask, T value, int width, Source source) {
  struct Item { T value; int width; };
  static_assert(sizeof(T) <= 16);
  const int wanted = source(int(current->lane()));
  struct Ask { T value; int from; };
  return collective<Tag, T>(mask, Ask{value, wanted}, [mask](const Ask* in, T* out) {
    for (int l = 0; l < 32; ++l) {
      if (!(mask >> l & 1u)) continue;
      if (!(mask >> in[l].from & 1u)) fail("a shuffle reads a lane outside its mask");
      out[l] = in[in[l].from].value;
    }
  });
  (void)width;
}
template <typename Tag, typename T, typename F>
T reduce(uint32_t mask, T value, F f) {
  return collective<Tag, T>(mask, value, [mask, f](const T* in, T* out) {
    bool first = true;
    T all{};
    for (int l = 0; l < 32; ++l)
      if (mask >> l & 1u) all = first ? in[l] : f(all, in[l]), first = false;
    for (int l = 0; l < 32; ++l) out[l] = all;
  });
}
}  // namespace simt

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  simt::collective<simt::Kind<0>, int>(mask, 0, [](const int*, int* out) { std::fill(out, out + 32, 0); });
}
template <typename T>
T __shfl_sync(unsigned mask, T v, int from, int width = 32) {
  return simt::shuffle<simt::Kind<1>>(mask, v, width, [=](int l) { return l / width * width + (from & (width - 1)); });
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T v, int step, int width = 32) {
  return simt::shuffle<simt::Kind<2>>(mask, v, width, [=](int l) {
    const int from = l ^ step;
    return from / width > l / width ? l : from;  // a lower segment may be read, a higher one not
  });
}
template <typename T>
T __shfl_up_sync(unsigned mask, T v, unsigned step, int width = 32) {
  return simt::shuffle<simt::Kind<3>>(mask, v, width, [=](int l) { return l % width < int(step) ? l : l - int(step); });
}
template <typename T>
T __shfl_down_sync(unsigned mask, T v, unsigned step, int width = 32) {
  return simt::shuffle<simt::Kind<4>>(mask, v, width,
                                      [=](int l) { return l % width + int(step) >= width ? l : l + int(step); });
}
inline unsigned __ballot_sync(unsigned mask, int vote) {
  const unsigned bit = vote ? 1u << simt::current->lane() : 0u;
  return simt::reduce<simt::Kind<5>>(mask, bit, [](unsigned a, unsigned b) { return a | b; });
}
inline int __any_sync(unsigned mask, int vote) {
  return simt::reduce<simt::Kind<6>>(mask, int(vote != 0), [](int a, int b) { return a | b; });
}
inline int __all_sync(unsigned mask, int vote) {
  return simt::reduce<simt::Kind<7>>(mask, int(vote != 0), [](int a, int b) { return a & b; });
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned v) {
  return simt::reduce<simt::Kind<8>>(mask, v, [](unsigned a, unsigned b) { return a + b; });
}
inline int __reduce_add_sync(unsigned mask, int v) { return int(__reduce_add_sync(mask, unsigned(v))); }
inline unsigned __reduce_max_sync(unsigned mask, unsigned v) {
  return simt::reduce<simt::Kind<9>>(mask, v, [](unsigned a, unsigned b) { return a > b ? a : b; });
}
inline int __reduce_max_sync(unsigned mask, int v) {
  return simt::reduce<simt::Kind<10>>(mask, v, [](int a, int b) { return a > b ? a : b; });
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned v) {
  return simt::reduce<simt::Kind<11>>(mask, v, [](unsigned a, unsigned b) { return a < b ? a : b; });
}
inline int __reduce_min_sync(unsigned mask, int v) {
  return simt::reduce<simt::Kind<12>>(mask, v, [](int a, int b) { return a < b ? a : b; });
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned v) {
  return simt::reduce<simt::Kind<13>>(mask, v, [](unsigned a, unsigned b) { return a | b; });
}

template <typename T, typename V>
T atomicAdd(T* p, V v) {
  static_assert(std::is_integral_v<T>, "sums of floats by atomics have no fixed order");
  return __atomic_fetch_add(p, T(v), __ATOMIC_RELAXED);
}
template <typename T, typename V>
T atomicMax(T* p, V v) {
  T old = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (old < T(v) && !__atomic_compare_exchange_n(p, &old, T(v), false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}
template <typename T, typename V>
T atomicOr(T* p, V v) { return __atomic_fetch_or(p, T(v), __ATOMIC_RELAXED); }
template <typename T, typename V>
T atomicExch(T* p, V v) { return __atomic_exchange_n(p, T(v), __ATOMIC_RELAXED); }
template <typename T>
T atomicCAS(T* p, T expected, T wanted) {
  __atomic_compare_exchange_n(p, &expected, wanted, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}

template <typename T>
T __ldg(const T* p) { return *p; }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __clz(int v) { return v ? __builtin_clz(unsigned(v)) : 32; }
inline int __clzll(long long v) { return v ? __builtin_clzll((unsigned long long)(v)) : 64; }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline unsigned __brev(unsigned v) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= (v >> i & 1u) << (31 - i);
  return r;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline float rsqrtf(float v) { return 1.0f / std::sqrt(v); }
inline float __int_as_float(int v) { float f; std::memcpy(&f, &v, 4); return f; }
inline float __uint_as_float(unsigned v) { float f; std::memcpy(&f, &v, 4); return f; }
inline int __float_as_int(float f) { int v; std::memcpy(&v, &f, 4); return v; }
inline unsigned __float_as_uint(float f) { unsigned v; std::memcpy(&v, &f, 4); return v; }
using std::max;
using std::min;

// The few calls of the runtime that launchers use. The chip is an H100 in size.
using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
namespace simt {
inline int last_error = 0;
}
inline cudaError_t cudaGetLastError() { return std::exchange(simt::last_error, 0); }
inline cudaError_t cudaGetDevice(int* device) { *device = 0; return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? 132 : int(simt::max_shared);
  return cudaSuccess;
}

#define BP_DYNAMIC_SHARED(name) unsigned char* const name = simt::current->block->shared

namespace budgetprune {
template <typename... P, typename... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t, A... arguments) {
  static_assert(sizeof...(P) == sizeof...(A));
  const int error = simt::run(grid, block, shared_bytes, [&] { kernel(static_cast<P>(arguments)...); });
  if (error) simt::last_error = error;
}
}  // namespace budgetprune
