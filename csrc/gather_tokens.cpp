// gather_tokens.cpp: the op as torch sees it. Guards memory, then CPU or CUDA.
#include "gather_tokens_cpu.h"

#include <algorithm>

namespace budgetprune {

int launch_gather_tokens(const void* x, i64 batch_stride, i64 row_stride, const i32* kept, i64 samples, i64 prefix,
                         i64 rows, i32 kmax, i64 row_bytes, i64 total, void* tokens, i32* positions, bool* mask,
                         i32* cu_seqlens, void* stream);
int launch_gather_tokens_backward(const void* grad, const i32* kept, const i32* cu_seqlens, i64 samples, i64 prefix,
                                  i64 rows, i32 kmax, i64 row_bytes, i64 total, void* dx, void* stream);
int launch_gather_tokens_gated(DType dtype, const void* x, i64 batch_stride, i64 row_stride, const void* gate,
                               const i32* kept, i64 samples, i64 prefix, i64 rows, i32 kmax, i64 channels, i64 total,
                               void* tokens, i32* positions, bool* mask, i32* cu_seqlens, void* stream);
int launch_gather_tokens_gated_backward(DType dtype, const void* grad, const void* x, i64 batch_stride, i64 row_stride,
                                        const void* gate, const i32* kept, const i32* cu_seqlens, i64 samples,
                                        i64 prefix, i64 rows, i32 kmax, i64 channels, i64 total, void* dx, void* dgate,
                                        void* stream);

namespace {

using Gathered = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // tokens, positions, mask (empty if packed), cu_seqlens

void check_kept(const Tensor& kept, int64_t samples, int64_t prefix, int64_t rows) {
  STD_TORCH_CHECK(kept.dim() == 2 && kept.size(0) == samples && kept.scalar_type() == ScalarType::Int,
                  "gather_tokens: kept must be int32 [B, Kmax] with B = ", samples);
  STD_TORCH_CHECK(0 <= prefix && prefix <= rows, "gather_tokens: prefix must be in [0, ", rows, "], got ", prefix);
  STD_TORCH_CHECK(samples * (prefix + kept.size(1)) < (int64_t(1) << 31) && rows < (int64_t(1) << 31),
                  "gather_tokens: B * (P + Kmax) and P + N must be below 2^31");
}

void check_gate(const Tensor& x, const Tensor& gate, int64_t prefix) {
  STD_TORCH_CHECK(gate.dim() == 2 && gate.size(0) == x.size(0) && gate.size(1) == x.size(1) - prefix,
                  "gather_tokens: gate must be [B, N]");
  STD_TORCH_CHECK(gate.scalar_type() == (dtype_of(x) == DType::f64 ? ScalarType::Double : ScalarType::Float),
                  "gather_tokens: gate must be float32, or float64 for float64 tokens");
}

Gathered allocate(const Tensor& x, const Tensor& kept, const std::optional<Tensor>& gate, int64_t prefix, bool packed,
                  int64_t total) {
  STD_TORCH_CHECK(x.dim() == 3, "gather_tokens: x must be [B, P + N, C], got ", x.dim(), " dimensions");
  check_kept(kept, x.size(0), prefix, x.size(1));
  if (gate) check_gate(x, *gate, prefix);
  const int64_t samples = x.size(0), length = prefix + kept.size(1), channels = x.size(2);
  STD_TORCH_CHECK(!packed || (0 <= total && total <= samples * length), "gather_tokens: total must be in [0, ",
                  samples * length, "], got ", total);
  const Tensor cu_seqlens = torch::stable::new_empty(kept, {samples + 1});
  if (packed)
    return {torch::stable::new_empty(x, {total, channels}), torch::stable::new_empty(kept, {total}),
            torch::stable::new_empty(kept, {0}, ScalarType::Bool), cu_seqlens};
  return {torch::stable::new_empty(x, {samples, length, channels}), torch::stable::new_empty(kept, {samples, length}),
          torch::stable::new_empty(kept, {samples, length}, ScalarType::Bool), cu_seqlens};
}

Tensor contiguous_rows(const Tensor& x) {
  return x.size(2) <= 1 || x.stride(2) == 1 ? x : torch::stable::contiguous(x);
}

int64_t rows_per_thread(int64_t row_bytes) { return std::max<int64_t>(1, 65536 / std::max<int64_t>(1, row_bytes)); }

Gathered gather_tokens_cpu(const Tensor& x_in, const Tensor& kept_in, const std::optional<Tensor>& gate_in,
                           int64_t prefix, bool packed, int64_t total) {
  const auto [tokens, positions, mask, cu_seqlens] = allocate(x_in, kept_in, gate_in, prefix, packed, total);
  const auto gate = contiguous(gate_in);
  const Tensor x = contiguous_rows(x_in), kept_rows = torch::stable::contiguous(kept_in);
  const int64_t samples = x.size(0), rows = x.size(1), kmax = kept_rows.size(1), length = prefix + kmax;
  const int64_t item = int64_t(x.element_size()), row_bytes = x.size(2) * item;
  const int64_t batch_stride = x.stride(0) * item, row_stride = x.stride(1) * item;
  const i32* kept = data<i32>(kept_rows);
  check_positions(kept, samples, kmax, rows - prefix);
  i32* starts = mutable_data<i32>(cu_seqlens);
  starts[0] = 0;
  for (int64_t b = 0; b < samples; ++b)
    starts[b + 1] = starts[b] + i32(prefix) + kept_count(kept + b * kmax, i32(kmax));
  STD_TORCH_CHECK(!packed || starts[samples] == total, "gather_tokens: total must be the number of tokens, ",
                  starts[samples], ", got ", total);
  const char* from = static_cast<const char*>(x.const_data_ptr());
  char* to = static_cast<char*>(tokens.mutable_data_ptr());
  i32* place = mutable_data<i32>(positions);
  bool* exists = packed ? nullptr : mutable_data<bool>(mask);
  const int64_t outputs = packed ? total : samples * length;
  torch::stable::parallel_for(0, outputs, rows_per_thread(row_bytes), [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at) {
      const int64_t b = packed ? sample_of(starts, samples, at) : at / length;
      const int64_t i = packed ? at - starts[b] : at % length;
      const int64_t row = source_row(kept + b * kmax, i, prefix, rows, i32(kmax));
      if (row < 0) std::memset(to + at * row_bytes, 0, row_bytes);
      else if (!gate || row < prefix)
        std::memcpy(to + at * row_bytes, from + b * batch_stride + row * row_stride, row_bytes);
      else
        dispatch(x, [&, row = row](auto zero) {
          using T = decltype(zero);
          using A = typename Accumulate<T>::type;
          scale_row(reinterpret_cast<const T*>(from + b * batch_stride + row * row_stride),
                    data<A>(*gate)[b * (rows - prefix) + row - prefix],
                    reinterpret_cast<T*>(to + at * row_bytes), x.size(2));
        });
      place[at] = row < 0 ? 0 : i32(row);
      if (exists) exists[at] = row >= 0;
    }
  });
  return {tokens, positions, mask, cu_seqlens};
}

Tensor allocate_backward(const Tensor& grad, const Tensor& kept, const Tensor& cu_seqlens, int64_t prefix, int64_t rows,
                         bool packed) {
  STD_TORCH_CHECK(kept.dim() == 2 && grad.dim() == (packed ? 2 : 3),
                  "gather_tokens_backward: grad must be like the tokens, kept [B, Kmax]");
  check_kept(kept, kept.size(0), prefix, rows);
  STD_TORCH_CHECK(packed || (grad.size(0) == kept.size(0) && grad.size(1) == prefix + kept.size(1)),
                  "gather_tokens_backward: grad must be [B, P + Kmax, C]");
  STD_TORCH_CHECK(cu_seqlens.dim() == 1 && cu_seqlens.size(0) == kept.size(0) + 1 &&
                      cu_seqlens.scalar_type() == ScalarType::Int,
                  "gather_tokens_backward: cu_seqlens must be int32 [B + 1]");
  return torch::stable::new_empty(grad, {kept.size(0), rows, grad.size(packed ? 1 : 2)});
}

// x, kept, gate and grad as the forward knew them; dx like x, dgate like gate.
std::tuple<Tensor, Tensor> allocate_gated_backward(const Tensor& grad, const Tensor& x, const Tensor& kept,
                                                   const Tensor& gate, const Tensor& cu_seqlens, int64_t prefix,
                                                   bool packed) {
  STD_TORCH_CHECK(x.dim() == 3 && kept.dim() == 2 && kept.size(0) == x.size(0) &&
                      grad.scalar_type() == x.scalar_type(),
                  "gather_tokens_gated_backward: x must be [B, P + N, C], kept [B, Kmax], grad in the dtype of x");
  const Tensor dx = allocate_backward(grad, kept, cu_seqlens, prefix, x.size(1), packed);
  STD_TORCH_CHECK(dx.size(2) == x.size(2), "gather_tokens_gated_backward: grad must have the channels of x");
  check_gate(x, gate, prefix);
  return {dx, torch::stable::new_empty(gate, {gate.size(0), gate.size(1)})};
}

Tensor gather_tokens_backward_cpu(const Tensor& grad_in, const Tensor& kept_in, const Tensor& cu_in, int64_t prefix,
                                  int64_t rows, bool packed) {
  const Tensor dx = allocate_backward(grad_in, kept_in, cu_in, prefix, rows, packed);
  const Tensor grad = torch::stable::contiguous(grad_in), kept_rows = torch::stable::contiguous(kept_in);
  const Tensor cu_seqlens = torch::stable::contiguous(cu_in);
  const int64_t samples = dx.size(0), kmax = kept_rows.size(1), length = prefix + kmax;
  const int64_t row_bytes = dx.size(2) * int64_t(dx.element_size());
  const i32 *kept = data<i32>(kept_rows), *starts = data<i32>(cu_seqlens);
  check_positions(kept, samples, kmax, rows - prefix);
  if (packed) check_starts(starts, kept, samples, kmax, prefix, grad.size(0));
  const char* from = static_cast<const char*>(grad.const_data_ptr());
  char* to = static_cast<char*>(dx.mutable_data_ptr());
  torch::stable::parallel_for(0, samples * rows, rows_per_thread(row_bytes), [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at) {
      const int64_t b = at / rows;
      const i32* mine = kept + b * kmax;
      const int64_t token = token_of_row(mine, at % rows, prefix, kept_count(mine, i32(kmax)));
      if (token < 0) std::memset(to + at * row_bytes, 0, row_bytes);
      else std::memcpy(to + at * row_bytes, from + ((packed ? starts[b] : b * length) + token) * row_bytes, row_bytes);
    }
  });
  return dx;
}

