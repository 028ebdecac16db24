// greedy_select.cpp: the op as torch sees it. Guards memory, then CPU or CUDA.
//
// Without trapping math a compiler may compute both arms of a choice and so make vectors of a loop; no result changes.
// Python's own flags bring -fwrapv, under which a 32-bit index might wrap and a loop over it is no vector; none does.
#pragma GCC optimize("no-trapping-math", "no-wrapv")
#include "greedy_select.cuh"

#include <algorithm>
#include <string>
#include <vector>

#include "torch_support.h"

#ifdef __GNUC__
#define BP_FLATTEN __attribute__((flatten))  // a call left behind would run code of the oldest x86-64
#else
#define BP_FLATTEN
#endif

namespace budgetprune {

i64 greedy_select_scratch(i32 n, i32 kmax, bool dpp, i64 item);
i64 greedy_select_turns(i32 n, i32 kmax, bool dpp, i64 item);
int launch_greedy_select(DType dtype, const void* similarity, const void* relevance, const i32* keep, i64 samples,
                         i32 n, i32 kmax, bool dpp, void* nearest, void* factor, void* scratch, void* turns, i32* kept,
                         void* stream);

namespace {

bool is_dpp(const std::string& method) {
  STD_TORCH_CHECK(method == "max_min" || method == "dpp", "greedy_select: method must be max_min or dpp, got ", method);
  return method == "dpp";
}

Tensor allocate(const Tensor& similarity, const std::optional<Tensor>& relevance, const std::optional<Tensor>& keep,
                bool dpp, int64_t max_keep) {
  STD_TORCH_CHECK(similarity.dim() == 3 && similarity.size(1) == similarity.size(2),
                  "greedy_select: similarity must be [B, N, N]");
  STD_TORCH_CHECK(similarity.scalar_type() == ScalarType::Float || similarity.scalar_type() == ScalarType::Double,
                  "greedy_select: similarity must be float32 or float64");
  const int64_t samples = similarity.size(0), n = similarity.size(1);
  STD_TORCH_CHECK(n < (int64_t(1) << 27), "greedy_select: N must be below 2^27, got ", n);
  STD_TORCH_CHECK(0 <= max_keep && max_keep <= n, "greedy_select: max_keep must be in [0, ", n, "], got ", max_keep);
  STD_TORCH_CHECK(!relevance || (dpp && relevance->scalar_type() == similarity.scalar_type() && relevance->dim() == 2 &&
                                 relevance->size(0) == samples && relevance->size(1) == n),
                  "greedy_select: relevance is for dpp, [B, N] of similarity's dtype");
  STD_TORCH_CHECK(!keep || (keep->scalar_type() == ScalarType::Int && keep->numel() == samples),
                  "greedy_select: keep must be int32 [B]");
  return torch::stable::new_empty(similarity, {samples, max_keep}, ScalarType::Int);
}

template <typename Key>
BP_SIMD BP_FLATTEN i32 first_best(const Key* ranks, i32 n) {
  Key best = 0;
  for (i32 i = 0; i < n; ++i) best = ranks[i] > best ? ranks[i] : best;
  i32 i = 0;
  while (i < n - 1 && ranks[i] != best) ++i;
  return i;
}

// nearest[j] becomes the similarity of token j to its nearest other.
template <typename F>
BP_SIMD BP_FLATTEN void nearest_tokens(const F* similarity, i32 n, F* nearest) {
  for (i32 j = 0; j < n; ++j) nearest[j] = minus_infinity<F>();
  for (i32 i = 0; i < n; ++i) {
    const F* row = similarity + i64(i) * n;
    for (i32 j = 0; j < i; ++j) nearest[j] = more_similar(nearest[j], row[j]);
    for (i32 j = i + 1; j < n; ++j) nearest[j] = more_similar(nearest[j], row[j]);
  }
}

template <typename F, typename Key>
BP_SIMD BP_FLATTEN void rank_first(const F* nearest, i32 n, Key* ranks) {
  for (i32 j = 0; j < n; ++j) ranks[j] = rank_of(distance_of(nearest[j]));
}

template <typename F, typename Key>
BP_SIMD BP_FLATTEN void come_nearer(const F* row, i32 n, Key* distance, Key* ranks) {
  for (i32 j = 0; j < n; ++j) {
    distance[j] = nearer(distance[j], row[j]);
    ranks[j] = rank_of(distance[j]);
  }
}

// A sample's taken tokens, marked in `taken`.
template <typename F>
void max_min(const F* similarity, i32 n, i32 k, std::vector<char>& taken) {
  using Key = typename KeyOf<F>::Key;
  std::vector<F> nearest(n);
  std::vector<Key> distance(n, untouched<Key>()), ranks(n);
  nearest_tokens(similarity, n, nearest.data());
  rank_first(nearest.data(), n, ranks.data());
  for (i32 t = 0; t < k; ++t) {
    const i32 chosen = first_best(ranks.data(), n);
    taken[chosen] = 1;
    distance[chosen] = 1;
    if (t + 1 < k) come_nearer(similarity + i64(chosen) * n, n, distance.data(), ranks.data());
  }
}

// product[i] += the products of rows [0, rows) of c, in groups of four, with the entries of the chosen token.
template <typename F>
BP_SIMD BP_FLATTEN void add_products(const F* factor, const F* column, i32 rows, i32 n, F* product) {
  constexpr i32 width = 1024;  // columns at a time, so that their sums stay in the nearest cache
  for (i32 from = 0; from < n; from += width) {
    const i32 to = n - from < width ? n : from + width;
    i32 r = 0;
    for (; r + 4 <= rows; r += 4) {
      const F *c0 = factor + i64(r) * n, *c1 = c0 + n, *c2 = c1 + n, *c3 = c2 + n;
      const F a0 = column[r], a1 = column[r + 1], a2 = column[r + 2], a3 = column[r + 3];
      BP_LANES
      for (i32 i = from; i < to; ++i)
        product[i] = add_rn(product[i], four_products(a0, c0[i], a1, c1[i], a2, c2[i], a3, c3[i]));
    }
    for (i32 i = from; r < rows && i < to; ++i) {
      const F* c = factor + i64(r) * n + i;
      product[i] = add_rn(product[i], four_products(column[r], c[0], r + 1 < rows ? column[r + 1] : F(0),
                                                    r + 1 < rows ? c[n] : F(0), r + 2 < rows ? column[r + 2] : F(0),
                                                    r + 2 < rows ? c[2 * i64(n)] : F(0), F(0), F(0)));
    }
  }
}

// `next` comes in as the products so far and goes out as the new row of c.
template <typename F>
BP_SIMD BP_FLATTEN void close_row(const F* row, const F* relevance, F chosen_weight, F root, const F* limit, i32 n,
                                  F* next, F* variance) {
  BP_LANES
  for (i32 i = 0; i < n; ++i) {
    next[i] = cholesky_entry(scaled(chosen_weight, row[i], relevance[i]), next[i], root);
    variance[i] = variance_left(variance[i], next[i], limit[i]);
  }
}

template <typename F, typename Key>
BP_SIMD BP_FLATTEN void rank_variances(const F* variance, i32 n, Key* ranks) {
  for (i32 i = 0; i < n; ++i) ranks[i] = radix_key(variance[i]);
}

template <typename F>
void dpp(const F* similarity, const F* relevance, i32 n, i32 k, std::vector<char>& taken) {
  using Key = typename KeyOf<F>::Key;
  std::vector<F> ones, limit(n), variance(n), column(k), factor(std::max<i64>(k - 1, 0) * n);
  std::vector<Key> ranks(n);
  if (!relevance) ones.assign(n, F(1)), relevance = ones.data();
  for (i32 i = 0; i < n; ++i) {
    const F own = scaled(relevance[i], similarity[i64(i) * n + i], relevance[i]);
    limit[i] = negligible(own);
    variance[i] = own <= limit[i] ? F(0) : own;
  }
  i32 rows = 0;
  for (i32 t = 0; t < k; ++t) {
    rank_variances(variance.data(), n, ranks.data());
    const i32 chosen = first_best(ranks.data(), n);
    const F chosen_variance = float_of(ranks[chosen]);
    taken[chosen] = 1;
    variance[chosen] = F(-1);
    if (!(chosen_variance > F(0)) || t + 1 == k) continue;
    for (i32 r = 0; r < rows; ++r) column[r] = factor[i64(r) * n + chosen];
    F* const next = factor.data() + i64(rows) * n;  // zeros
    add_products(factor.data(), column.data(), rows, n, next);
    close_row(similarity + i64(chosen) * n, relevance, relevance[chosen], sqrt_rn(chosen_variance), limit.data(), n,
              next, variance.data());
    ++rows;
  }
}

Tensor greedy_select_cpu(const Tensor& similarity_in, const std::optional<Tensor>& relevance_in,
                         const std::optional<Tensor>& keep_in, int64_t max_keep, std::string method) {
  const bool by_dpp = is_dpp(method);
  Tensor kept = allocate(similarity_in, relevance_in, keep_in, by_dpp, max_keep);
  const Tensor similarity = torch::stable::contiguous(similarity_in);
  const auto relevance = contiguous(relevance_in), keep_tensor = contiguous(keep_in);
  const i32* keep = data_or_null<i32>(keep_tensor);
  const int64_t samples = similarity.size(0), n = similarity.size(1);
  for (int64_t b = 0; keep && b < samples; ++b)
    STD_TORCH_CHECK(0 <= keep[b] && keep[b] <= max_keep, "greedy_select: keep must be in [0, ", max_keep, "], got ",
                    keep[b]);
  const auto run = [&](auto zero) {
    using F = decltype(zero);
    const F *s = data<F>(similarity), *r = data_or_null<F>(relevance);
    i32* out = mutable_data<i32>(kept);
    torch::stable::parallel_for(0, samples, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        const i32 k = keep ? keep[b] : i32(max_keep);
        std::vector<char> taken(n);
        if (k > 0 && by_dpp) dpp(s + b * n * n, r ? r + b * n : nullptr, i32(n), k, taken);
        if (k > 0 && !by_dpp) max_min(s + b * n * n, i32(n), k, taken);
        i32* row = out + b * max_keep;
        for (i32 i = 0; k > 0 && i < i32(n); ++i)
          if (taken[i]) *row++ = i;
        std::fill(row, out + (b + 1) * max_keep, -1);
      }
    });
  };
  if (similarity.scalar_type() == ScalarType::Double) run(double{});
  else run(float{});
  return kept;
}

