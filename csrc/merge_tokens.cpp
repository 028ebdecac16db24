// merge_tokens.cpp: the ops as torch sees them. Guards memory, then CPU or CUDA.
#pragma GCC optimize("no-trapping-math", "no-wrapv")  // so that loops become vectors, see gumbel_topk.cpp
#include "merge_tokens.cuh"

#include <algorithm>
#include <vector>

#include "torch_support.h"

namespace budgetprune {

int launch_merge_tokens(DType dtype, const MergeShape& shape, const void* x, i64 batch_stride, i64 row_stride,
                        const i32* offsets, const i32* index, const void* weight, i64 samples, void* out, void* stream);
int launch_merge_dots(DType dtype, const MergeShape& shape, const void* grad, const void* x, i64 batch_stride,
                      i64 row_stride, const i32* offsets, const i32* index, i64 samples, void* out, void* stream);
int launch_merge_transpose(const MergeShape& shape, const i32* offsets, const i32* index, i64 samples, i32* to_offsets,
                           i32* to_index, i32* to_entry, void* stream);

namespace {

ScalarType sum_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

MergeShape check_lists(const Tensor& offsets, const Tensor& index, int64_t samples, int64_t tokens, int64_t channels) {
  STD_TORCH_CHECK(offsets.dim() == 2 && offsets.size(0) == samples && offsets.size(1) >= 1 &&
                      offsets.scalar_type() == ScalarType::Int,
                  "merge_tokens: offsets must be int32 [B, M + 1] with B = ", samples);
  STD_TORCH_CHECK(index.dim() == 2 && index.size(0) == samples && index.scalar_type() == ScalarType::Int,
                  "merge_tokens: index must be int32 [B, E] with B = ", samples);
  const int64_t limit = int64_t(1) << 30, outputs = offsets.size(1) - 1, entries = index.size(1);
  STD_TORCH_CHECK(0 <= tokens && tokens < limit && outputs < limit && entries < limit,
                  "merge_tokens: N, M and E must be below 2^30");
  STD_TORCH_CHECK(samples * (entries + 8) < 2 * limit && samples * outputs * (channels / 32 + 1) + 8 < 2 * limit &&
                      samples * (tokens / 256 + 1) < 2 * limit,
                  "merge_tokens: B * E and B * M * C / 32 must be below 2^31");
  return {i32(tokens), i32(outputs), i32(entries), channels};
}

MergeShape check_merge(const Tensor& x, const Tensor& offsets, const Tensor& index, const Tensor& weight) {
  STD_TORCH_CHECK(x.dim() == 3, "merge_tokens: x must be [B, N, C], got ", x.dim(), " dimensions");
  dtype_of(x);
  const MergeShape shape = check_lists(offsets, index, x.size(0), x.size(1), x.size(2));
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(0) == x.size(0) && weight.size(1) == index.size(1) &&
                      weight.scalar_type() == sum_type(x),
                  "merge_tokens: weight must be [B, E], float64 for a float64 x, else float32");
  return shape;
}

MergeShape check_dots(const Tensor& grad, const Tensor& x, const Tensor& offsets, const Tensor& index) {
  STD_TORCH_CHECK(x.dim() == 3, "merge_dots: x must be [B, N, C], got ", x.dim(), " dimensions");
  dtype_of(x);
  const MergeShape shape = check_lists(offsets, index, x.size(0), x.size(1), x.size(2));
  STD_TORCH_CHECK(grad.dim() == 3 && grad.size(0) == x.size(0) && grad.size(1) == shape.outputs &&
                      grad.size(2) == x.size(2) && grad.scalar_type() == x.scalar_type(),
                  "merge_dots: grad must be [B, M, C] of the dtype of x");
  return shape;
}

Tensor contiguous_rows(const Tensor& x) {
  return x.size(2) <= 1 || x.stride(2) == 1 ? x : torch::stable::contiguous(x);
}

// Reads the lists once, whole: offsets ascending within [0, E], tokens in [0, N) or -1.
void check_values(const MergeShape& shape, const i32* offsets, const i32* index, int64_t samples) {
  for (int64_t b = 0; b < samples; ++b) {
    i32 before = 0;
    for (int64_t m = 0; m <= shape.outputs; ++m) {
      const i32 here = offsets[b * (int64_t(shape.outputs) + 1) + m];
      STD_TORCH_CHECK(before <= here && here <= shape.entries, "merge_tokens: offsets must ascend within [0, E=",
                      shape.entries, "], got ", here, " after ", before, " in row ", b);
      before = here;
    }
    u32 worst = 0;  // -1 becomes 0, and all that is no token is above N
    for (int64_t e = 0; e < shape.entries; ++e)
      worst = std::max(worst, u32(index[b * int64_t(shape.entries) + e]) + 1u);
    STD_TORCH_CHECK(worst <= u32(shape.tokens), "merge_tokens: index must be in [0, N=", shape.tokens,
                    ") or -1, got ", i32(worst - 1u), " in row ", b);
  }
}

constexpr i64 slice = 256;  // channels that one task sums

// sum[c] += the weighted rows, four at a time; a row is given by where its slice starts.
template <typename T, typename F>
BP_SIMD void add_rows(const T* const* rows, const F* weights, i32 count, i32 channels, F* sum) {
  i32 e = 0;
  for (; e + 4 <= count; e += 4) {
    const T *r0 = rows[e], *r1 = rows[e + 1], *r2 = rows[e + 2], *r3 = rows[e + 3];
    const F w0 = weights[e], w1 = weights[e + 1], w2 = weights[e + 2], w3 = weights[e + 3];
    BP_LANES
    for (i32 c = 0; c < channels; ++c)
      sum[c] += (w0 * F(r0[c]) + w1 * F(r1[c])) + (w2 * F(r2[c]) + w3 * F(r3[c]));
  }
  for (; e < count; ++e) {
    const T* r = rows[e];
    const F w = weights[e];
    BP_LANES
    for (i32 c = 0; c < channels; ++c) sum[c] += w * F(r[c]);
  }
}

template <typename T, typename F>
BP_SIMD F dot(const T* a, const T* b, i64 channels) {
  F lanes[16] = {};
  i64 c = 0;
  for (; c + 16 <= channels; c += 16) {
    BP_LANES
    for (i32 l = 0; l < 16; ++l) lanes[l] += F(a[c + l]) * F(b[c + l]);
  }
  for (i32 half = 8; half > 0; half /= 2)
    for (i32 l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  F sum = lanes[0];
  for (; c < channels; ++c) sum += F(a[c]) * F(b[c]);
  return sum;
}

Tensor merge_tokens_cpu(const Tensor& x_in, const Tensor& offsets_in, const Tensor& index_in, const Tensor& weight_in) {
  const MergeShape shape = check_merge(x_in, offsets_in, index_in, weight_in);
  const Tensor x = contiguous_rows(x_in), offset_rows = torch::stable::contiguous(offsets_in);
  const Tensor index_rows = torch::stable::contiguous(index_in), weights = torch::stable::contiguous(weight_in);
  const i32 *offsets = data<i32>(offset_rows), *index = data<i32>(index_rows);
  const int64_t samples = x.size(0), slices = (shape.channels + slice - 1) / slice;
  check_values(shape, offsets, index, samples);
  Tensor out = torch::stable::new_empty(x, {samples, int64_t(shape.outputs), shape.channels});
  dispatch(x, [&](auto zero) {
    using T = decltype(zero);
    using F = typename Accumulate<T>::type;
    const T* from = data<T>(x);
    T* to = mutable_data<T>(out);
    // All lists of a sample over a slice of its channels: that much of x stays in the cache, and a long list among
    // short ones keeps no thread waiting.
    const int64_t work = int64_t(shape.entries) * std::min(slice, shape.channels);
    torch::stable::parallel_for(0, samples * slices, 1 + 32768 / (1 + work), [&](int64_t begin, int64_t end) {
      std::vector<const T*> rows(shape.entries);
      std::vector<F> scale(shape.entries), sum(slice);
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t b = unit / slices, first = unit % slices * slice, width = std::min(slice, shape.channels - first);
        const i32* list = offsets + b * (int64_t(shape.outputs) + 1);
        const F* weight = data<F>(weights) + b * shape.entries;
        for (int64_t m = 0; m < shape.outputs; ++m) {
          i32 count = 0;
          for (i32 e = list[m]; e < list[m + 1]; ++e) {
            const i32 token = index[b * shape.entries + e];
            if (token < 0) continue;
            rows[count] = from + b * x.stride(0) + token * x.stride(1) + first;
            scale[count++] = weight[e];
          }
          std::fill_n(sum.begin(), width, F(0));
          add_rows(rows.data(), scale.data(), count, i32(width), sum.data());
          T* row = to + (b * shape.outputs + m) * shape.channels + first;
          for (int64_t c = 0; c < width; ++c) row[c] = T(sum[c]);
        }
      }
    });
  });
  return out;
}

Tensor merge_dots_cpu(const Tensor& grad_in, const Tensor& x_in, const Tensor& offsets_in, const Tensor& index_in) {
  const MergeShape shape = check_dots(grad_in, x_in, offsets_in, index_in);
  const Tensor x = contiguous_rows(x_in), grad = torch::stable::contiguous(grad_in);
  const Tensor offset_rows = torch::stable::contiguous(offsets_in), index_rows = torch::stable::contiguous(index_in);
  const i32 *offsets = data<i32>(offset_rows), *index = data<i32>(index_rows);
  const int64_t samples = x.size(0), entries = shape.entries;
  check_values(shape, offsets, index, samples);
  Tensor dots = torch::stable::new_empty(x, {samples, entries}, sum_type(x));
  dispatch(x, [&](auto zero) {
    using T = decltype(zero);
    using F = typename Accumulate<T>::type;
    const T *a = data<T>(grad), *b = data<T>(x);
    F* out = mutable_data<F>(dots);
    const int64_t per_task = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, shape.channels));
    torch::stable::parallel_for(0, samples * entries, per_task, [&](int64_t begin, int64_t end) {
      int64_t sample = begin / entries;
      i32 e = i32(begin % entries), list = -1;
      for (int64_t at = begin; at < end; ++at) {
        const i32* own = offsets + sample * (int64_t(shape.outputs) + 1);
        if (list < 0 || e >= own[list + 1]) list = list_of(own, shape.outputs, e);
        const i32 token = index[at];
        out[at] = list < 0 || token < 0 ? F(0)
                                        : dot<T, F>(a + (sample * shape.outputs + list) * shape.channels,
                                                    b + sample * x.stride(0) + token * x.stride(1), shape.channels);
        if (++e == entries) ++sample, e = 0, list = -1;
      }
    });
  });
  return dots;
}

