// `rms_norm_gated`: a warp for each run of up to 512 elements, as of a head; a block for a longer
// one. Shaped as `rms_norm`, with the gates beside the weights: all is read before the threads wait
// for their sum. Bound by memory: 12 bytes move for each element, the weights stay in a cache.
#include "../gpu/cuda.cuh"

// Fours of a run that a thread keeps; `HELD` of rms_norm/gpu.rs.
constexpr unsigned RMS_NORM_GATED_HELD = 4;

struct RmsNormGated {
  float* out;
  const float *x, *gate, *weight;
  float eps;
  unsigned dim;
  bool wide;
};

// Four elements from `first` on of what was read.
__device__ __forceinline__ void rms_norm_gated_store(const RmsNormGated& run, unsigned first,
                                                     float scale, const float4& x,
                                                     const float4& weight, const float4& gate) {
  const float4 normalized =
      map_four(x, weight, [=](float x, float weight) { return x * scale * weight; });
  const float4 gated = map_four(normalized, gate, [](float x, float gate) { return x * silu(gate); });
  store_four(run.out, first, run.dim, run.wide, gated);
}

// A run by a warp or a block. Who adds up what depends on `dim` alone.
template <bool BLOCK>
__device__ __forceinline__ void rms_norm_gated_run(const RmsNormGated& run, float* partial) {
  constexpr unsigned HELD = RMS_NORM_GATED_HELD;
  const unsigned index = BLOCK ? threadIdx.x : threadIdx.x % WARP;
  const unsigned team = BLOCK ? blockDim.x : WARP, dim = run.dim;
  float4 held[HELD], weights[HELD], gates[HELD];
  float sum = 0.0f;
#pragma unroll
  for (unsigned j = 0; j < HELD; ++j) {
    const unsigned first = (index + j * team) * 4;
    held[j] = load_four(run.x, first, dim, run.wide);
    weights[j] = load_four(run.weight, first, dim, run.wide);
    gates[j] = load_four(run.gate, first, dim, run.wide);
  }
#pragma unroll
  for (unsigned j = 0; j < HELD; ++j) sum = add_squares(sum, held[j]);
  const unsigned rest = (index + HELD * team) * 4;
  for (unsigned i = rest; i < dim; i += 4 * team)
    sum = add_squares(sum, load_four(run.x, i, dim, run.wide));
  sum = BLOCK ? block_sum(sum, partial) : warp_sum(sum);
  const float scale = 1.0f / sqrtf(sum / static_cast<float>(dim) + run.eps);
#pragma unroll
  for (unsigned j = 0; j < HELD; ++j) {
    const unsigned first = (index + j * team) * 4;
    rms_norm_gated_store(run, first, scale, held[j], weights[j], gates[j]);
  }
  for (unsigned i = rest; i < dim; i += 4 * team) {
    const float4 x = load_four(run.x, i, dim, run.wide);
    const float4 weight = load_four(run.weight, i, dim, run.wide);
    rms_norm_gated_store(run, i, scale, x, weight, load_four(run.gate, i, dim, run.wide));
  }
}

// A run for each block.
extern "C" __global__ void __launch_bounds__(512)
    rms_norm_gated(float* __restrict__ out, const float* __restrict__ x,
                   const float* __restrict__ gate, const float* __restrict__ weight, float eps,
                   unsigned dim, unsigned runs, unsigned wide) {
  __shared__ float partial[WARP];
  const size_t start = static_cast<size_t>(blockIdx.x) * dim;
  const RmsNormGated run{out + start, x + start, gate + start, weight, eps, dim, wide != 0};
  rms_norm_gated_run<true>(run, partial);
}

// A run for each warp.
extern "C" __global__ void __launch_bounds__(128)
    rms_norm_gated_warps(float* __restrict__ out, const float* __restrict__ x,
                         const float* __restrict__ gate, const float* __restrict__ weight,
                         float eps, unsigned dim, unsigned runs, unsigned wide) {
  const unsigned index = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
  if (index >= runs) return;
  const size_t start = static_cast<size_t>(index) * dim;
  const RmsNormGated run{out + start, x + start, gate + start, weight, eps, dim, wide != 0};
  rms_norm_gated_run<false>(run, nullptr);
}
