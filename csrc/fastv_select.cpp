// fastv_select.cpp: the op as torch sees it. The CPU takes the scores of attention_received and ranks them.
#include "fastv_select.cuh"

#include <algorithm>
#include <string>
#include <type_traits>
#include <vector>

#include "torch_support.h"

namespace budgetprune {

Tensor attention_received_cpu(const Tensor& q, const Tensor& k, std::string rows, const std::optional<Tensor>& mask,
                              double scale);
int launch_fastv_select(DType dtype, const ReceivedShape& n, const void* q, const void* k, const bool* mask,
                        const bool* image, const i32* keep, i32 max_keep, i32 width, double scale, void* s, void* stats,
                        u32* tickets, u32* ranks, void* scores, i32* kept, void* stream);

namespace {

void check(const Tensor& q, const Tensor& k, const Tensor& image, const std::optional<Tensor>& keep, int64_t max_keep,
           const std::optional<Tensor>& mask, int64_t max_kept) {
  STD_TORCH_CHECK(q.dim() == 4 && k.dim() == 4 && k.size(0) == q.size(0) && k.size(3) == q.size(3) &&
                      k.scalar_type() == q.scalar_type(),
                  "fastv_select: q must be [B, H, Q, D] and k [B, Hkv, N, D] in its dtype");
  STD_TORCH_CHECK(k.size(1) > 0 && q.size(1) > 0 && q.size(1) % k.size(1) == 0 && q.size(2) > 0,
                  "fastv_select: H must be a positive multiple of Hkv, and Q positive");
  const auto is_mask = [&](const Tensor& t) {
    return t.dim() == 2 && t.size(0) == q.size(0) && t.size(1) == k.size(2) && t.scalar_type() == ScalarType::Bool;
  };
  STD_TORCH_CHECK(is_mask(image) && (!mask || is_mask(*mask)), "fastv_select: image and mask must be bool [B, N]");
  STD_TORCH_CHECK(!keep || (keep->scalar_type() == ScalarType::Int && keep->numel() == q.size(0)),
                  "fastv_select: keep must be int32 [B]");
  STD_TORCH_CHECK(k.size(2) < (int64_t(1) << 31) && 0 <= max_keep && max_keep <= k.size(2) && 0 <= max_kept &&
                      max_kept <= k.size(2),
                  "fastv_select: max_keep and max_kept must be in [0, N], N below 2^31");
}

std::tuple<Tensor, Tensor> fastv_select_cpu(const Tensor& q, const Tensor& k, const Tensor& image_in,
                                            const std::optional<Tensor>& keep_in, int64_t max_keep,
                                            const std::optional<Tensor>& mask_in, int64_t max_kept, double scale) {
  check(q, k, image_in, keep_in, max_keep, mask_in, max_kept);
  const Tensor scores = attention_received_cpu(q, k, "last", mask_in, scale);
  const Tensor image_rows = torch::stable::contiguous(image_in);
  const auto keep_rows = contiguous(keep_in), mask = contiguous(mask_in);
  const int64_t batch = q.size(0), n = k.size(2);
  Tensor kept = torch::stable::new_empty(scores, {batch, max_kept}, ScalarType::Int);
  const bool *image = data<bool>(image_rows), *exists = data_or_null<bool>(mask);
  const i32* keep = data_or_null<i32>(keep_rows);
  i32* out = mutable_data<i32>(kept);
  std::vector<u32> ranks(n);
  dispatch(scores, [&](auto zero) {
    using A = decltype(zero);
    if constexpr (std::is_floating_point_v<A>) {  // scores are never half
      for (int64_t b = 0; b < batch; ++b) {
        i32 always = 0, candidates = 0;
        for (int64_t j = 0; j < n; ++j) {
          const bool here = !exists || exists[b * n + j], picture = image[b * n + j];
          ranks[j] = rank_key(here, picture, data<A>(scores)[b * n + j]);
          always += here && !picture;
          candidates += here && picture;
        }
        const i32 total = always + std::min(count_of(keep, b, i32(max_keep)), candidates);
        STD_TORCH_CHECK(total <= max_kept, "fastv_select: max_kept must hold what is kept, ", total, " in row ", b,
                        ", got ", max_kept);
        select_topk_row(SerialTeam{}, ranks.data(), i32(n), total, i32(max_kept), static_cast<i32*>(nullptr),
                        out + b * max_kept);
      }
    }
  });
  return {kept, scores};
}

#ifdef BUDGETPRUNE_CUDA
Tensor contiguous_rows(const Tensor& t) {
  return t.size(3) <= 1 || t.stride(3) == 1 ? t : torch::stable::contiguous(t);
}

std::tuple<Tensor, Tensor> fastv_select_cuda(const Tensor& q_in, const Tensor& k_in, const Tensor& image_in,
                                             const std::optional<Tensor>& keep_in, int64_t max_keep,
                                             const std::optional<Tensor>& mask_in, int64_t max_kept, double scale) {
  const OnDeviceOf guard(q_in);
  check(q_in, k_in, image_in, keep_in, max_keep, mask_in, max_kept);
  const Tensor q = contiguous_rows(q_in), k = contiguous_rows(k_in), image = torch::stable::contiguous(image_in);
  const auto keep = contiguous(keep_in), mask = contiguous(mask_in);
  const ReceivedShape n{q.size(0), q.size(1), k.size(1), q.size(2), k.size(2), q.size(3),
                        {q.stride(0), q.stride(1), q.stride(2)}, {k.stride(0), k.stride(1), k.stride(2)}};
  STD_TORCH_CHECK(n.heads <= 3000, "fastv_select: on CUDA H must be at most 3000, got ", n.heads);  // shared memory
  const ScalarType kind = dtype_of(q) == DType::f64 ? ScalarType::Double : ScalarType::Float;
  const Tensor scores = torch::stable::new_empty(q, {n.batch, n.keys}, kind);
  const Tensor kept = torch::stable::new_empty(q, {n.batch, max_kept}, ScalarType::Int);
  if (scores.numel() == 0) return {kept, scores};
  const Tensor s = torch::stable::new_empty(q, {n.batch, n.heads, n.keys}, kind);
  const Tensor stats = torch::stable::new_empty(q, {n.batch, n.heads, n.splits(), 2}, kind);
  const Tensor words = torch::stable::new_empty(q, {n.batch, n.keys + 1}, ScalarType::Int);
  u32* tickets = reinterpret_cast<u32*>(mutable_data<i32>(words));
  check_launch("fastv_select",
               launch_fastv_select(dtype_of(q), n, q.const_data_ptr(), k.const_data_ptr(), data_or_null<bool>(mask),
                                   data<bool>(image), data_or_null<i32>(keep), i32(max_keep), i32(max_kept), scale,
                                   s.mutable_data_ptr(), stats.mutable_data_ptr(), tickets, tickets + n.batch,
                                   scores.mutable_data_ptr(), mutable_data<i32>(kept),
                                   current_cuda_stream(q.get_device_index())));
  return {kept, scores};
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(budgetprune, m) {
  m.def("fastv_select(Tensor q, Tensor k, Tensor image, Tensor? keep, SymInt max_keep, Tensor? mask, SymInt max_kept, "
        "float scale) -> (Tensor kept, Tensor scores)");
}
BP_CPU_KERNELS(m) { m.impl("fastv_select", TORCH_BOX(&fastv_select_cpu)); }
#ifdef BUDGETPRUNE_CUDA
BP_CUDA_KERNELS(m) { m.impl("fastv_select", TORCH_BOX(&fastv_select_cuda)); }
#endif

}  // namespace budgetprune