using Lists = std::tuple<Tensor, Tensor, Tensor>;  // offsets [B, N + 1], index [B, E] (a list), entry [B, E]

std::pair<MergeShape, Lists> allocate_transpose(const Tensor& offsets, const Tensor& index, int64_t tokens) {
  STD_TORCH_CHECK(offsets.dim() == 2, "merge_transpose: offsets must be [B, M + 1]");
  const MergeShape shape = check_lists(offsets, index, offsets.size(0), tokens, 0);
  return {shape, {torch::stable::new_empty(offsets, {offsets.size(0), tokens + 1}),
                  torch::stable::new_empty(index, {index.size(0), index.size(1)}),
                  torch::stable::new_empty(index, {index.size(0), index.size(1)})}};
}

Lists merge_transpose_cpu(const Tensor& offsets_in, const Tensor& index_in, int64_t tokens) {
  const auto [shape, lists] = allocate_transpose(offsets_in, index_in, tokens);
  const Tensor offset_rows = torch::stable::contiguous(offsets_in), index_rows = torch::stable::contiguous(index_in);
  const i32 *offsets = data<i32>(offset_rows), *index = data<i32>(index_rows);
  const int64_t samples = offset_rows.size(0), outputs = shape.outputs, entries = shape.entries;
  check_values(shape, offsets, index, samples);
  i32* to_offsets = mutable_data<i32>(std::get<0>(lists));
  i32 *to_index = mutable_data<i32>(std::get<1>(lists)), *to_entry = mutable_data<i32>(std::get<2>(lists));
  torch::stable::parallel_for(0, samples, 1 + 8192 / (1 + entries), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const i32 *list = offsets + b * (outputs + 1), *token = index + b * entries;
      i32 *start = to_offsets + b * (tokens + 1), *to = to_index + b * entries, *entry = to_entry + b * entries;
      std::vector<i32> next(tokens + 1);
      for (i32 e = list[0]; e < list[outputs]; ++e)
        if (token[e] >= 0) ++next[token[e] + 1];
      for (int64_t n = 0; n < tokens; ++n) next[n + 1] += next[n];
      std::copy(next.begin(), next.end(), start);
      for (i32 m = 0; m < i32(outputs); ++m)
        for (i32 e = list[m]; e < list[m + 1]; ++e)
          if (token[e] >= 0) {
            const i32 at = next[token[e]]++;
            to[at] = m;
            entry[at] = e;
          }
      std::fill(to + start[tokens], to + entries, -1);
      std::fill(entry + start[tokens], entry + entries, 0);
    }
  });
  return lists;
}

