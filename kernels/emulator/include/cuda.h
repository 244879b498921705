// As much of CUDA C++ as the kernels use, for a C++17 compiler. Grown when a kernel needs more.
#pragma once

#include "emulator.h"

#include <algorithm>
#include <vector>

// Found and taken out again by build.rs.
#define __global__ SCONCE_KERNEL
#define __shared__ SCONCE_SHARED
#define __launch_bounds__(...) SCONCE_BOUNDS(__VA_ARGS__)
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define __restrict__ __restrict
#define __grid_constant__

using std::isfinite;
using std::isnan;

struct Uint3 {
  unsigned x, y, z;
};
inline Uint3 emulated_thread() { return {emulator::thread_index(), 0, 0}; }
inline Uint3 emulated_threads() { return {emulator::block_threads(), 1, 1}; }
inline Uint3 emulated_block() {
  return {emulator::block_index(0), emulator::block_index(1), emulator::block_index(2)};
}
inline Uint3 emulated_blocks() {
  return {emulator::block_count(0), emulator::block_count(1), emulator::block_count(2)};
}
#define threadIdx emulated_thread()
#define blockDim emulated_threads()
#define blockIdx emulated_block()
#define gridDim emulated_blocks()
#define warpSize 32

// Vectors.
#define EMULATED_VECTOR(T, NAME, ALIGN)                                                        \
  struct alignas(ALIGN / 2) NAME##2 { T x, y; };                                               \
  struct alignas(ALIGN) NAME##4 { T x, y, z, w; };                                             \
  inline NAME##2 make_##NAME##2(T x, T y) { return {x, y}; }                                   \
  inline NAME##4 make_##NAME##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATED_VECTOR(float, float, 16)
EMULATED_VECTOR(int, int, 16)
EMULATED_VECTOR(unsigned, uint, 16)
EMULATED_VECTOR(signed char, char, 4)
EMULATED_VECTOR(unsigned char, uchar, 4)
#undef EMULATED_VECTOR

// Numbers of 16 bits.
using __half = emulator::F16;
using half = emulator::F16;
using __nv_bfloat16 = emulator::Bf16;
struct alignas(4) __half2 { __half x, y; };
struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };
using half2 = __half2;
inline float __half2float(__half value) { return value; }
inline __half __float2half(float value) { return value; }
inline __half __float2half_rn(float value) { return value; }
inline float __bfloat162float(__nv_bfloat16 value) { return value; }
inline __nv_bfloat16 __float2bfloat16(float value) { return value; }
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return value; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline float2 __half22float2(__half2 value) { return {value.x, value.y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 value) { return {value.x, value.y}; }
inline __nv_bfloat162 __float2bfloat162_rn(float value) { return {value, value}; }
inline __nv_bfloat162 __hsub2(__nv_bfloat162 a, __nv_bfloat162 b) {
  return {float(a.x) - float(b.x), float(a.y) - float(b.y)};
}
inline __nv_bfloat162 __hmul2(__nv_bfloat162 a, __nv_bfloat162 b) {
  return {float(a.x) * float(b.x), float(a.y) * float(b.y)};
}
inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
  return {std::fma(float(a.x), float(b.x), float(c.x)), std::fma(float(a.y), float(b.y), float(c.y))};
}
inline __half __ushort_as_half(unsigned short bits) { return emulator::bit_cast<__half>(bits); }

// Bits.
inline float __uint_as_float(unsigned bits) { return emulator::bit_cast<float>(bits); }
inline unsigned __float_as_uint(float value) { return emulator::bit_cast<unsigned>(value); }
inline float __int_as_float(int bits) { return emulator::bit_cast<float>(bits); }
inline int __float_as_int(float value) { return emulator::bit_cast<int>(value); }
// Four bytes of `b` above those of `a`, each chosen by three bits of a nibble of `selector`.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const std::uint64_t both = std::uint64_t(b) << 32 | a;
  unsigned bytes = 0;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned chosen = selector >> 4 * i & 0xf;
    if (chosen > 7) sconce_fail("__byte_perm takes three bits for a byte");
    bytes |= unsigned(both >> 8 * chosen & 0xff) << 8 * i;
  }
  return bytes;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits)); }

// Arithmetic. The fast forms are as exact as the slow ones here.
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fmul_rn(float x, float y) { volatile float product = x * y; return product; }
inline float __fadd_rn(float x, float y) { volatile float sum = x + y; return sum; }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; ++i) c += int(std::int8_t(a >> 8 * i)) * int(std::int8_t(b >> 8 * i));
  return c;
}
template <class T> T min(T a, T b) { return b < a ? b : a; }
template <class T> T max(T a, T b) { return a < b ? b : a; }
inline unsigned min(unsigned a, int b) { return min(a, static_cast<unsigned>(b)); }
inline unsigned min(int a, unsigned b) { return min(static_cast<unsigned>(a), b); }
// As the device's functions: the number, if one of them is none.
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }

// Memory.
template <class T> T __ldg(const T* address) { return *address; }
template <class T> T __ldcs(const T* address) { return *address; }
template <class T> T __ldcg(const T* address) { return *address; }
template <class T> void __stcs(T* address, T value) { *address = value; }
template <class T> void __stcg(T* address, T value) { *address = value; }
inline void __threadfence() {}
inline void __threadfence_block() {}
// Blocks run one after another, threads in turns.
template <class T> T atomicAdd(T* address, T value) {
  const T before = *address;
  *address = before + value;
  return before;
}
template <class T> T atomicMax(T* address, T value) {
  const T before = *address;
  *address = max(before, value);
  return before;
}
template <class T> T atomicMin(T* address, T value) {
  const T before = *address;
  *address = min(before, value);
  return before;
}
template <class T> T atomicOr(T* address, T value) {
  return std::exchange(*address, T(*address | value));
}
template <class T> T atomicExch(T* address, T value) { return std::exchange(*address, value); }
template <class T> T atomicCAS(T* address, T expected, T value) {
  const T before = *address;
  if (before == expected) *address = value;
  return before;
}
// Dynamic shared memory: `float* x = dynamic_shared<float>();` (kernels/src/gpu/cuda.cuh has the
// device's form).
template <class T> T* dynamic_shared() { return static_cast<T*>(sconce_dynamic()); }

// Threads that wait for one another.
inline void __syncthreads() { sconce_barrier(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulator::exchange("__syncwarp", mask, 0); }

namespace emulator {
// The value of another lane; that of a lane which takes no part is undefined on a GPU.
template <class T>
T lane_value(const char* operation, unsigned mask, T value, unsigned source, bool inside) {
  const Values<T> values = exchange(operation, mask, value);
  if (!inside) return value;
  if (!values.has(source)) sconce_fail("a shuffle reads from a lane that takes no part in it");
  return values[source];
}
}  // namespace emulator

template <class T> T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const unsigned first = emulator::lane() & ~unsigned(width - 1);
  return emulator::lane_value("__shfl_sync", mask, value, first + (source & (width - 1)), true);
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const unsigned source = emulator::lane() ^ unsigned(bits);
  const bool inside = source / width <= emulator::lane() / width;
  return emulator::lane_value("__shfl_xor_sync", mask, value, source, inside);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const unsigned source = emulator::lane() + by;
  const bool inside = source / width == emulator::lane() / width;
  return emulator::lane_value("__shfl_down_sync", mask, value, source, inside);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const unsigned source = emulator::lane() - by;
  const bool inside = emulator::lane() % width >= by;
  return emulator::lane_value("__shfl_up_sync", mask, value, source, inside);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const emulator::Values<int> values = emulator::exchange("__ballot_sync", mask, predicate);
  unsigned bits = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if (values.has(lane) && values[lane]) bits |= 1u << lane;
  return bits;
}
template <class Fold> unsigned emulated_reduce(const char* operation, unsigned mask, unsigned value,
                                               Fold fold) {
  const emulator::Values<unsigned> values = emulator::exchange(operation, mask, value);
  unsigned folded = value;
  for (unsigned lane = 0; lane < 32; ++lane)
    if (values.has(lane)) folded = fold(folded, values[lane]);
  return folded;
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value) {
  return emulated_reduce("__reduce_max_sync", mask, value,
                         [](unsigned a, unsigned b) { return max(a, b); });
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value) {
  return emulated_reduce("__reduce_min_sync", mask, value,
                         [](unsigned a, unsigned b) { return min(a, b); });
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }

// Tensor cores and copies past the registers: what kernels/src/gpu/cuda.cuh has as instructions.

// One of its 16-bit halves as a number.
template <class T> float emulated_half_of(unsigned word, unsigned half) {
  return float(emulator::bit_cast<T>(static_cast<unsigned short>(word >> 16 * half)));
}
// mma.sync.aligned.m16n8k16.row.col.f32.T.T.f32: fragments as in the PTX manual.
template <class T>
void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  struct Operands { unsigned a[4], b[2]; } mine;
  std::memcpy(mine.a, a, sizeof(a));
  std::memcpy(mine.b, b, sizeof(b));
  const auto all = emulator::exchange("mma.m16n8k16", 0xffffffffu, mine);
  const unsigned lane = emulator::lane();
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    float sum = 0.0f;
    for (unsigned k = 0; k < 16; ++k) {
      const Operands of_row = all[row % 8 * 4 + k % 8 / 2];
      const Operands of_column = all[column * 4 + k % 8 / 2];
      sum += emulated_half_of<T>(of_row.a[row / 8 + k / 8 * 2], k % 2) *
             emulated_half_of<T>(of_column.b[k / 8], k % 2);
    }
    d[i] += sum;
  }
}
// ldmatrix.sync.aligned.m8n8.x4[.trans].shared.b16
template <bool TRANSPOSED> void emulated_ldmatrix(unsigned (&d)[4], const void* row) {
  const auto rows = emulator::exchange("ldmatrix", 0xffffffffu, row);
  if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0)
    sconce_fail("ldmatrix reads rows at multiples of 16 bytes");
  const unsigned lane = emulator::lane();
  for (unsigned matrix = 0; matrix < 4; ++matrix) {
    unsigned word = 0;
    for (unsigned half = 0; half < 2; ++half) {
      const unsigned at = TRANSPOSED ? lane % 4 * 2 + half : lane / 4;
      const unsigned column = TRANSPOSED ? lane / 4 : lane % 4 * 2 + half;
      unsigned short element;
      std::memcpy(&element, static_cast<const char*>(rows[matrix * 8 + at]) + 2 * column, 2);
      word |= unsigned(element) << 16 * half;
    }
    d[matrix] = word;
  }
}
inline void ldmatrix_x4(unsigned (&d)[4], const void* row) { emulated_ldmatrix<false>(d, row); }
inline void ldmatrix_x4_trans(unsigned (&d)[4], const void* row) {
  emulated_ldmatrix<true>(d, row);
}

#include "proxies.h"
#include "wgmma.h"
