// `rms_norm`: a warp for each run of up to 512 elements, as of a head; a block for a longer one. A
// run is read once, in loads of 16 bytes, and waits in registers for its sum with its weights beside
// it: one way to memory and back, which is what a decode step of few rows takes. What does not fit
// into the registers of a block, beyond 8192 elements, is read once more from a cache. Bound by
// memory: 8 bytes move for each element, the weights stay in a cache.
#include "../gpu/cuda.cuh"

// Fours of a run that a thread keeps; `HELD` of rms_norm/gpu.rs.
constexpr unsigned RMS_NORM_HELD = 4;

__device__ __forceinline__ float4 rms_norm_scaled(const float4& x, float scale,
                                                  const float4& weight) {
  return map_four(x, weight, [=](float x, float weight) { return x * scale * weight; });
}

// The run at `x` by as many threads as `team`, of which this is `index`: a warp or a block. Who adds
// up what depends on `dim` alone.
template <bool BLOCK>
__device__ __forceinline__ void rms_norm_run(float* out, const float* x, const float* weight,
                                             float eps, unsigned dim, bool wide, float* partial) {
  const unsigned index = BLOCK ? threadIdx.x : threadIdx.x % WARP;
  const unsigned team = BLOCK ? blockDim.x : WARP;
  float4 held[RMS_NORM_HELD], weights[RMS_NORM_HELD];
  float sum = 0.0f;
#pragma unroll
  for (unsigned j = 0; j < RMS_NORM_HELD; ++j) {
    held[j] = load_four(x, (index + j * team) * 4, dim, wide);
    weights[j] = load_four(weight, (index + j * team) * 4, dim, wide);
  }
#pragma unroll
  for (unsigned j = 0; j < RMS_NORM_HELD; ++j) sum = add_squares(sum, held[j]);
  const unsigned rest = (index + RMS_NORM_HELD * team) * 4;
  for (unsigned i = rest; i < dim; i += 4 * team) sum = add_squares(sum, load_four(x, i, dim, wide));
  sum = BLOCK ? block_sum(sum, partial) : warp_sum(sum);
  const float scale = 1.0f / sqrtf(sum / static_cast<float>(dim) + eps);
#pragma unroll
  for (unsigned j = 0; j < RMS_NORM_HELD; ++j) {
    const float4 normalized = rms_norm_scaled(held[j], scale, weights[j]);
    store_four(out, (index + j * team) * 4, dim, wide, normalized);
  }
  for (unsigned i = rest; i < dim; i += 4 * team) {
    const float4 four = load_four(x, i, dim, wide), weights = load_four(weight, i, dim, wide);
    store_four(out, i, dim, wide, rms_norm_scaled(four, scale, weights));
  }
}

// A run for each block.
extern "C" __global__ void __launch_bounds__(512)
    rms_norm(float* __restrict__ out, const float* __restrict__ x,
             const float* __restrict__ weight, float eps, unsigned dim, unsigned runs,
             unsigned wide) {
  __shared__ float partial[WARP];
  const size_t start = static_cast<size_t>(blockIdx.x) * dim;
  rms_norm_run<true>(out + start, x + start, weight, eps, dim, wide, partial);
}

// A run for each warp.
extern "C" __global__ void __launch_bounds__(128)
    rms_norm_warps(float* __restrict__ out, const float* __restrict__ x,
                   const float* __restrict__ weight, float eps, unsigned dim, unsigned runs,
                   unsigned wide) {
  const unsigned run = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
  if (run >= runs) return;
  const size_t start = static_cast<size_t>(run) * dim;
  rms_norm_run<false>(out + start, x + start, weight, eps, dim, wide, nullptr);
}