#ifdef BUDGETPRUNE_CUDA
Tensor merge_tokens_cuda(const Tensor& x_in, const Tensor& offsets_in, const Tensor& index_in,
                         const Tensor& weight_in) {
  const OnDeviceOf guard(x_in);
  const MergeShape shape = check_merge(x_in, offsets_in, index_in, weight_in);
  const Tensor x = contiguous_rows(x_in), offsets = torch::stable::contiguous(offsets_in);
  const Tensor index = torch::stable::contiguous(index_in), weight = torch::stable::contiguous(weight_in);
  Tensor out = torch::stable::new_empty(x, {x.size(0), int64_t(shape.outputs), shape.channels});
  if (out.numel() == 0) return out;
  check_launch("merge_tokens",
               launch_merge_tokens(dtype_of(x), shape, x.const_data_ptr(), x.stride(0), x.stride(1), data<i32>(offsets),
                                   data<i32>(index), weight.const_data_ptr(), x.size(0), out.mutable_data_ptr(),
                                   current_cuda_stream(x.get_device_index())));
  return out;
}

Tensor merge_dots_cuda(const Tensor& grad_in, const Tensor& x_in, const Tensor& offsets_in, const Tensor& index_in) {
  const OnDeviceOf guard(x_in);
  const MergeShape shape = check_dots(grad_in, x_in, offsets_in, index_in);
  const Tensor x = contiguous_rows(x_in), grad = torch::stable::contiguous(grad_in);
  const Tensor offsets = torch::stable::contiguous(offsets_in), index = torch::stable::contiguous(index_in);
  Tensor dots = torch::stable::new_empty(x, {x.size(0), int64_t(shape.entries)}, sum_type(x));
  if (dots.numel() == 0) return dots;
  check_launch("merge_dots",
               launch_merge_dots(dtype_of(x), shape, grad.const_data_ptr(), x.const_data_ptr(), x.stride(0),
                                 x.stride(1), data<i32>(offsets), data<i32>(index), x.size(0), dots.mutable_data_ptr(),
                                 current_cuda_stream(x.get_device_index())));
  return dots;
}