std::tuple<Tensor, Tensor> gather_tokens_gated_backward_cpu(const Tensor& grad_in, const Tensor& x_in,
                                                            const Tensor& kept_in, const Tensor& gate_in,
                                                            const Tensor& cu_in, int64_t prefix, bool packed) {
  const auto [dx, dgate] = allocate_gated_backward(grad_in, x_in, kept_in, gate_in, cu_in, prefix, packed);
  const Tensor grad = torch::stable::contiguous(grad_in), kept_rows = torch::stable::contiguous(kept_in);
  const Tensor gate_rows = torch::stable::contiguous(gate_in), x = contiguous_rows(x_in);
  const Tensor cu_seqlens = torch::stable::contiguous(cu_in);
  const int64_t samples = x.size(0), rows = x.size(1), channels = x.size(2), kmax = kept_rows.size(1);
  const i32 *kept = data<i32>(kept_rows), *starts = data<i32>(cu_seqlens);
  check_positions(kept, samples, kmax, rows - prefix);
  if (packed) check_starts(starts, kept, samples, kmax, prefix, grad.size(0));
  dispatch(x, [&, dx = dx, dgate = dgate](auto zero) {
    using T = decltype(zero);
    using A = typename Accumulate<T>::type;
    const T *upstream = data<T>(grad), *from = data<T>(x);
    const A* gate = data<A>(gate_rows);
    T* to = mutable_data<T>(dx);
    A* slope = mutable_data<A>(dgate);
    const int64_t per_thread = rows_per_thread(channels * int64_t(sizeof(T)));
    torch::stable::parallel_for(0, samples * rows, per_thread, [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; ++at) {
        const int64_t b = at / rows, row = at % rows, n = b * (rows - prefix) + row - prefix;
        const i32* mine = kept + b * kmax;
        const int64_t token = token_of_row(mine, row, prefix, kept_count(mine, i32(kmax)));
        const T* y = upstream + ((packed ? starts[b] : b * (prefix + kmax)) + token) * channels;
        if (token < 0) std::fill(to + at * channels, to + (at + 1) * channels, T(0.0f));
        else scale_row(y, row < prefix ? A(1) : gate[n], to + at * channels, channels);
        if (row < prefix) continue;
        slope[n] = token < 0 ? A(0) : dot_of_rows<A>(y, from + b * x.stride(0) + row * x.stride(1), channels);
      }
    });
  });
  return {dx, dgate};
}

