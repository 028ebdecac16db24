// gated_attention.cu: launches the kernels. No torch: raw pointers and a stream.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <initializer_list>

#include "gated_attention_tiles_backward.cuh"
#include "launch.h"

namespace budgetprune {

constexpr u32 warps = 4;  // of a block; each owns a row

static u32 blocks(i64 rows) { return u32((rows + warps - 1) / warps); }

template <typename T>
static void forward(const void* q, const void* k, const void* v, const void* gate, const bool* mask, const i64* n,
                    bool causal, double scale, void* out, void* lse, cudaStream_t stream) {
  using A = typename Accumulate<T>::type;
  launch(gated_attention_kernel<T>, blocks(n[0] * n[1] * n[3]), 32 * warps, warps * 2 * n[5] * sizeof(A), stream,
         static_cast<const T*>(q), static_cast<const T*>(k), static_cast<const T*>(v), static_cast<const A*>(gate),
         mask, n[0], n[1], n[2], n[3], n[4], n[5], causal, scale, static_cast<T*>(out), static_cast<A*>(lse));
}

template <typename T>
static void backward(const void* grad_in, const void* q_in, const void* k_in, const void* v_in, const void* gate_in,
                     const bool* mask, const void* out, const void* lse, const i64* n, bool causal, double scale,
                     void* dq, void* dk, void* dv, void* dgate, void* delta_out, void* parts_out,
                     cudaStream_t stream) {
  using A = typename Accumulate<T>::type;
  const auto grad = static_cast<const T*>(grad_in), q = static_cast<const T*>(q_in);
  const auto k = static_cast<const T*>(k_in), v = static_cast<const T*>(v_in);
  const auto gate = static_cast<const A*>(gate_in), logsumexp = static_cast<const A*>(lse);
  const auto delta = static_cast<A*>(delta_out), parts = static_cast<A*>(parts_out);
  if (n[0] * n[1] * n[3] > 0)
    launch(gated_attention_dq_kernel<T>, blocks(n[0] * n[1] * n[3]), 32 * warps, warps * 3 * n[5] * sizeof(A), stream,
           grad, q, k, v, gate, mask, static_cast<const T*>(out), logsumexp, n[0], n[1], n[2], n[3], n[4], n[5], causal,
           scale, static_cast<T*>(dq), delta);
  if (n[0] * n[4] == 0) return;
  launch(gated_attention_dkv_kernel<T>, blocks(n[0] * n[2] * n[4]), 32 * warps, warps * 4 * n[5] * sizeof(A), stream,
         grad, q, k, v, gate, mask, logsumexp, delta, n[0], n[1], n[2], n[3], n[4], n[5], causal, scale,
         static_cast<T*>(dk), static_cast<T*>(dv), parts);
  launch(gate_sum_kernel<A>, u32((n[0] * n[4] + 255) / 256), 256, 0, stream, parts, n[0], n[2], n[4],
         static_cast<A*>(dgate));
}

// 16-bit types whose rows are whole pieces of 16 bytes, on a chip with shared memory for six tiles (sm_86, sm_89 and
// sm_120 have it up to D = 96).
static bool on_tensor_cores(DType dtype, const i64* n, std::initializer_list<const void*> rows) {
  int device = 0, room = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&room, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  const i64 depth = n[5] <= 32 ? 32 : n[5] <= 64 ? 64 : n[5] <= 96 ? 96 : 128;
  if (6 * gated_rows * (depth + 8) * 2 + 2048 > room) return false;
  u64 addresses = 0;
  for (const void* p : rows) addresses |= reinterpret_cast<u64>(p);
  return (dtype == DType::f16 || dtype == DType::bf16) && n[5] > 0 && n[5] % 8 == 0 && n[5] <= 128 &&
         addresses % 16 == 0 && n[3] > 0 && n[4] > 0;
}

static u32 tiles(i64 rows) { return u32((rows + gated_rows - 1) / gated_rows); }

template <i32 depth>
struct Depth {
  static constexpr i32 value = depth;
  static constexpr size_t tile_bytes = gated_rows * TileRows<depth>::stride * 2;
};

template <typename F>
static void with_half(DType dtype, i64 d, F f) {
  const auto by_depth = [&](auto zero) {
    if (d <= 32) f(zero, Depth<32>{});
    else if (d <= 64) f(zero, Depth<64>{});
    else if (d <= 96) f(zero, Depth<96>{});
    else f(zero, Depth<128>{});
  };
  if (dtype == DType::f16) by_depth(__half{});
  else by_depth(__nv_bfloat16{});
}

static GatedShape shape_of(const i64* n, bool causal, double scale) {
  return {n[0], n[1], n[2], n[3], n[4], n[5], causal, float(scale)};
}

static void order_keys(const void* gate, const bool* mask, const i64* n, i32* order, cudaStream_t stream) {
  launch(order_keys_kernel, u32(n[0]), 256, 0, stream, static_cast<const float*>(gate), mask, i32(n[4]), order,
         order + n[0] * n[4]);
}

// n: B, H, Hkv, Q, N, D. `order` is B * (N + 2) integers of scratch.
int launch_gated_attention(DType dtype, const void* q, const void* k, const void* v, const void* gate, const bool* mask,
                           const i64* n, bool causal, double scale, void* out, void* lse, i32* order, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  if (on_tensor_cores(dtype, n, {q, k, v, out})) {
    order_keys(gate, mask, n, order, s);
    with_half(dtype, n[5], [&](auto zero, auto depth) {
      using T = decltype(zero);
      launch(gated_forward_tiles<T, depth.value>, u32(tiles(n[3]) * n[0] * n[1]), gated_threads, 5 * depth.tile_bytes,
             s, shape_of(n, causal, scale), static_cast<const T*>(q), static_cast<const T*>(k),
             static_cast<const T*>(v), static_cast<const float*>(gate), order, order + n[0] * n[4],
             static_cast<T*>(out), static_cast<float*>(lse));
    });
    return cudaGetLastError();
  }
  switch (dtype) {
    case DType::f32: forward<float>(q, k, v, gate, mask, n, causal, scale, out, lse, s); break;
    case DType::f16: forward<__half>(q, k, v, gate, mask, n, causal, scale, out, lse, s); break;
    case DType::bf16: forward<__nv_bfloat16>(q, k, v, gate, mask, n, causal, scale, out, lse, s); break;
    case DType::f64: forward<double>(q, k, v, gate, mask, n, causal, scale, out, lse, s); break;
  }
  return cudaGetLastError();
}

template <typename T, i32 depth>
static void backward_on_tensor_cores(const void* grad_in, const void* q_in, const void* k_in, const void* v_in,
                                     const void* gate_in, const bool* mask, const void* out, const void* lse,
                                     const i64* sizes, bool causal, double scale, void* dq, void* dk, void* dv,
                                     void* dgate, float* delta, void* parts_out, i32* order, cudaStream_t stream) {
  const GatedShape n = shape_of(sizes, causal, scale);
  const auto grad = static_cast<const T*>(grad_in), q = static_cast<const T*>(q_in);
  const auto k = static_cast<const T*>(k_in), v = static_cast<const T*>(v_in);
  const auto gate = static_cast<const float*>(gate_in);
  const auto parts = static_cast<float*>(parts_out);
  const i64 rows = n.batch * n.heads * n.queries;
  const i32* counts = order + n.batch * n.keys;
  float* const lse2 = delta + rows;
  constexpr size_t shared = 6 * Depth<depth>::tile_bytes;
  order_keys(gate_in, mask, sizes, order, stream);
  launch(delta_kernel<T>, blocks(rows), 32 * warps, 0, stream, grad, static_cast<const T*>(out),
         static_cast<const float*>(lse), rows, n.d, delta, lse2);
  launch(gated_dq_tiles<T, depth>, u32(tiles(n.queries) * n.heads * n.batch), gated_threads, shared, stream, n, grad, q,
         k, v, gate, order, counts, lse2, delta, static_cast<T*>(dq));
  const u32 key_blocks = u32(tiles(n.keys) * n.kv_heads * n.batch);
  launch(gated_dkv_tiles<T, depth, true>, key_blocks, gated_threads, shared, stream, n, grad, q, k, v, gate, order,
         counts, lse2, delta, static_cast<T*>(dk), static_cast<T*>(dv), parts);
  launch(gated_dkv_tiles<T, depth, false>, key_blocks, gated_threads, shared, stream, n, grad, q, k, v, gate, order,
         counts, lse2, delta, static_cast<T*>(dk), static_cast<T*>(dv), parts);
  launch(gate_sum_kernel<float>, u32((n.batch * n.keys + 255) / 256), 256, 0, stream, parts, n.batch, n.kv_heads,
         n.keys, static_cast<float*>(dgate));
}

// delta: two numbers per query row.
int launch_gated_attention_backward(DType dtype, const void* grad, const void* q, const void* k, const void* v,
                                    const void* gate, const bool* mask, const void* out, const void* lse, const i64* n,
                                    bool causal, double scale, void* dq, void* dk, void* dv, void* dgate, void* delta,
                                    void* parts, i32* order, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  if (on_tensor_cores(dtype, n, {grad, q, k, v, out, dq, dk, dv})) {
    with_half(dtype, n[5], [&](auto zero, auto depth) {
      backward_on_tensor_cores<decltype(zero), depth.value>(grad, q, k, v, gate, mask, out, lse, n, causal, scale, dq,
                                                            dk, dv, dgate, static_cast<float*>(delta), parts, order, s);
    });
    return cudaGetLastError();
  }
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