#ifdef BUDGETPRUNE_CUDA
Tensor greedy_select_cuda(const Tensor& similarity_in, const std::optional<Tensor>& relevance_in,
                          const std::optional<Tensor>& keep_in, int64_t max_keep, std::string method) {
  const OnDeviceOf guard(similarity_in);
  const bool by_dpp = is_dpp(method);
  Tensor kept = allocate(similarity_in, relevance_in, keep_in, by_dpp, max_keep);
  if (kept.numel() == 0) return kept;
  const Tensor similarity = torch::stable::contiguous(similarity_in);
  const auto relevance = contiguous(relevance_in), keep = contiguous(keep_in);
  const int64_t samples = similarity.size(0), n = similarity.size(1), item = int64_t(similarity.element_size());
  STD_TORCH_CHECK(samples * ((n + 31) / 32) < (int64_t(1) << 31), "greedy_select: B * N / 32 must be below 2^31");
  const i32 tokens = i32(n), longest = i32(max_keep);
  // The [B, N] keys of the first choice, or the [B, Kmax, N] factor; and what the launches ask for beside it.
  Tensor work = torch::stable::new_empty(similarity, {samples, by_dpp ? max_keep : 1, n});
  Tensor scratch = torch::stable::new_empty(
      similarity, {samples, greedy_select_scratch(tokens, longest, by_dpp, item) / item});
  Tensor turns = torch::stable::new_empty(
      similarity, {samples * greedy_select_turns(tokens, longest, by_dpp, item)}, ScalarType::Byte);
  const auto memory = [](Tensor& t) { return t.numel() ? t.mutable_data_ptr() : nullptr; };
  check_launch("greedy_select",
               launch_greedy_select(dtype_of(similarity), similarity.const_data_ptr(),
                                    relevance ? relevance->const_data_ptr() : nullptr, data_or_null<i32>(keep), samples,
                                    tokens, longest, by_dpp, by_dpp ? nullptr : memory(work),
                                    by_dpp ? memory(work) : nullptr, memory(scratch), memory(turns),
                                    mutable_data<i32>(kept), current_cuda_stream(similarity.get_device_index())));
  return kept;
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(budgetprune, m) {
  m.def("greedy_select(Tensor similarity, Tensor? relevance, Tensor? keep, SymInt max_keep, str method) -> Tensor");
}
BP_CPU_KERNELS(m) { m.impl("greedy_select", TORCH_BOX(&greedy_select_cpu)); }
#ifdef BUDGETPRUNE_CUDA
BP_CUDA_KERNELS(m) { m.impl("greedy_select", TORCH_BOX(&greedy_select_cuda)); }
#endif

}  // namespace budgetprune
