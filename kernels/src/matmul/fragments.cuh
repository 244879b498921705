// Octets on tensor cores: activations in parts, and the product of 16 rows of a weight with eight
// columns of them over a window.
#pragma once

#include "weights.cuh"

// The next parts of eight numbers, of which they are less afterwards.
__device__ __forceinline__ uint4 next_part(float (&values)[8]) {
  unsigned pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    pairs[i] = round_pair(values[2 * i], values[2 * i + 1]);
    values[2 * i] -= low_of(pairs[i]);
    values[2 * i + 1] -= high_of(pairs[i]);
  }
  return make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

// The sum of an octet of parts.
__device__ __forceinline__ float sum_of_part(const uint4& part) {
  return (low_of(part.x) + high_of(part.x)) + (low_of(part.y) + high_of(part.y)) +
         ((low_of(part.z) + high_of(part.z)) + (low_of(part.w) + high_of(part.w)));
}

// Adds 16 rows of a weight times eight columns of activations to `sums`, over the 32 inputs of a
// window: lane `4 g + q` has octet `q` of rows `g` and `g + 8`, and of column `g`.
__device__ __forceinline__ void multiply_window(float (&sums)[4], const unsigned (&first)[4],
                                                const unsigned (&second)[4], const uint4& x) {
  const unsigned low[4] = {first[0], second[0], first[1], second[1]};
  const unsigned high[4] = {first[2], second[2], first[3], second[3]};
  const unsigned x_low[2] = {x.x, x.y}, x_high[2] = {x.z, x.w};
  mma_m16n8k16<__nv_bfloat16>(sums, low, x_low);
  mma_m16n8k16<__nv_bfloat16>(sums, high, x_high);
}
