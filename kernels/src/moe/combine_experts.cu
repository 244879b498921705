// `combine_experts`: a thread for each element of a row, or for four. It reads the results of the
// row's pairs, `4 * choices` bytes for each element, and reads and writes 8 of the output; memory's
// speed is the floor. All threads of a block read the same pairs and weights, from a cache.
#include "../gpu/cuda.cuh"

__device__ __forceinline__ void add_weighted(float& sum, float weight, float y) {
  sum += weight * y;
}
__device__ __forceinline__ void add_weighted(float4& sum, float weight, float4 y) {
  sum = make_float4(sum.x + weight * y.x, sum.y + weight * y.y, sum.z + weight * y.z,
                    sum.w + weight * y.w);
}

template <class T>
__device__ __forceinline__ void combine(T* out, const T* y, const unsigned* pairs,
                                        const float* weights, unsigned choices, unsigned dim) {
  const unsigned column = blockIdx.y * blockDim.x + threadIdx.x;
  if (column >= dim) return;
  const size_t row = blockIdx.x;
  pairs += row * choices;
  weights += row * choices;
  T sum = {};
  // Several pairs are on their way at a time.
#pragma unroll 8
  for (unsigned choice = 0; choice < choices; ++choice)
    add_weighted(sum, weights[choice], y[static_cast<size_t>(pairs[choice]) * dim + column]);
  add_weighted(out[row * dim + column], 1.0f, sum);
}

extern "C" __global__ void __launch_bounds__(128)
    combine_experts(float* out, const float* y, const unsigned* pairs, const float* weights,
                    unsigned choices, unsigned dim) {
  combine(out, y, pairs, weights, choices, dim);
}

// `dim` counts vectors.
extern "C" __global__ void __launch_bounds__(128)
    combine_experts_vectors(float4* out, const float4* y, const unsigned* pairs,
                            const float* weights, unsigned choices, unsigned dim) {
  combine(out, y, pairs, weights, choices, dim);
}
