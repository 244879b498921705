// `rms_norm`: a block for each run of `dim` elements, which is read once from memory and once more
// from a cache. 8 bytes move for each element.
#include "../gpu/cuda.cuh"

extern "C" __global__ void __launch_bounds__(1024)
    rms_norm(float* out, const float* x, const float* weight, float eps, unsigned dim) {
  __shared__ float partial[WARP];
  x += static_cast<size_t>(blockIdx.x) * dim;
  out += static_cast<size_t>(blockIdx.x) * dim;
  float sum = 0.0f;
  for (unsigned i = threadIdx.x; i < dim; i += blockDim.x) sum += x[i] * x[i];
  sum = block_sum(sum, partial);
  const float scale = 1.0f / sqrtf(sum / static_cast<float>(dim) + eps);
  for (unsigned i = threadIdx.x; i < dim; i += blockDim.x) out[i] = x[i] * scale * weight[i];
}
