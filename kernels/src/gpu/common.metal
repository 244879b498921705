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
