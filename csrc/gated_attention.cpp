// gated_attention.cpp: the op as torch sees it. Guards memory, then CPU or CUDA.
#include "gated_attention_cpu.h"

namespace budgetprune {

int launch_gated_attention(DType, const void* q, const void* k, const void* v, const void* gate, const bool* mask,
                           const i64* n, bool causal, double scale, void* out, void* lse, i32* order, void* stream);
int launch_gated_attention_backward(DType, const void* grad, const void* q, const void* k, const void* v,
                                    const void* gate, const bool* mask, const void* out, const void* lse, const i64* n,
                                    bool causal, double scale, void* dq, void* dk, void* dv, void* dgate, void* delta,
                                    void* parts, i32* order, void* stream);

namespace {

Tensor contiguous_rows(const Tensor& t) {
  return t.size(3) <= 1 || t.stride(3) == 1 ? t : torch::stable::contiguous(t);
}

AttentionShape check(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
                     const std::optional<Tensor>& mask) {
  STD_TORCH_CHECK(q.dim() == 4 && k.dim() == 4 && v.dim() == 4, "gated_attention: q, k and v must have 4 dimensions");
  const AttentionShape n{q.size(0), q.size(1), k.size(1), q.size(2), k.size(2), q.size(3)};
  STD_TORCH_CHECK(k.size(0) == n.batch && k.size(3) == n.d, "gated_attention: k must be [B, Hkv, N, D] to suit q");
  for (int i = 0; i < 4; ++i)
    STD_TORCH_CHECK(v.size(i) == k.size(i), "gated_attention: v must have the shape of k");
  STD_TORCH_CHECK(n.kv_heads > 0 && n.heads % n.kv_heads == 0, "gated_attention: H must be a multiple of Hkv, got ",
                  n.heads, " and ", n.kv_heads);
  STD_TORCH_CHECK(k.scalar_type() == q.scalar_type() && v.scalar_type() == q.scalar_type(),
                  "gated_attention: q, k and v must share one dtype");
  const auto gate_type = dtype_of(q) == DType::f64 ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(gate.dim() == 2 && gate.size(0) == n.batch && gate.size(1) == n.keys &&
                      gate.scalar_type() == gate_type,
                  "gated_attention: gate must be [B, N] float32, or float64 beside float64 q");
  STD_TORCH_CHECK(!mask || (mask->dim() == 2 && mask->size(0) == n.batch && mask->size(1) == n.keys &&
                            mask->scalar_type() == ScalarType::Bool),
                  "gated_attention: mask must be bool [B, N]");
  return n;
}

// out and lse.
std::tuple<Tensor, Tensor> outputs(const Tensor& q, const AttentionShape& n) {
  const auto lse_type = dtype_of(q) == DType::f64 ? ScalarType::Double : ScalarType::Float;
  return {torch::stable::new_empty(q, {n.batch, n.heads, n.queries, n.d}),
          torch::stable::new_empty(q, {n.batch, n.heads, n.queries}, lse_type)};
}

// dq, dk, dv, one part of dgate per kv head, and dgate.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gradients(const Tensor& q, const Tensor& gate,
                                                             const AttentionShape& n) {
  return {torch::stable::new_empty(q, {n.batch, n.heads, n.queries, n.d}),
          torch::stable::new_empty(q, {n.batch, n.kv_heads, n.keys, n.d}),
          torch::stable::new_empty(q, {n.batch, n.kv_heads, n.keys, n.d}),
          torch::stable::new_empty(gate, {n.batch, n.kv_heads, n.keys}),
          torch::stable::new_empty(gate, {n.batch, n.keys})};
}

void check_saved(const Tensor& grad, const Tensor& q, const Tensor& out, const Tensor& lse, const Tensor& gate) {
  for (const Tensor* t : {&grad, &out}) {
    STD_TORCH_CHECK(t->dim() == 4 && t->scalar_type() == q.scalar_type(),
                    "gated_attention_backward: grad and out must be like q");
    for (int i = 0; i < 4; ++i)
      STD_TORCH_CHECK(t->size(i) == q.size(i), "gated_attention_backward: grad and out must be like q");
  }
  STD_TORCH_CHECK(lse.dim() == 3 && lse.numel() == q.size(0) * q.size(1) * q.size(2) &&
                      lse.scalar_type() == gate.scalar_type(),
                  "gated_attention_backward: lse must be [B, H, Q] as gated_attention gave it");
}

std::tuple<Tensor, Tensor> gated_attention_cpu(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
                                               const std::optional<Tensor>& mask, bool causal, double scale) {
  const AttentionShape n = check(q, k, v, gate, mask);
  const auto [out, lse] = outputs(q, n);
  const Tensor q_rows = contiguous_rows(q), k_rows = contiguous_rows(k), v_rows = contiguous_rows(v);
  const Tensor gates = torch::stable::contiguous(gate);
  const auto exists = contiguous(mask);
  dispatch(q, [&](auto zero) {
    gated_attention_forward<decltype(zero)>(q_rows, k_rows, v_rows, gates, data_or_null<bool>(exists), n, causal, scale,
                                            out, lse);
  });
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gated_attention_backward_cpu(
    const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
    const std::optional<Tensor>& mask, const Tensor& out, const Tensor& lse, bool causal, double scale) {
  const AttentionShape n = check(q, k, v, gate, mask);
  check_saved(grad, q, out, lse, gate);
  const auto [dq, dk, dv, parts, dgate] = gradients(q, gate, n);
  const Tensor grad_rows = contiguous_rows(grad), q_rows = contiguous_rows(q), k_rows = contiguous_rows(k);
  const Tensor v_rows = contiguous_rows(v), out_rows = contiguous_rows(out), gates = torch::stable::contiguous(gate);
  const Tensor lses = torch::stable::contiguous(lse);
  const auto exists = contiguous(mask);
  dispatch(q, [&](auto zero) {
    using T = decltype(zero);
    using A = typename Accumulate<T>::type;
    gated_attention_backward<T>(grad_rows, q_rows, k_rows, v_rows, gates, data_or_null<bool>(exists), out_rows, lses, n,
                                causal, scale, dq, dk, dv, parts);
    const A* part = data<A>(parts);
    A* sum = mutable_data<A>(dgate);
    std::fill(sum, sum + n.batch * n.keys, A(0));
    for (i64 b = 0; b < n.batch; ++b, sum += n.keys)  // kv heads in their order: alike for any number of threads
      for (i64 h = 0; h < n.kv_heads; ++h, part += n.keys)
        for (i64 j = 0; j < n.keys; ++j) sum[j] += part[j];
  });
  return {dq, dk, dv, dgate};
}

#ifdef BUDGETPRUNE_CUDA
AttentionShape check_cuda(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
                          const std::optional<Tensor>& mask) {
  const AttentionShape n = check(q, k, v, gate, mask);
  STD_TORCH_CHECK(n.d <= 384, "gated_attention: on CUDA D must be at most 384, got ", n.d);  // 48 KiB of shared memory
  return n;
}

std::tuple<Tensor, Tensor> gated_attention_cuda(const Tensor& q_in, const Tensor& k_in, const Tensor& v_in,
                                                const Tensor& gate_in, const std::optional<Tensor>& mask_in,
                                                bool causal, double scale) {
  const OnDeviceOf guard(q_in);
  const AttentionShape n = check_cuda(q_in, k_in, v_in, gate_in, mask_in);
  const auto [out, lse] = outputs(q_in, n);
  if (lse.numel() == 0) return {out, lse};
  const Tensor q = torch::stable::contiguous(q_in), k = torch::stable::contiguous(k_in);
  const Tensor v = torch::stable::contiguous(v_in), gate = torch::stable::contiguous(gate_in);
  const Tensor order = torch::stable::new_empty(gate, {n.batch * (n.keys + 2)}, ScalarType::Int);
  const auto mask = contiguous(mask_in);
  const i64 sizes[] = {n.batch, n.heads, n.kv_heads, n.queries, n.keys, n.d};
  check_launch("gated_attention",
               launch_gated_attention(dtype_of(q), q.const_data_ptr(), k.const_data_ptr(), v.const_data_ptr(),
                                      gate.const_data_ptr(), data_or_null<bool>(mask), sizes, causal, scale,
                                      out.mutable_data_ptr(), lse.mutable_data_ptr(), mutable_data<i32>(order),
                                      current_cuda_stream(q.get_device_index())));
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gated_attention_backward_cuda(
    const Tensor& grad_in, const Tensor& q_in, const Tensor& k_in, const Tensor& v_in, const Tensor& gate_in,
    const std::optional<Tensor>& mask_in, const Tensor& out_in, const Tensor& lse_in, bool causal, double scale) {
  const OnDeviceOf guard(q_in);
  const AttentionShape n = check_cuda(q_in, k_in, v_in, gate_in, mask_in);
  check_saved(grad_in, q_in, out_in, lse_in, gate_in);
  const auto [dq, dk, dv, parts, dgate] = gradients(q_in, gate_in, n);
  const Tensor grad = torch::stable::contiguous(grad_in), q = torch::stable::contiguous(q_in);
  const Tensor k = torch::stable::contiguous(k_in), v = torch::stable::contiguous(v_in);
  const Tensor gate = torch::stable::contiguous(gate_in), out = torch::stable::contiguous(out_in);
  const Tensor lse = torch::stable::contiguous(lse_in), delta = torch::stable::new_empty(lse, {2 * lse.numel()});
  const Tensor order = torch::stable::new_empty(gate, {n.batch * (n.keys + 2)}, ScalarType::Int);
  const auto mask = contiguous(mask_in);
  const i64 sizes[] = {n.batch, n.heads, n.kv_heads, n.queries, n.keys, n.d};
  check_launch("gated_attention_backward",
               launch_gated_attention_backward(
                   dtype_of(q), grad.const_data_ptr(), q.const_data_ptr(), k.const_data_ptr(), v.const_data_ptr(),
                   gate.const_data_ptr(), data_or_null<bool>(mask), out.const_data_ptr(), lse.const_data_ptr(), sizes,
                   causal, scale, dq.mutable_data_ptr(), dk.mutable_data_ptr(), dv.mutable_data_ptr(),
                   dgate.mutable_data_ptr(), delta.mutable_data_ptr(), parts.mutable_data_ptr(),
                   mutable_data<i32>(order),
                   current_cuda_stream(q.get_device_index())));
  return {dq, dk, dv, dgate};
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(budgetprune, m) {
  m.def("gated_attention(Tensor q, Tensor k, Tensor v, Tensor gate, Tensor? mask, bool causal, float scale)"
        " -> (Tensor out, Tensor lse)");
  m.def("gated_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor gate, Tensor? mask, Tensor out,"
        " Tensor lse, bool causal, float scale) -> (Tensor dq, Tensor dk, Tensor dv, Tensor dgate)");
}
BP_CPU_KERNELS(m) {
  m.impl("gated_attention", TORCH_BOX(&gated_attention_cpu));
  m.impl("gated_attention_backward", TORCH_BOX(&gated_attention_backward_cpu));
}
#ifdef BUDGETPRUNE_CUDA
BP_CUDA_KERNELS(m) {
  m.impl("gated_attention", TORCH_BOX(&gated_attention_cuda));
  m.impl("gated_attention_backward", TORCH_BOX(&gated_attention_backward_cuda));
}
#endif

}  // namespace budgetprune