Lists merge_transpose_cuda(const Tensor& offsets_in, const Tensor& index_in, int64_t tokens) {
  const OnDeviceOf guard(index_in);
  const auto [shape, lists] = allocate_transpose(offsets_in, index_in, tokens);
  const Tensor offsets = torch::stable::contiguous(offsets_in), index = torch::stable::contiguous(index_in);
  if (offsets.size(0) == 0) return lists;
  const auto [to_offsets, to_index, to_entry] = lists;
  check_launch("merge_transpose",
               launch_merge_transpose(shape, data<i32>(offsets), data<i32>(index), offsets.size(0),
                                      mutable_data<i32>(to_offsets), mutable_data<i32>(to_index),
                                      mutable_data<i32>(to_entry), current_cuda_stream(index_in.get_device_index())));
  return lists;
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(budgetprune, m) {
  m.def("merge_tokens(Tensor x, Tensor offsets, Tensor index, Tensor weight) -> Tensor");
  m.def("merge_dots(Tensor grad, Tensor x, Tensor offsets, Tensor index) -> Tensor");
  m.def("merge_transpose(Tensor offsets, Tensor index, SymInt tokens)"
        " -> (Tensor to_offsets, Tensor to_index, Tensor to_entry)");
}
BP_CPU_KERNELS(m) {
  m.impl("merge_tokens", TORCH_BOX(&merge_tokens_cpu));
  m.impl("merge_dots", TORCH_BOX(&merge_dots_cpu));
  m.impl("merge_transpose", TORCH_BOX(&merge_transpose_cpu));
}
#ifdef BUDGETPRUNE_CUDA
BP_CUDA_KERNELS(m) {
  m.impl("merge_tokens", TORCH_BOX(&merge_tokens_cuda));
  m.impl("merge_dots", TORCH_BOX(&merge_dots_cuda));
  m.impl("merge_transpose", TORCH_BOX(&merge_transpose_cuda));
}
#endif

}  // namespace budgetprune
