// `rms_norm`: a simdgroup for each run of up to 512 elements, as of a head; a threadgroup for a
// longer one. A run is read once, in loads of 16 bytes, and waits in registers for its sum with its
// weights beside it: one way to memory and back, which is what a decode step of few rows takes. What
// does not fit into the registers of a threadgroup, beyond 8192 elements, is read once more from a
// cache. Bound by memory: 8 bytes move for each element, the weights stay in a cache.

// Fours of a run that a thread keeps; `HELD` of rms_norm/gpu.rs.
constant constexpr uint RMS_NORM_HELD = 4;

struct RmsNormShape {
  // Elements of a run.
  uint dim;
  // Threads that work on it, and which of them this is.
  uint team, index;
  float eps;
  bool wide;
};

// Loads the fours of a thread and adds up their squares and those of what it does not hold. Who adds
// up what depends on `dim` alone.
inline float rms_norm_squares(device const float* x, RmsNormShape shape, thread float4* held) {
  const uint dim = shape.dim, team = shape.team;
#pragma unroll
  for (uint j = 0; j < RMS_NORM_HELD; ++j) {
    held[j] = load_four(x, (shape.index + j * team) * 4, dim, shape.wide);
  }
  float sum = 0.0f;
#pragma unroll
  for (uint j = 0; j < RMS_NORM_HELD; ++j) sum = add_squares(sum, held[j]);
  for (uint i = (shape.index + RMS_NORM_HELD * team) * 4; i < dim; i += 4 * team) {
    sum = add_squares(sum, load_four(x, i, dim, shape.wide));
  }
  return sum;
}

// Writes what a thread holds, and the rest, scaled.
inline void rms_norm_write(device float* out, device const float* x, device const float* weight,
                           RmsNormShape shape, float sum, thread const float4* held,
                           thread const float4* weights) {
  const uint dim = shape.dim, team = shape.team;
  const float4 scale = float4(1.0f / precise::sqrt(sum / float(dim) + shape.eps));
#pragma unroll
  for (uint j = 0; j < RMS_NORM_HELD; ++j) {
    const uint first = (shape.index + j * team) * 4;
    store_four(out, first, dim, shape.wide, held[j] * scale * weights[j]);
  }
  for (uint i = (shape.index + RMS_NORM_HELD * team) * 4; i < dim; i += 4 * team) {
    const float4 four = load_four(x, i, dim, shape.wide);
    store_four(out, i, dim, shape.wide, four * scale * load_four(weight, i, dim, shape.wide));
  }
}

// The weights of the fours that a thread holds, read before it waits for the others.
inline void rms_norm_weights(device const float* weight, RmsNormShape shape,
                             thread float4* weights) {
#pragma unroll
  for (uint j = 0; j < RMS_NORM_HELD; ++j) {
    weights[j] = load_four(weight, (shape.index + j * shape.team) * 4, shape.dim, shape.wide);
  }
}

// A run for each threadgroup.
kernel void rms_norm(device float* out [[buffer(0)]],
                     device const float* x [[buffer(1)]],
                     device const float* weight [[buffer(2)]],
                     constant float& eps [[buffer(3)]],
                     constant uint& dim [[buffer(4)]],
                     constant uint& runs [[buffer(5)]],
                     constant uint& wide [[buffer(6)]],
                     uint3 group [[threadgroup_position_in_grid]],
                     uint index [[thread_index_in_threadgroup]],
                     uint threads [[threads_per_threadgroup]]) {
  threadgroup float partial[SIMD];
  const RmsNormShape shape = {dim, threads, index, eps, wide != 0};
  x += ulong(group.x) * dim;
  out += ulong(group.x) * dim;
  float4 held[RMS_NORM_HELD], weights[RMS_NORM_HELD];
  rms_norm_weights(weight, shape, weights);
  const float squares = rms_norm_squares(x, shape, held);
  const float sum = threadgroup_sum(squares, partial, index, threads);
  rms_norm_write(out, x, weight, shape, sum, held, weights);
}

// A run for each simdgroup.
kernel void rms_norm_warps(device float* out [[buffer(0)]],
                           device const float* x [[buffer(1)]],
                           device const float* weight [[buffer(2)]],
                           constant float& eps [[buffer(3)]],
                           constant uint& dim [[buffer(4)]],
                           constant uint& runs [[buffer(5)]],
                           constant uint& wide [[buffer(6)]],
                           uint3 group [[threadgroup_position_in_grid]],
                           uint index [[thread_index_in_threadgroup]],
                           uint threads [[threads_per_threadgroup]]) {
  const uint run = group.x * (threads / SIMD) + index / SIMD;
  if (run >= runs) return;
  const RmsNormShape shape = {dim, SIMD, index % SIMD, eps, wide != 0};
  x += ulong(run) * dim;
  out += ulong(run) * dim;
  float4 held[RMS_NORM_HELD], weights[RMS_NORM_HELD];
  rms_norm_weights(weight, shape, weights);
  const float sum = simd_sum(rms_norm_squares(x, shape, held));
  rms_norm_write(out, x, weight, shape, sum, held, weights);
}
