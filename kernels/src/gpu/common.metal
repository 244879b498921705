// What the Metal kernels share. Put before each of their sources when it is compiled: at run time
// there is no folder to include from.
#include <metal_simdgroup_matrix>
#include <metal_stdlib>
using namespace metal;

constant constexpr uint SIMD = 32;

// The sum of all threads of a threadgroup of whole simdgroups, in every thread. `partial` has one
// for each simdgroup; it may be used again after another barrier.
inline float threadgroup_sum(float value, threadgroup float* partial, uint index, uint threads) {
  value = simd_sum(value);
  if (index % SIMD == 0) partial[index / SIMD] = value;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const uint lane = index % SIMD;
  return simd_sum(lane < threads / SIMD ? partial[lane] : 0.0f);
}

// Four elements of an array of `len` from `first` on, zeros beyond its end. With `wide` the array
// starts at a multiple of 16 bytes and has a multiple of four elements: then it is one load. What is
// computed with them is the same either way, and so are its bits.
inline float4 load_four(device const float* x, uint first, uint len, bool wide) {
  if (wide) {
    return first < len ? *reinterpret_cast<device const float4*>(x + first) : float4(0.0f);
  }
  float4 four = float4(0.0f);
  if (first < len) four.x = x[first];
  if (first + 1 < len) four.y = x[first + 1];
  if (first + 2 < len) four.z = x[first + 2];
  if (first + 3 < len) four.w = x[first + 3];
  return four;
}

// The counterpart of `load_four`: nothing is written beyond the end.
inline void store_four(device float* out, uint first, uint len, bool wide, float4 four) {
  if (wide) {
    if (first < len) *reinterpret_cast<device float4*>(out + first) = four;
    return;
  }
  if (first < len) out[first] = four.x;
  if (first + 1 < len) out[first + 1] = four.y;
  if (first + 2 < len) out[first + 2] = four.z;
  if (first + 3 < len) out[first + 3] = four.w;
}

// `sum` and the squares of four elements, added in one fixed order.
inline float add_squares(float sum, float4 x) {
  return fma(x.w, x.w, fma(x.z, x.z, fma(x.y, x.y, fma(x.x, x.x, sum))));
}

// 1 / (1 + exp(-x)), to a few units in the last place.
inline float sigmoid(float x) { return 1.0f / (1.0f + precise::exp(-x)); }

// x / (1 + exp(-x)), as exact.
inline float silu(float x) { return x / (1.0f + precise::exp(-x)); }
inline float4 silu(float4 x) { return float4(silu(x.x), silu(x.y), silu(x.z), silu(x.w)); }
