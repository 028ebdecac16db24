// ptx.cuh: instructions that CUDA C++ has no name for, sm_80 and up. The only file with assembly.
//
//   mma_16x8x16<T>(c, a, b)      c += a b on tensor cores, T half or bfloat16, sums in float
//                                lane 4 g + t: c rows g (c[0], c[1]) and g + 8, columns 2 t and 2 t + 1;
//                                a rows g (a[0], a[2]) and g + 8 (a[1], a[3]), columns 2 t (+1), in a[2], a[3] 8 more;
//                                b column g, rows 2 t (+1) in b[0] and 8 more in b[1]
//   ldmatrix_x4(r, row)          four 8x8 matrices of 16-bit numbers from shared memory: lane 8 i + j names row j of
//                                matrix i (16 bytes, aligned); r[i]: row g, columns 2 t and 2 t + 1 of matrix i
//   ldmatrix_x4_trans(r, row)    the same, each matrix transposed
//   pack2<T>(low, high)          two floats rounded to T, side by side
//   copy_async_16(to, from, on)  16 bytes from global to shared memory in the background; zeros where `on` is false
//   copy_async_commit(), copy_async_wait<n>()  close a group; wait until at most n groups are under way
#pragma once
#include "portable.h"

#ifdef BUDGETPRUNE_EMULATED
#include "ptx_emulated.h"
#elif defined(__CUDACC__)

namespace budgetprune {

template <typename T>
struct MatrixUnit;

#define BP_MATRIX_UNIT(T, name)                                                                                        \
  template <>                                                                                                          \
  struct MatrixUnit<T> {                                                                                               \
    static __device__ void multiply(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {                             \
      asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." name "." name                                              \
                   ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                                        \
                   : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                    \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                                \
    }                                                                                                                  \
    static __device__ u32 pack(float low, float high) {                                                                \
      u32 word;                                                                                                        \
      asm("cvt.rn." name "x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));                                     \
      return word;                                                                                                     \
    }                                                                                                                  \
  };
BP_MATRIX_UNIT(__half, "f16")
BP_MATRIX_UNIT(__nv_bfloat16, "bf16")
#undef BP_MATRIX_UNIT

template <typename T>
__device__ void mma_16x8x16(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  MatrixUnit<T>::multiply(c, a, b);
}
template <typename T>
__device__ u32 pack2(float low, float high) {
  return MatrixUnit<T>::pack(low, high);
}

__device__ inline u32 shared_address(const void* p) { return u32(__cvta_generic_to_shared(p)); }

__device__ inline void ldmatrix_x4(u32 (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}
__device__ inline void ldmatrix_x4_trans(u32 (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}

__device__ inline void copy_async_16(void* shared, const void* global, bool present) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               ::"r"(shared_address(shared)), "l"(global), "r"(present ? 16 : 0) : "memory");
}
__device__ inline void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <i32 groups>
__device__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
}

}  // namespace budgetprune
#endif
