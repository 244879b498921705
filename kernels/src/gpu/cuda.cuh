// What the CUDA kernels share: sums over a warp, and the instructions that CUDA C++ has no names
// for. kernels/emulator/include/cuda.h has the latter for tests without a GPU.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

// The block's dynamic shared memory.
template <class T> __device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char memory[];
  return reinterpret_cast<T*>(memory);
}

// d += a * b with a [16, 16] and b [16, 8] of T, d [16, 8]; fragments as in the PTX manual,
// "Matrix fragments for mma.m16n8k16 with floating point type". sm_80 and later.
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4],
                                             const unsigned (&b)[2]) {
  static_assert(sizeof(T) == 2, "of 16 bits");
  if constexpr (std::is_same<T, __half>::value) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

// Four 8x8 matrices of 16-bit elements from shared memory; lane i has the address of row i % 8 of
// matrix i / 8, a multiple of 16 bytes.
__device__ __forceinline__ void ldmatrix_x4(unsigned (&d)[4], const void* row) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(address)
               : "memory");
}

// The same, each matrix transposed.
__device__ __forceinline__ void ldmatrix_x4_trans(unsigned (&d)[4], const void* row) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(address)
               : "memory");
}

// 16 bytes from global to shared memory past the registers, zeros where `inside` is false; there
// after `copy_wait` and a barrier.
__device__ __forceinline__ void copy_async_16(void* to, const void* from, bool inside) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from),
               "r"(inside ? 16 : 0)
               : "memory");
}

// Ends a group of copies.
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until all but the last `PENDING` groups of this thread's copies are there.
template <int PENDING> __device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}
#endif

constexpr unsigned WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

// The sum of all lanes, in every lane.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int bits = 16; bits > 0; bits /= 2) value += __shfl_xor_sync(ALL_LANES, value, bits);
  return value;
}

// The largest of all lanes, in every lane.
__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int bits = 16; bits > 0; bits /= 2)
    value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, bits));
  return value;
}

// The sum of all threads of a block of whole warps, in every thread. `partial` is shared, one for
// each warp; it may be used again after another barrier.
__device__ __forceinline__ float block_sum(float value, float* partial) {
  const unsigned lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
  value = warp_sum(value);
  if (lane == 0) partial[threadIdx.x / WARP] = value;
  __syncthreads();
  return warp_sum(lane < warps ? partial[lane] : 0.0f);
}

// Four elements of an array of `len` from `first` on, zeros beyond its end. With `wide` the array
// starts at a multiple of 16 bytes and has a multiple of four elements: then it is one load. What is
// computed with them is the same either way, and so are its bits.
__device__ __forceinline__ float4 load_four(const float* x, unsigned first, unsigned len,
                                            bool wide) {
  const float4 none = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  if (wide) return first < len ? *reinterpret_cast<const float4*>(x + first) : none;
  float4 four = none;
  if (first < len) four.x = x[first];
  if (first + 1 < len) four.y = x[first + 1];
  if (first + 2 < len) four.z = x[first + 2];
  if (first + 3 < len) four.w = x[first + 3];
  return four;
}

// The counterpart of `load_four`: nothing is written beyond the end.
__device__ __forceinline__ void store_four(float* out, unsigned first, unsigned len, bool wide,
                                           const float4& four) {
  if (wide) {
    if (first < len) *reinterpret_cast<float4*>(out + first) = four;
    return;
  }
  if (first < len) out[first] = four.x;
  if (first + 1 < len) out[first + 1] = four.y;
  if (first + 2 < len) out[first + 2] = four.z;
  if (first + 3 < len) out[first + 3] = four.w;
}

// `f` of each of four pairs.
template <class F>
__device__ __forceinline__ float4 map_four(const float4& a, const float4& b, F f) {
  return make_float4(f(a.x, b.x), f(a.y, b.y), f(a.z, b.z), f(a.w, b.w));
}

// `sum` and the squares of four elements, added in one fixed order.
__device__ __forceinline__ float add_squares(float sum, const float4& x) {
  return fmaf(x.w, x.w, fmaf(x.z, x.z, fmaf(x.y, x.y, fmaf(x.x, x.x, sum))));
}

// 1 / (1 + exp(-x)), to a few units in the last place.
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// x / (1 + exp(-x)), as exact.
__device__ __forceinline__ float silu(float x) { return x / (1.0f + expf(-x)); }
