// module.cpp: what this binary was built with. pybind11 carries facts, never tensors;
// tensors go through torch.ops.budgetprune, which loading this module registers.
#include <pybind11/pybind11.h>

#ifndef BUDGETPRUNE_CUDA_ARCHS
#define BUDGETPRUNE_CUDA_ARCHS ""
#endif
#ifndef BUDGETPRUNE_NVCC
#define BUDGETPRUNE_NVCC ""
#endif

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of budgetprune.";
  m.def("build_facts", [] {
    pybind11::dict facts;
    facts["stable_abi_target"] = "2.10";
    facts["compiler"] = __VERSION__;
    facts["cuda_archs"] = BUDGETPRUNE_CUDA_ARCHS;
    facts["nvcc"] = BUDGETPRUNE_NVCC;
    return facts;
  }, "Compiler, CUDA architectures (empty: built without CUDA) and the oldest torch this binary serves.");
}
