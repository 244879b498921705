// How keys and values are rounded to 8 bits, for the kernels that write them.
#pragma once

#include "../gpu/cuda.cuh"

// What a code of zero is, and the largest code beside it.
constexpr int ZERO_CODE = 128;
constexpr float CODE_MAX = 127.0f;
// Below, all elements of a group count as zeros.
constexpr float ZERO = 1e-30f;

// Rounds a group of at most 64 elements, of which a lane has two, 32 apart; lane 0 writes the scale.
__device__ __forceinline__ void round_group(unsigned char* codes, unsigned* scale, float low,
                                            float high, unsigned len) {
  const unsigned lane = threadIdx.x % WARP;
  const float largest = warp_max(fmaxf(fabsf(low), fabsf(high)));
  const bool finite = __all_sync(ALL_LANES, isfinite(low) && isfinite(high));
  const bool zeros = !finite || largest < ZERO;
  const float inverse = zeros ? 0.0f : CODE_MAX / largest;
  const int low_code = zeros ? 0 : __float2int_rn(low * inverse);
  const int high_code = zeros ? 0 : __float2int_rn(high * inverse);
  if (lane < len) codes[lane] = static_cast<unsigned char>(low_code + ZERO_CODE);
  if (lane + WARP < len) codes[lane + WARP] = static_cast<unsigned char>(high_code + ZERO_CODE);
  // The bits of the NaN that the CPU writes.
  const unsigned bits = zeros ? 0u : __float_as_uint(largest / CODE_MAX);
  if (lane == 0) *scale = finite ? bits : 0x7fc00000u;
}
