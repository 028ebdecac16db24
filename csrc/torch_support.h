// torch_support.h: the few things every op's .cpp asks of torch, LibTorch Stable ABI only.
//
// Python checks arguments first and raises ValueError or TypeError (budgetprune/ops). What is checked here guards
// memory when torch.ops is called directly, and arrives as RuntimeError; that all tensors are on one device is for
// the caller of torch.ops to see to.
#pragma once
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <optional>
#include <tuple>

#ifdef BUDGETPRUNE_CUDA
#include <dlfcn.h>
#endif

#include "portable.h"

namespace budgetprune {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::Half: return DType::f16;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Double: return DType::f64;
    default: STD_TORCH_CHECK(false, "expected float32, float16, bfloat16 or float64");
  }
}

// Calls f with a value of the element type of `t`: dispatch(t, [&](auto zero) { using T = decltype(zero); ... }).
template <typename F>
void dispatch(const Tensor& t, F&& f) {
  switch (dtype_of(t)) {
    case DType::f32: return f(float{});
    case DType::f16: return f(Half{});
    case DType::bf16: return f(BFloat16{});
    case DType::f64: return f(double{});
  }
}

template <typename T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <typename T>
T* mutable_data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// A null pointer where the optional tensor is absent.
template <typename T>
const T* data_or_null(const std::optional<Tensor>& t) {
  return t.has_value() ? data<T>(*t) : nullptr;
}

inline std::optional<Tensor> contiguous(const std::optional<Tensor>& t) {
  return t.has_value() ? std::optional<Tensor>(torch::stable::contiguous(*t)) : std::nullopt;
}

// BP_CPU_KERNELS(m) { m.impl(...); } and BP_CUDA_KERNELS(m) { m.impl(...); } register an op's two implementations.
// Emulated (tests/simt) the CUDA ones take CPU tensors.
#ifdef BUDGETPRUNE_EMULATED
#define BP_CPU_KERNELS(m) template <typename Library> [[maybe_unused]] void cpu_kernels_are_elsewhere(Library& m)
#define BP_CUDA_KERNELS(m) STABLE_TORCH_LIBRARY_IMPL(budgetprune, CPU, m)
#else
#define BP_CPU_KERNELS(m) STABLE_TORCH_LIBRARY_IMPL(budgetprune, CPU, m)
#define BP_CUDA_KERNELS(m) STABLE_TORCH_LIBRARY_IMPL(budgetprune, CUDA, m)
#endif

#ifdef BUDGETPRUNE_EMULATED
struct OnDeviceOf {
  explicit OnDeviceOf(const Tensor&) {}
};
inline void* current_cuda_stream(int) { return nullptr; }
#elif defined(BUDGETPRUNE_CUDA)
// Makes the tensor's device the current one for a while.
struct OnDeviceOf {
  torch::stable::accelerator::DeviceGuard guard;
  explicit OnDeviceOf(const Tensor& t) : guard(t.get_device_index()) {}
};

// torch's current stream, found at run time: libtorch_cuda is never linked, so the same binary
// imports on a CPU-only torch.
inline void* current_cuda_stream(int device) {
  using Getter = int32_t (*)(int32_t, void**);
  static const Getter getter = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? reinterpret_cast<Getter>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  void* stream = nullptr;
  STD_TORCH_CHECK(getter && getter(device, &stream) == 0, "budgetprune: torch gave no CUDA stream");
  return stream;
}
#endif

#ifdef BUDGETPRUNE_CUDA
inline void check_launch(const char* op, int error) {
  STD_TORCH_CHECK(error == 0, op, ": kernel launch failed with CUDA error ", error,
                  error == 209 ? " (no code for this GPU in the binary: rebuild with TORCH_CUDA_ARCH_LIST, or set "
                                 "BUDGETPRUNE_REFERENCE=1)" : "");
}
#endif

}  // namespace budgetprune
