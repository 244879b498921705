// `rms_norm_gated`: a simdgroup for each run of up to 512 elements, as of a head; a threadgroup for
// a longer one. Shaped as `rms_norm`, with the gates beside the weights: all is read before the
// threads wait for their sum. Bound by memory: 12 bytes move for each element, the weights stay in a
// cache.

// Fours of a run that a thread keeps; `HELD` of rms_norm/gpu.rs.
constant constexpr uint RMS_NORM_GATED_HELD = 4;

struct RmsNormGated {
  device float* out;
  device const float* x;
  device const float* gate;
  device const float* weight;
  float eps;
  // Elements of the run, threads that work on it, and which of them this is.
  uint dim, team, index;
  bool wide;
};

// What a thread reads before it waits for the others.
struct RmsNormGatedHeld {
  float4 x[RMS_NORM_GATED_HELD], weight[RMS_NORM_GATED_HELD], gate[RMS_NORM_GATED_HELD];
};

// Loads the fours of a thread and adds up the squares of its part. Who adds up what depends on `dim`
// alone.
inline float rms_norm_gated_squares(RmsNormGated run, thread RmsNormGatedHeld& held) {
#pragma unroll
  for (uint j = 0; j < RMS_NORM_GATED_HELD; ++j) {
    const uint first = (run.index + j * run.team) * 4;
    held.x[j] = load_four(run.x, first, run.dim, run.wide);
    held.weight[j] = load_four(run.weight, first, run.dim, run.wide);
    held.gate[j] = load_four(run.gate, first, run.dim, run.wide);
  }
  float sum = 0.0f;
#pragma unroll
  for (uint j = 0; j < RMS_NORM_GATED_HELD; ++j) sum = add_squares(sum, held.x[j]);
  const uint rest = (run.index + RMS_NORM_GATED_HELD * run.team) * 4;
  for (uint i = rest; i < run.dim; i += 4 * run.team) {
    sum = add_squares(sum, load_four(run.x, i, run.dim, run.wide));
  }
  return sum;
}

// Writes what a thread holds, and the rest.
inline void rms_norm_gated_write(RmsNormGated run, float sum,
                                 thread const RmsNormGatedHeld& held) {
  const float4 scale = float4(1.0f / precise::sqrt(sum / float(run.dim) + run.eps));
#pragma unroll
  for (uint j = 0; j < RMS_NORM_GATED_HELD; ++j) {
    const float4 gated = held.x[j] * scale * held.weight[j] * silu(held.gate[j]);
    store_four(run.out, (run.index + j * run.team) * 4, run.dim, run.wide, gated);
  }
  const uint rest = (run.index + RMS_NORM_GATED_HELD * run.team) * 4;
  for (uint i = rest; i < run.dim; i += 4 * run.team) {
    const float4 x = load_four(run.x, i, run.dim, run.wide);
    const float4 weight = load_four(run.weight, i, run.dim, run.wide);
    const float4 gate = load_four(run.gate, i, run.dim, run.wide);
    store_four(run.out, i, run.dim, run.wide, x * scale * weight * silu(gate));
  }
}

// A run for each threadgroup.
kernel void rms_norm_gated(device float* out [[buffer(0)]],
                           device const float* x [[buffer(1)]],
                           device const float* gate [[buffer(2)]],
                           device const float* weight [[buffer(3)]],
                           constant float& eps [[buffer(4)]],
                           constant uint& dim [[buffer(5)]],
                           constant uint& runs [[buffer(6)]],
                           constant uint& wide [[buffer(7)]],
                           uint3 group [[threadgroup_position_in_grid]],
                           uint index [[thread_index_in_threadgroup]],
                           uint threads [[threads_per_threadgroup]]) {
  threadgroup float partial[SIMD];
  const ulong start = ulong(group.x) * dim;
  const RmsNormGated run = {out + start, x + start, gate + start, weight,   eps,
                            dim,         threads,   index,        wide != 0};
  RmsNormGatedHeld held;
  const float squares = rms_norm_gated_squares(run, held);
  rms_norm_gated_write(run, threadgroup_sum(squares, partial, index, threads), held);
}

// A run for each simdgroup.
kernel void rms_norm_gated_warps(device float* out [[buffer(0)]],
                                 device const float* x [[buffer(1)]],
                                 device const float* gate [[buffer(2)]],
                                 device const float* weight [[buffer(3)]],
                                 constant float& eps [[buffer(4)]],
                                 constant uint& dim [[buffer(5)]],
                                 constant uint& runs [[buffer(6)]],
                                 constant uint& wide [[buffer(7)]],
                                 uint3 group [[threadgroup_position_in_grid]],
                                 uint index [[thread_index_in_threadgroup]],
                                 uint threads [[threads_per_threadgroup]]) {
  const uint which = group.x * (threads / SIMD) + index / SIMD;
  if (which >= runs) return;
  const ulong start = ulong(which) * dim;
  const RmsNormGated run = {out + start, x + start, gate + start, weight,   eps,
                            dim,         SIMD,      index % SIMD, wide != 0};
  RmsNormGatedHeld held;
  const float sum = simd_sum(rms_norm_gated_squares(run, held));
  rms_norm_gated_write(run, sum, held);
}
