// select_topk.cpp: the op as torch sees it. Guards memory, then CPU or CUDA.
#include "select_topk.cuh"

#include "torch_support.h"

#include <algorithm>
#include <vector>

#ifdef __GNUC__
#define BP_FLATTEN __attribute__((flatten))  // a call left behind would run code of the oldest x86-64
#else
#define BP_FLATTEN
#endif

namespace budgetprune {

int launch_select_topk(DType, const void* scores, const i32* keep, i64 rows, i32 n, i32 kmax, i32* kept, void* stream);

namespace {

Tensor allocate(const Tensor& scores, const std::optional<Tensor>& keep, int64_t max_keep) {
  STD_TORCH_CHECK(scores.dim() == 2, "select_topk: scores must be [B, N], got ", scores.dim(), " dimensions");
  STD_TORCH_CHECK(scores.size(1) < (int64_t(1) << 31), "select_topk: N must be below 2^31, got ", scores.size(1));
  STD_TORCH_CHECK(0 <= max_keep && max_keep <= scores.size(1), "select_topk: max_keep must be in [0, ", scores.size(1),
                  "], got ", max_keep);
  STD_TORCH_CHECK(!keep || (keep->scalar_type() == ScalarType::Int && keep->numel() == scores.size(0)),
                  "select_topk: keep must be int32 [B]");
  return torch::stable::new_empty(scores, {scores.size(0), max_keep}, ScalarType::Int);
}

BP_SIMD BP_FLATTEN void select_row(const float* scores, i32 n, i32 k, i32 kmax, u32* keys, i32* kept) {
  for (i32 i = 0; i < n; ++i) keys[i] = radix_key(scores[i]);
  select_topk_row(SerialTeam{}, keys, n, k, kmax, static_cast<i32*>(nullptr), kept);
}
BP_SIMD BP_FLATTEN void select_row(const double* scores, i32 n, i32 k, i32 kmax, u64* keys, i32* kept) {
  for (i32 i = 0; i < n; ++i) keys[i] = radix_key(scores[i]);
  select_topk_row(SerialTeam{}, keys, n, k, kmax, static_cast<i32*>(nullptr), kept);
}
BP_SIMD BP_FLATTEN void select_row_of_keys(const u32* keys, i32 n, i32 k, i32 kmax, i32* kept) {
  select_topk_row(SerialTeam{}, keys, n, k, kmax, static_cast<i32*>(nullptr), kept);
}
template <typename Half>
void select_row(const Half* scores, i32 n, i32 k, i32 kmax, u32* keys, i32* kept) {
  for (i32 i = 0; i < n; ++i) keys[i] = key_of(scores[i]);
  select_row_of_keys(keys, n, k, kmax, kept);
}

Tensor select_topk_cpu(const Tensor& scores_in, const std::optional<Tensor>& keep_in, int64_t max_keep) {
  Tensor kept = allocate(scores_in, keep_in, max_keep);
  const Tensor scores = torch::stable::contiguous(scores_in);
  const auto keep_tensor = contiguous(keep_in);
  const i32* keep = data_or_null<i32>(keep_tensor);
  const int64_t rows = scores.size(0), n = scores.size(1);
  for (int64_t r = 0; keep && r < rows; ++r)
    STD_TORCH_CHECK(0 <= keep[r] && keep[r] <= max_keep, "select_topk: keep must be in [0, ", max_keep, "], got ",
                    keep[r]);
  dispatch(scores, [&](auto zero) {
    using T = decltype(zero);
    const T* in = data<T>(scores);
    i32* out = mutable_data<i32>(kept);
    // Below about 10 microseconds of work a second thread costs more than it brings.
    const int64_t rows_per_task = std::max<int64_t>(1, 4096 / std::max<int64_t>(n, 1));
    torch::stable::parallel_for(0, rows, rows_per_task, [&](int64_t begin, int64_t end) {
      std::vector<typename KeyOf<T>::Key> keys(n);
      for (int64_t r = begin; r < end; ++r)
        select_row(in + r * n, i32(n), keep ? keep[r] : i32(max_keep), i32(max_keep), keys.data(), out + r * max_keep);
    });
  });
  return kept;
}

#ifdef BUDGETPRUNE_CUDA
Tensor select_topk_cuda(const Tensor& scores_in, const std::optional<Tensor>& keep_in, int64_t max_keep) {
  const OnDeviceOf guard(scores_in);
  Tensor kept = allocate(scores_in, keep_in, max_keep);
  if (kept.numel() == 0) return kept;
  const Tensor scores = torch::stable::contiguous(scores_in);
  const auto keep = contiguous(keep_in);
  check_launch("select_topk",
               launch_select_topk(dtype_of(scores), scores.const_data_ptr(), data_or_null<i32>(keep), scores.size(0),
                                  i32(scores.size(1)), i32(max_keep), mutable_data<i32>(kept),
                                  current_cuda_stream(scores.get_device_index())));
  return kept;
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(budgetprune, m) {
  m.def("select_topk(Tensor scores, Tensor? keep, SymInt max_keep) -> Tensor");
}
BP_CPU_KERNELS(m) { m.impl("select_topk", TORCH_BOX(&select_topk_cpu)); }
#ifdef BUDGETPRUNE_CUDA
BP_CUDA_KERNELS(m) { m.impl("select_topk", TORCH_BOX(&select_topk_cuda)); }
#endif

}  // namespace budgetprune
