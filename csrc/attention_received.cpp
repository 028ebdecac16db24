// attention_received.cpp: the op as torch sees it, and the CPU loops.
#include "attention_received.cuh"

#include <algorithm>
#include <string>

#include "cpu_tiles.h"
#include "torch_support.h"

namespace budgetprune {

int launch_attention_received(DType dtype, const ReceivedShape& n, const void* q, const void* k, const bool* mask,
                              i32 rows, i64 chunks, double scale, void* scratch, void* parts, void* scores,
                              void* stream);

namespace {

constexpr i64 tile_rows = 24;  // queries at a time, and keys at a time where one query is enough

struct Shape {
  i64 batch, heads, kv_heads, queries, keys, d;
};

Tensor contiguous_rows(const Tensor& t) {
  return t.size(3) <= 1 || t.stride(3) == 1 ? t : torch::stable::contiguous(t);
}

QueryRows rows_named(const std::string& rows) {
  STD_TORCH_CHECK(rows == "last" || rows == "cls" || rows == "all",
                  "attention_received: rows must be \"last\", \"cls\" or \"all\", got \"", rows, "\"");
  return rows == "last" ? QueryRows::last : rows == "cls" ? QueryRows::cls : QueryRows::all;
}

Shape check(const Tensor& q, const Tensor& k, const std::optional<Tensor>& mask) {
  STD_TORCH_CHECK(q.dim() == 4 && k.dim() == 4, "attention_received: q and k must have 4 dimensions");
  const Shape n{q.size(0), q.size(1), k.size(1), q.size(2), k.size(2), q.size(3)};
  STD_TORCH_CHECK(k.size(0) == n.batch && k.size(3) == n.d && k.scalar_type() == q.scalar_type(),
                  "attention_received: k must be [B, Hkv, N, D] in the dtype of q");
  STD_TORCH_CHECK(n.kv_heads > 0 && n.heads > 0 && n.heads % n.kv_heads == 0 && n.queries > 0,
                  "attention_received: H must be a positive multiple of Hkv, and Q positive; got ", n.heads, ", ",
                  n.kv_heads, " and ", n.queries);
  STD_TORCH_CHECK(n.keys < (int64_t(1) << 31) && n.queries < (int64_t(1) << 31),
                  "attention_received: N and Q must be below 2^31");
  STD_TORCH_CHECK(!mask || (mask->dim() == 2 && mask->size(0) == n.batch && mask->size(1) == n.keys &&
                            mask->scalar_type() == ScalarType::Bool),
                  "attention_received: mask must be bool [B, N]");
  return n;
}

Tensor empty_scores(const Tensor& q, std::initializer_list<int64_t> size) {
  return torch::stable::new_empty(q, size, dtype_of(q) == DType::f64 ? ScalarType::Double : ScalarType::Float);
}

// Sums over its chosen queries and heads, one row [N] per (b, kv head).
template <typename T>
void received(const Tensor& q, const Tensor& k, const bool* mask, const Shape& n, QueryRows rows, double scale,
              const Tensor& parts) {
  using A = typename Accumulate<T>::type;
  const i64 group = n.heads / n.kv_heads, n_padded = Tile<A>::padded(n.keys), d_padded = Tile<A>::padded(n.d);
  const i64 tile = rows == QueryRows::all ? tile_rows : 1;
  const T *queries = data<T>(q), *keys = data<T>(k);
  A* parts_rows = mutable_data<A>(parts);
  const i64 q_strides[] = {q.stride(0), q.stride(1), q.stride(2)};
  const i64 k_strides[] = {k.stride(0), k.stride(1), k.stride(2)};
  torch::stable::parallel_for(0, n.batch * n.kv_heads, 1, [&](int64_t begin, int64_t end) {
    const i64 key_space = rows == QueryRows::all ? n.d * n_padded : tile_rows * d_padded;
    Scratch<A> scratch(key_space + std::max(tile, group) * (n_padded + d_padded) + 2 * n_padded, 5);
    A* packed = scratch.take(key_space);
    A *query = scratch.take(std::max(tile, group) * d_padded), *p = scratch.take(std::max(tile, group) * n_padded);
    A *no_bias = scratch.take(n_padded), *sum = scratch.take(n_padded);
    std::vector<i64> column(n.keys);  // the keys that exist
    const auto load = [&](const T* row, A factor, A* to) {
      for (i64 c = 0; c < n.d; ++c) to[c] = A(row[c]) * factor;
    };
    for (i64 unit = begin; unit < end; ++unit) {
      const i64 b = unit / n.kv_heads, kv = unit % n.kv_heads;
      const bool* exists = mask ? mask + b * n.keys : nullptr;
      const T* key_rows = keys + b * k_strides[0] + kv * k_strides[1];
      const auto query_row = [&](i64 h, i64 i) {
        return queries + b * q_strides[0] + h * q_strides[1] + i * q_strides[2];
      };
      i64 count = 0, first, last, counted = 1;
      for (i64 j = 0; j < n.keys; ++j)
        if (!exists || exists[j]) column[count++] = j;
      chosen_queries(rows, exists, n.queries, n.keys, first, last);
      const i64 width = Tile<A>::padded(count);
      std::fill(sum, sum + n_padded, A(0));
      if (rows == QueryRows::all) {
        constexpr i64 w = Tile<A>::width;
        std::fill(packed, packed + n.d * width, A(0));
        for (i64 j = 0; j < count; ++j)
          for (i64 c = 0; c < n.d; ++c)
            packed[j / w * n.d * w + c * w + j % w] = A(key_rows[column[j] * k_strides[2] + c]);
        counted = 0;
        for (i64 i = 0; i < n.queries; ++i) counted += query_exists(exists, i, n.queries, n.keys);
        for (i64 h = kv * group; h < (kv + 1) * group; ++h)
          for (i64 i = 0; i < n.queries;) {
            i64 filled = 0;
            for (; i < n.queries && filled < tile_rows; ++i)
              if (query_exists(exists, i, n.queries, n.keys))
                load(query_row(h, i), A(scale), query + filled++ * d_padded);
            matmul(query, d_padded, i64(1), packed, n.d, p, n_padded, filled, width, n.d, false);
            for (i64 r = 0; r < filled; ++r) {
              softmax_row(p + r * n_padded, no_bias, count, width);
              for (i64 j = 0; j < count; ++j) sum[j] += p[r * n_padded + j];
            }
          }
      } else if (first < last) {  // one query: K is read once, 24 rows at a time for all heads of the group
        for (i64 g = 0; g < group; ++g) load(query_row(kv * group + g, first), A(scale), query + g * d_padded);
        for (i64 j = 0; j < count; j += tile_rows) {
          const i64 here = std::min(tile_rows, count - j);
          const A* block[tile_rows];
          for (i64 r = 0; r < here; ++r) {
            const T* row = key_rows + column[j + r] * k_strides[2];
            if constexpr (std::is_same_v<T, A>) {
              block[r] = row;
            } else {
              load(row, A(1), packed + r * d_padded);
              block[r] = packed + r * d_padded;
            }
          }
          for (i64 g = 0; g < group; ++g) dot_rows(query + g * d_padded, block, here, n.d, p + g * n_padded + j);
        }
        for (i64 g = 0; g < group; ++g) {
          softmax_row(p + g * n_padded, no_bias, count, width);
          for (i64 j = 0; j < count; ++j) sum[j] += p[g * n_padded + j];
        }
      }
      A* part = parts_rows + unit * n.keys;
      std::fill(part, part + n.keys, A(0));
      const A weight = counted > 0 ? A(1) / (A(n.heads) * A(counted)) : A(0);
      for (i64 j = 0; j < count; ++j) part[column[j]] = sum[j] * weight;
    }
  });
}

}  // namespace

// Also called by fastv_select.cpp.
Tensor attention_received_cpu(const Tensor& q_in, const Tensor& k_in, std::string rows,
                              const std::optional<Tensor>& mask_in, double scale) {
  const Shape n = check(q_in, k_in, mask_in);
  const QueryRows which = rows_named(rows);
  const Tensor scores = empty_scores(q_in, {n.batch, n.keys});
  const Tensor parts = empty_scores(q_in, {n.batch, n.kv_heads, n.keys});
  const Tensor q = contiguous_rows(q_in), k = contiguous_rows(k_in);
  const auto mask = contiguous(mask_in);
  dispatch(q, [&](auto zero) {
    using A = typename Accumulate<decltype(zero)>::type;
    received<decltype(zero)>(q, k, data_or_null<bool>(mask), n, which, scale, parts);
    const A* part = data<A>(parts);
    A* sum = mutable_data<A>(scores);
    std::fill(sum, sum + n.batch * n.keys, A(0));
    for (i64 b = 0; b < n.batch; ++b, sum += n.keys)  // kv heads in their order: alike for any number of threads
      for (i64 h = 0; h < n.kv_heads; ++h, part += n.keys)
        for (i64 j = 0; j < n.keys; ++j) sum[j] += part[j];
  });
  return scores;
}

namespace {

#ifdef BUDGETPRUNE_CUDA
Tensor attention_received_cuda(const Tensor& q_in, const Tensor& k_in, std::string rows,
                               const std::optional<Tensor>& mask_in, double scale) {
  const OnDeviceOf guard(q_in);
  const Shape n = check(q_in, k_in, mask_in);
  const QueryRows which = rows_named(rows);
  const bool all = which == QueryRows::all;
  // Shared memory of the plain kernel, and of the sums over heads.
  STD_TORCH_CHECK(n.d <= 6000 && n.heads <= 3000, "attention_received: on CUDA D must be at most 6000 and H 3000, got ",
                  n.d, " and ", n.heads);
  const Tensor scores = empty_scores(q_in, {n.batch, n.keys});
  if (scores.numel() == 0) return scores;
  const Tensor q = all ? torch::stable::contiguous(q_in) : contiguous_rows(q_in);
  const Tensor k = all ? torch::stable::contiguous(k_in) : contiguous_rows(k_in);
  const auto mask = contiguous(mask_in);
  const ReceivedShape shape{n.batch, n.heads, n.kv_heads, n.queries, n.keys, n.d,
                            {q.stride(0), q.stride(1), q.stride(2)}, {k.stride(0), k.stride(1), k.stride(2)}};
  // All rows without tensor cores: a block takes 32 queries of a head, and parts are 1/32 of the attention matrix.
  const bool tensor_cores = q.element_size() == 2 && n.d % 8 == 0 && n.d <= 128;
  const i64 chunks = all && !tensor_cores ? (n.queries + 31) / 32 : 1;
  const i64 width = std::max(n.keys, tensor_cores ? n.queries : 0);
  const Tensor scratch = empty_scores(q_in, {n.batch, n.heads * chunks, width});
  const Tensor parts = empty_scores(q_in, {n.batch, n.heads * chunks, all ? n.keys : 2 * shape.splits()});
  check_launch("attention_received",
               launch_attention_received(dtype_of(q), shape, q.const_data_ptr(), k.const_data_ptr(),
                                         data_or_null<bool>(mask), i32(which), chunks, scale,
                                         scratch.mutable_data_ptr(), parts.mutable_data_ptr(),
                                         scores.mutable_data_ptr(), current_cuda_stream(q.get_device_index())));
  return scores;
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(budgetprune, m) {
  m.def("attention_received(Tensor q, Tensor k, str rows, Tensor? mask, float scale) -> Tensor");
}
BP_CPU_KERNELS(m) { m.impl("attention_received", TORCH_BOX(&attention_received_cpu)); }
#ifdef BUDGETPRUNE_CUDA
BP_CUDA_KERNELS(m) { m.impl("attention_received", TORCH_BOX(&attention_received_cuda)); }
#endif

}  // namespace budgetprune
