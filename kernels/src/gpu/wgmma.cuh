// Tensor cores of 9.0a, which multiply while their threads go on: products of a warpgroup, 128
// threads, with one operand in registers and the other in shared memory. The instructions are those
// of the PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions"; the
// emulator's are in kernels/emulator/include/wgmma.h.
#pragma once

#include "cuda.cuh"

// Machine code for other GPUs has these kernels without what they do: none is started there.
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define SCONCE_WGMMA
#endif

// How rows of 32, 64 or 128 bytes of a matrix lie in shared memory: the 16 bytes of a row that are
// number `i` are at number `i ^ row % 8` (with fewer than 8 in a row, at fewer of its bits).
enum class Swizzle : unsigned { NONE, BYTES_128, BYTES_64, BYTES_32 };

// Of a matrix in shared memory whose rows are along the dimension that is summed over. `stride` is
// the bytes from eight rows to the next eight; `leading`, without swizzling, those from eight columns
// to the next eight. With it a matrix begins at a multiple of eight rows, or as many bytes behind it
// as columns are left out.
__device__ __forceinline__ unsigned long long matrix_descriptor(unsigned address, unsigned leading,
                                                                unsigned stride, Swizzle swizzle) {
  const auto field = [](unsigned bytes) -> unsigned long long { return (bytes & 0x3ffff) >> 4; };
  return field(address) | field(leading) << 16 | field(stride) << 32 |
         static_cast<unsigned long long>(swizzle) << 62;
}

#ifdef __CUDACC__
// Where a pointer is in shared memory.
__device__ __forceinline__ unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

#ifdef SCONCE_WGMMA
// Makes what the thread wrote to shared memory, and copied there and waited for, visible to the
// tensor cores, after a barrier.
__device__ __forceinline__ void proxy_fence() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// The compiler may move nothing that touches the registers over this.
__device__ __forceinline__ void hold(float& value) { asm volatile("" : "+f"(value)::"memory"); }
__device__ __forceinline__ void hold(unsigned& value) { asm volatile("" : "+r"(value)::"memory"); }
template <class T, unsigned LEN> __device__ __forceinline__ void hold(T (&values)[LEN]) {
#pragma unroll
  for (unsigned i = 0; i < LEN; ++i) hold(values[i]);
}

// Orders what the thread did with these registers before products that use them.
template <class... Registers> __device__ __forceinline__ void wgmma_fence(Registers&... registers) {
  (hold(registers), ...);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
// Ends a group of products.
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until all but the last `PENDING` groups are done: then these registers may be used.
template <int PENDING, class... Registers>
__device__ __forceinline__ void wgmma_wait(Registers&... registers) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
  (hold(registers), ...);
}

// Eight accumulators from `I` on, as operands and in the text of an instruction.
#define WGMMA_D(I)                                                                              \
  "+f"(d[I]), "+f"(d[I + 1]), "+f"(d[I + 2]), "+f"(d[I + 3]), "+f"(d[I + 4]), "+f"(d[I + 5]),   \
      "+f"(d[I + 6]), "+f"(d[I + 7])
#define WGMMA_16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define WGMMA_24 WGMMA_16 ",%16,%17,%18,%19,%20,%21,%22,%23"
#define WGMMA_32 WGMMA_24 ",%24,%25,%26,%27,%28,%29,%30,%31"
#define WGMMA_64                                                                                \
  WGMMA_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"                   \
           ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define WGMMA(N, D, FIRST, DESCRIPTOR, ...)                                                     \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" D "}, {" FIRST "}, " \
               DESCRIPTOR ", 1, 1, 1, 0;"                                                       \
               : __VA_ARGS__                                                                    \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)                             \
               : "memory")

// d += a * b^T with a [64, 16] in registers and b [N, 16] as a descriptor says, both of bf16; d is
// [64, N]. Fragments as in the PTX manual, "Register Fragments for wgmma.mma_async.m64nNk16". Runs on
// its own: `a`, `d` and what `b` names are its own until it was waited for.
template <unsigned N>
__device__ __forceinline__ void wgmma_m64k16(float (&d)[N / 2], const unsigned (&a)[4],
                                             unsigned long long b) {
  static_assert(N == 32 || N == 48 || N == 64 || N == 128, "the shapes that kernels use");
  if constexpr (N == 32)
    WGMMA(32, WGMMA_16, "%16,%17,%18,%19", "%20", WGMMA_D(0), WGMMA_D(8));
  else if constexpr (N == 48)
    WGMMA(48, WGMMA_24, "%24,%25,%26,%27", "%28", WGMMA_D(0), WGMMA_D(8), WGMMA_D(16));
  else if constexpr (N == 64)
    WGMMA(64, WGMMA_32, "%32,%33,%34,%35", "%36", WGMMA_D(0), WGMMA_D(8), WGMMA_D(16),
          WGMMA_D(24));
  else
    WGMMA(128, WGMMA_64, "%64,%65,%66,%67", "%68", WGMMA_D(0), WGMMA_D(8), WGMMA_D(16), WGMMA_D(24),
          WGMMA_D(32), WGMMA_D(40), WGMMA_D(48), WGMMA_D(56));
}
#endif
#endif
