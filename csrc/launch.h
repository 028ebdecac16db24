// launch.h: how every .cu starts a kernel.
#pragma once

#ifndef BUDGETPRUNE_EMULATED  // tests/simt brings its own
namespace budgetprune {

// kernel<<<grid, block, shared_bytes, stream>>>(arguments...), each argument converted to its parameter's type. More
// than 48 KB of shared memory, a kernel's own arrays counted in, must be asked for; so it is asked well before. Asking is
// no work on the stream, and graphs capture it.
template <typename... P, typename... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, A... arguments) {
  static_assert(sizeof...(P) == sizeof...(A));
  if (shared_bytes > 16 * 1024)
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<P>(arguments)...);
}

}  // namespace budgetprune
#endif