#ifdef BUDGETPRUNE_CUDA
Gathered gather_tokens_cuda(const Tensor& x_in, const Tensor& kept_in, const std::optional<Tensor>& gate_in,
                            int64_t prefix, bool packed, int64_t total) {
  const OnDeviceOf guard(x_in);
  const auto [tokens, positions, mask, cu_seqlens] = allocate(x_in, kept_in, gate_in, prefix, packed, total);
  const Tensor x = contiguous_rows(x_in), kept = torch::stable::contiguous(kept_in);
  const auto gate = contiguous(gate_in);
  const int64_t item = int64_t(x.element_size()), size = packed ? total : -1;
  const i32 kmax = i32(kept.size(1));
  bool* exists = packed ? nullptr : mutable_data<bool>(mask);
  void* stream = current_cuda_stream(x.get_device_index());
  if (gate)
    check_launch("gather_tokens",
                 launch_gather_tokens_gated(dtype_of(x), x.const_data_ptr(), x.stride(0), x.stride(1),
                                            gate->const_data_ptr(), data<i32>(kept), x.size(0), prefix, x.size(1), kmax,
                                            x.size(2), size, tokens.mutable_data_ptr(), mutable_data<i32>(positions),
                                            exists, mutable_data<i32>(cu_seqlens), stream));
  else
    check_launch("gather_tokens",
                 launch_gather_tokens(x.const_data_ptr(), x.stride(0) * item, x.stride(1) * item, data<i32>(kept),
                                      x.size(0), prefix, x.size(1), kmax, x.size(2) * item, size,
                                      tokens.mutable_data_ptr(), mutable_data<i32>(positions), exists,
                                      mutable_data<i32>(cu_seqlens), stream));
  return {tokens, positions, mask, cu_seqlens};
}

