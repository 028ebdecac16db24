// gated_attention.cu: launches the kernels. No torch: raw pointers and a stream.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "gated_attention.cuh"
#include "launch.h"

namespace budgetprune {

constexpr u32 warps = 4;  // of a block; each owns a row

static u32 blocks(i64 rows) { return u32((rows + warps - 1) / warps); }

template <typename T>
static void forward(const void* q, const void* k, const void* v, const void* gate, const bool* mask, const i64* n,
                    bool causal, double scale, void* out, void* lse, cudaStream_t stream) {
  using A = typename Accumulate<T>::type;
  launch(gated_attention_kernel<T>, blocks(n[0] * n[1] * n[3]), 32 * warps, warps * 2 * n[5] * sizeof(A), stream, 
      static_cast<const T*>(q), static_cast<const T*>(k), static_cast<const T*>(v), static_cast<const A*>(gate), mask,
      n[0], n[1], n[2], n[3], n[4], n[5], causal, scale, static_cast<T*>(out), static_cast<A*>(lse));
}

template <typename T>
static void backward(const void* grad, const void* q, const void* k, const void* v, const void* gate, const bool* mask,
                     const void* out, const void* lse, const i64* n, bool causal, double scale, void* dq, void* dk,
                     void* dv, void* dgate, void* delta, void* parts, cudaStream_t stream) {
  using A = typename Accumulate<T>::type;
  const auto gates = static_cast<const A*>(gate);
  if (n[0] * n[1] * n[3] > 0)
    launch(gated_attention_dq_kernel<T>, blocks(n[0] * n[1] * n[3]), 32 * warps, warps * 3 * n[5] * sizeof(A), stream, 
        static_cast<const T*>(grad), static_cast<const T*>(q), static_cast<const T*>(k), static_cast<const T*>(v),
        gates, mask, static_cast<const T*>(out), static_cast<const A*>(lse), n[0], n[1], n[2], n[3], n[4], n[5],
        causal, scale, static_cast<T*>(dq), static_cast<A*>(delta));
  if (n[0] * n[4] == 0) return;
  launch(gated_attention_dkv_kernel<T>, blocks(n[0] * n[2] * n[4]), 32 * warps, warps * 4 * n[5] * sizeof(A), stream, 
      static_cast<const T*>(grad), static_cast<const T*>(q), static_cast<const T*>(k), static_cast<const T*>(v), gates,
      mask, static_cast<const A*>(lse), static_cast<const A*>(delta), n[0], n[1], n[2], n[3], n[4], n[5], causal,
      scale, static_cast<T*>(dk), static_cast<T*>(dv), static_cast<A*>(parts));
  launch(gate_sum_kernel<A>, u32((n[0] * n[4] + 255) / 256), 256, 0, stream, static_cast<const A*>(parts), n[0], n[2], n[4],
                                                                      static_cast<A*>(dgate));
}

// n: B, H, Hkv, Q, N, D.
int launch_gated_attention(DType dtype, const void* q, const void* k, const void* v, const void* gate, const bool* mask,
                           const i64* n, bool causal, double scale, void* out, void* lse, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  switch (dtype) {
    case DType::f32: forward<float>(q, k, v, gate, mask, n, causal, scale, out, lse, s); break;
    case DType::f16: forward<__half>(q, k, v, gate, mask, n, causal, scale, out, lse, s); break;
    case DType::bf16: forward<__nv_bfloat16>(q, k, v, gate, mask, n, causal, scale, out, lse, s); break;
    case DType::f64: forward<double>(q, k, v, gate, mask, n, causal, scale, out, lse, s); break;
  }
  return cudaGetLastError();
}

int launch_gated_attention_backward(DType dtype, const void* grad, const void* q, const void* k, const void* v,
                                    const void* gate, const bool* mask, const void* out, const void* lse, const i64* n,
                                    bool causal, double scale, void* dq, void* dk, void* dv, void* dgate, void* delta,
                                    void* parts, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  const auto run = [&](auto zero) {
    backward<decltype(zero)>(grad, q, k, v, gate, mask, out, lse, n, causal, scale, dq, dk, dv, dgate, delta, parts, s);
  };
  switch (dtype) {
    case DType::f32: run(float{}); break;
    case DType::f16: run(__half{}); break;
    case DType::bf16: run(__nv_bfloat16{}); break;
    case DType::f64: run(double{}); break;
  }
  return cudaGetLastError();
}

}  // namespace budgetprune
