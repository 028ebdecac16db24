// gumbel_topk.cpp: the op as torch sees it. Guards memory, then CPU or CUDA.
//
// The rows are compiled here. Without trapping math a compiler may compute both arms of a choice and so make vectors of
// a loop; no result changes. Python's own flags bring -fwrapv, under which a 32-bit index might wrap and a loop over it
// is no vector; none of ours does.
#pragma GCC optimize("no-trapping-math", "no-wrapv")
#include "gumbel_topk_cpu.h"
#include "torch_support.h"

#include <algorithm>
#include <string>
#include <type_traits>
#include <vector>

namespace budgetprune {

bool gumbel_topk_needs_scratch(i32 n);
int launch_gumbel_topk(DType, const GumbelTopk&, const void* logits, const i32* keep, const i64* key, bool key_per_row,
                       i64 rows, u32* scratch, void* gate, i32* kept, void* stats, void* stream);
int launch_gumbel_topk_backward(DType, const GumbelTopk&, const void* grad, const void* logits, const i64* key,
                                bool key_per_row, i64 rows, const void* stats, u32* scratch, void* out, void* stream);

namespace {

Estimator estimator_named(const std::string& name) {
  if (name == "race") return Estimator::race;
  if (name == "fermi") return Estimator::fermi;
  STD_TORCH_CHECK(name == "softmax", "gumbel_topk: estimator must be race, fermi or softmax, got ", name);
  return Estimator::softmax;
}

Noise noise_named(const std::string& name) {
  if (name == "gumbel") return Noise::gumbel;
  if (name == "logistic") return Noise::logistic;
  STD_TORCH_CHECK(name == "none", "gumbel_topk: noise must be gumbel, logistic or none, got ", name);
  return Noise::none;
}

struct Arguments {
  GumbelTopk op;
  int64_t rows;
  bool key_per_row;
};

Arguments check(const Tensor& logits, const Tensor& key, int64_t max_keep, double tau, const std::string& estimator,
                const std::string& noise) {
  STD_TORCH_CHECK(logits.dim() == 2, "gumbel_topk: logits must be [B, N], got ", logits.dim(), " dimensions");
  const int64_t rows = logits.size(0), n = logits.size(1);
  STD_TORCH_CHECK(n < (int64_t(1) << 31), "gumbel_topk: N must be below 2^31, got ", n);
  STD_TORCH_CHECK(0 <= max_keep && max_keep <= n, "gumbel_topk: max_keep must be in [0, ", n, "], got ", max_keep);
  const bool per_row = key.dim() == 2;
  STD_TORCH_CHECK(key.scalar_type() == ScalarType::Long && key.numel() == (per_row ? 2 * rows : 2) &&
                      (per_row ? key.size(1) == 2 : key.dim() == 1),
                  "gumbel_topk: key must be int64 [2] or [B, 2]");
  STD_TORCH_CHECK(tau > 0, "gumbel_topk: tau must be positive, got ", tau);
  return {{i32(n), i32(max_keep), tau, estimator_named(estimator), noise_named(noise)}, rows, per_row};
}

void check_keep(const std::optional<Tensor>& keep, int64_t rows) {
  STD_TORCH_CHECK(!keep || (keep->scalar_type() == ScalarType::Int && keep->numel() == rows),
                  "gumbel_topk: keep must be int32 [B]");
}

ScalarType stats_type(const Tensor& logits) {
  return logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

struct Outputs {
  Tensor gate, kept, stats;
};

Outputs allocate(const Tensor& logits, int64_t max_keep, bool with_stats) {
  const int64_t rows = logits.size(0);
  return {torch::stable::new_empty(logits, {rows, logits.size(1)}),
          torch::stable::new_empty(logits, {rows, max_keep}, ScalarType::Int),
          torch::stable::new_empty(logits, {rows, with_stats ? 2 : 0}, stats_type(logits))};
}

// Below about 10 microseconds of work a second thread costs more than it brings.
int64_t rows_per_task(i32 n) { return std::max<int64_t>(1, 2048 / std::max<i32>(n, 1)); }

void run_row(const GumbelTopk& op, const float* logits, i32 k, const RowNoise& at, const RowScratch& scratch,
             float* gate, i32* kept, float* stats) {
  gumbel_topk_row_f32(op, logits, k, at, scratch, gate, kept, stats);
}
void run_row(const GumbelTopk& op, const double* logits, i32 k, const RowNoise& at, const RowScratch& scratch,
             double* gate, i32* kept, double* stats) {
  gumbel_topk_row_f64(op, logits, k, at, scratch, gate, kept, stats);
}
void run_backward(const GumbelTopk& op, const float* grad, const float* logits, const RowNoise& at, const float* stats,
                  u32* bits, float* out) {
  gumbel_topk_backward_row_f32(op, grad, logits, at, stats, bits, out);
}
void run_backward(const GumbelTopk& op, const double* grad, const double* logits, const RowNoise& at,
                  const double* stats, u32* bits, double* out) {
  gumbel_topk_backward_row_f64(op, grad, logits, at, stats, bits, out);
}

// Half rows pass through a float copy; float and double rows are used where they lie.
template <typename T>
struct Row {
  using Float = typename KeyOf<T>::Float;
  static constexpr bool copies = !std::is_same_v<T, Float>;
  std::vector<Float> buffer;
  explicit Row(i32 n) : buffer(copies ? n : 0) {}
  const Float* load(const T* from, i32 n) {
    if constexpr (copies) {
      for (i32 i = 0; i < n; ++i) buffer[i] = static_cast<Float>(from[i]);
      return buffer.data();
    } else {
      return from;
    }
  }
  Float* target(T* to) {
    if constexpr (copies) return buffer.data();
    else return to;
  }
  void store(T* to, i32 n) const {
    if constexpr (copies)
      for (i32 i = 0; i < n; ++i) to[i] = static_cast<T>(buffer[i]);
  }
};

std::tuple<Tensor, Tensor, Tensor> gumbel_topk_cpu(const Tensor& logits_in, const std::optional<Tensor>& keep_in,
                                                   int64_t max_keep, const Tensor& key_in, double tau,
                                                   std::string estimator, std::string noise, bool with_stats) {
  const auto [op, rows, per_row] = check(logits_in, key_in, max_keep, tau, estimator, noise);
  check_keep(keep_in, rows);
  const Tensor logits = torch::stable::contiguous(logits_in), key = torch::stable::contiguous(key_in);
  const auto keep_tensor = contiguous(keep_in);
  const i32* keep = data_or_null<i32>(keep_tensor);
  for (int64_t r = 0; keep && r < rows; ++r)
    STD_TORCH_CHECK(0 <= keep[r] && keep[r] <= max_keep, "gumbel_topk: keep must be in [0, ", max_keep, "], got ",
                    keep[r]);
  const Outputs outputs = allocate(logits, max_keep, with_stats);
  const i64* keys = data<i64>(key);
  i32* kept = mutable_data<i32>(outputs.kept);
  dispatch(logits, [&, op = op, per_row = per_row](auto zero) {
    using T = decltype(zero);
    using Float = typename KeyOf<T>::Float;
    const T* in = data<T>(logits);
    T* gate = mutable_data<T>(outputs.gate);
    Float* stats = with_stats ? mutable_data<Float>(outputs.stats) : nullptr;
    torch::stable::parallel_for(0, rows, rows_per_task(op.n), [&](int64_t begin, int64_t end) {
      std::vector<u32> words(op.n);
      i32 counts[256];
      Row<T> from(op.n), to(op.n);
      for (int64_t r = begin; r < end; ++r) {
        run_row(op, from.load(in + r * op.n, op.n), keep ? keep[r] : op.kmax, row_noise(keys, per_row, r, op.n),
                RowScratch{words.data(), counts}, to.target(gate + r * op.n), kept + r * op.kmax,
                stats ? stats + 2 * r : nullptr);
        to.store(gate + r * op.n, op.n);
      }
    });
  });
  return {outputs.gate, outputs.kept, outputs.stats};
}

void check_backward(const Tensor& grad, const Tensor& logits, const Tensor& stats) {
  STD_TORCH_CHECK(grad.scalar_type() == logits.scalar_type() && grad.dim() == 2 && grad.size(0) == logits.size(0) &&
                      grad.size(1) == logits.size(1),
                  "gumbel_topk_backward: grad must be like logits");
  STD_TORCH_CHECK(stats.scalar_type() == stats_type(logits) && stats.dim() == 2 && stats.size(0) == logits.size(0) &&
                      stats.size(1) == 2,
                  "gumbel_topk_backward: stats must be [B, 2], as gumbel_topk gave them");
}

Tensor gumbel_topk_backward_cpu(const Tensor& grad_in, const Tensor& logits_in, const Tensor& key_in,
                                const Tensor& stats_in, double tau, std::string estimator, std::string noise) {
  const auto [op, rows, per_row] = check(logits_in, key_in, 0, tau, estimator, noise);
  check_backward(grad_in, logits_in, stats_in);
  const Tensor grad = torch::stable::contiguous(grad_in), logits = torch::stable::contiguous(logits_in);
  const Tensor key = torch::stable::contiguous(key_in), stats = torch::stable::contiguous(stats_in);
  Tensor out = torch::stable::new_empty(logits, {rows, int64_t(op.n)});
  const i64* keys = data<i64>(key);
  dispatch(logits, [&, op = op, per_row = per_row](auto zero) {
    using T = decltype(zero);
    using Float = typename KeyOf<T>::Float;
    const T *g = data<T>(grad), *in = data<T>(logits);
    const Float* numbers = data<Float>(stats);
    T* to = mutable_data<T>(out);
    torch::stable::parallel_for(0, rows, rows_per_task(op.n), [&](int64_t begin, int64_t end) {
      std::vector<u32> words(op.n);
      Row<T> from(op.n), weight(op.n), result(op.n);
      for (int64_t r = begin; r < end; ++r) {
        const int64_t at = r * op.n;
        run_backward(op, weight.load(g + at, op.n), from.load(in + at, op.n), row_noise(keys, per_row, r, op.n),
                     numbers + 2 * r, words.data(), result.target(to + at));
        result.store(to + at, op.n);
      }
    });
  });
  return out;
}

#ifdef BUDGETPRUNE_CUDA
// Rows whose keys do not fit in shared memory keep them in a tensor of torch's own allocator.
std::optional<Tensor> scratch_for(const Tensor& logits, i32 n) {
  if (!gumbel_topk_needs_scratch(n)) return std::nullopt;
  return torch::stable::new_empty(logits, {logits.size(0), int64_t(n)}, ScalarType::Int);
}
u32* words_of(const std::optional<Tensor>& scratch) {
  return scratch.has_value() ? reinterpret_cast<u32*>(mutable_data<i32>(*scratch)) : nullptr;
}

std::tuple<Tensor, Tensor, Tensor> gumbel_topk_cuda(const Tensor& logits_in, const std::optional<Tensor>& keep_in,
                                                    int64_t max_keep, const Tensor& key_in, double tau,
                                                    std::string estimator, std::string noise, bool with_stats) {
  const OnDeviceOf guard(logits_in);
  const auto [op, rows, per_row] = check(logits_in, key_in, max_keep, tau, estimator, noise);
  check_keep(keep_in, rows);
  const Tensor logits = torch::stable::contiguous(logits_in), key = torch::stable::contiguous(key_in);
  const auto keep = contiguous(keep_in);
  const Outputs outputs = allocate(logits, max_keep, with_stats);
  if (rows > 0) {
    const auto scratch = scratch_for(logits, op.n);
    check_launch("gumbel_topk",
                 launch_gumbel_topk(dtype_of(logits), op, logits.const_data_ptr(), data_or_null<i32>(keep),
                                    data<i64>(key), per_row, rows, words_of(scratch), outputs.gate.mutable_data_ptr(),
                                    mutable_data<i32>(outputs.kept),
                                    with_stats ? outputs.stats.mutable_data_ptr() : nullptr,
                                    current_cuda_stream(logits.get_device_index())));
  }
  return {outputs.gate, outputs.kept, outputs.stats};
}

Tensor gumbel_topk_backward_cuda(const Tensor& grad_in, const Tensor& logits_in, const Tensor& key_in,
                                 const Tensor& stats_in, double tau, std::string estimator, std::string noise) {
  const OnDeviceOf guard(logits_in);
  const auto [op, rows, per_row] = check(logits_in, key_in, 0, tau, estimator, noise);
  check_backward(grad_in, logits_in, stats_in);
  const Tensor grad = torch::stable::contiguous(grad_in), logits = torch::stable::contiguous(logits_in);
  const Tensor key = torch::stable::contiguous(key_in), stats = torch::stable::contiguous(stats_in);
  Tensor out = torch::stable::new_empty(logits, {rows, int64_t(op.n)});
  if (rows > 0) {
    const auto scratch = op.estimator == Estimator::softmax ? scratch_for(logits, op.n) : std::nullopt;
    check_launch("gumbel_topk_backward",
                 launch_gumbel_topk_backward(dtype_of(logits), op, grad.const_data_ptr(), logits.const_data_ptr(),
                                             data<i64>(key), per_row, rows, stats.const_data_ptr(), words_of(scratch),
                                             out.mutable_data_ptr(), current_cuda_stream(logits.get_device_index())));
  }
  return out;
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(budgetprune, m) {
  m.def("gumbel_topk(Tensor logits, Tensor? keep, SymInt max_keep, Tensor key, float tau, str estimator, str noise, "
        "bool with_stats) -> (Tensor gate, Tensor kept, Tensor stats)");
  m.def("gumbel_topk_backward(Tensor grad, Tensor logits, Tensor key, Tensor stats, float tau, str estimator, "
        "str noise) -> Tensor");
}
BP_CPU_KERNELS(m) {
  m.impl("gumbel_topk", TORCH_BOX(&gumbel_topk_cpu));
  m.impl("gumbel_topk_backward", TORCH_BOX(&gumbel_topk_backward_cpu));
}
#ifdef BUDGETPRUNE_CUDA
BP_CUDA_KERNELS(m) {
  m.impl("gumbel_topk", TORCH_BOX(&gumbel_topk_cuda));
  m.impl("gumbel_topk_backward", TORCH_BOX(&gumbel_topk_backward_cuda));
}
#endif

}  // namespace budgetprune