Tensor gather_tokens_backward_cuda(const Tensor& grad_in, const Tensor& kept_in, const Tensor& cu_in, int64_t prefix,
                                   int64_t rows, bool packed) {
  const OnDeviceOf guard(grad_in);
  const Tensor dx = allocate_backward(grad_in, kept_in, cu_in, prefix, rows, packed);
  if (dx.numel() == 0) return dx;
  const Tensor grad = torch::stable::contiguous(grad_in), kept = torch::stable::contiguous(kept_in);
  const Tensor cu_seqlens = torch::stable::contiguous(cu_in);
  check_launch("gather_tokens_backward",
               launch_gather_tokens_backward(grad.const_data_ptr(), data<i32>(kept), data<i32>(cu_seqlens), dx.size(0),
                                             prefix, rows, i32(kept.size(1)),
                                             dx.size(2) * int64_t(dx.element_size()), packed ? grad.size(0) : -1,
                                             dx.mutable_data_ptr(), current_cuda_stream(grad.get_device_index())));
  return dx;
}

std::tuple<Tensor, Tensor> gather_tokens_gated_backward_cuda(const Tensor& grad_in, const Tensor& x_in,
                                                             const Tensor& kept_in, const Tensor& gate_in,
                                                             const Tensor& cu_in, int64_t prefix, bool packed) {
  const OnDeviceOf guard(grad_in);
  const auto [dx, dgate] = allocate_gated_backward(grad_in, x_in, kept_in, gate_in, cu_in, prefix, packed);
  const Tensor grad = torch::stable::contiguous(grad_in), kept = torch::stable::contiguous(kept_in);
  const Tensor gate = torch::stable::contiguous(gate_in), x = contiguous_rows(x_in);
  const Tensor cu_seqlens = torch::stable::contiguous(cu_in);
  if (x.size(0) * x.size(1) == 0) return {dx, dgate};
  check_launch("gather_tokens_gated_backward",
               launch_gather_tokens_gated_backward(
                   dtype_of(x), grad.const_data_ptr(), x.const_data_ptr(), x.stride(0), x.stride(1),
                   gate.const_data_ptr(), data<i32>(kept), data<i32>(cu_seqlens), x.size(0), prefix, x.size(1),
                   i32(kept.size(1)), x.size(2), packed ? grad.size(0) : -1, dx.mutable_data_ptr(),
                   dgate.mutable_data_ptr(), current_cuda_stream(x.get_device_index())));
  return {dx, dgate};
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(budgetprune, m) {
  m.def("gather_tokens(Tensor x, Tensor kept, Tensor? gate, int prefix, bool packed, SymInt total)"
        " -> (Tensor tokens, Tensor positions, Tensor mask, Tensor cu_seqlens)");
  m.def("gather_tokens_backward(Tensor grad, Tensor kept, Tensor cu_seqlens, int prefix, SymInt rows, bool packed)"
        " -> Tensor");
  m.def("gather_tokens_gated_backward(Tensor grad, Tensor x, Tensor kept, Tensor gate, Tensor cu_seqlens, int prefix, "
        "bool packed) -> (Tensor dx, Tensor dgate)");
}
BP_CPU_KERNELS(m) {
  m.impl("gather_tokens", TORCH_BOX(&gather_tokens_cpu));
  m.impl("gather_tokens_backward", TORCH_BOX(&gather_tokens_backward_cpu));
  m.impl("gather_tokens_gated_backward", TORCH_BOX(&gather_tokens_gated_backward_cpu));
}
#ifdef BUDGETPRUNE_CUDA
BP_CUDA_KERNELS(m) {
  m.impl("gather_tokens", TORCH_BOX(&gather_tokens_cuda));
  m.impl("gather_tokens_backward", TORCH_BOX(&gather_tokens_backward_cuda));
  m.impl("gather_tokens_gated_backward", TORCH_BOX(&gather_tokens_gated_backward_cuda));
}
#endif

}  // namespace budgetprune
