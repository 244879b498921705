// `rms_norm`: a threadgroup for each run of `dim` elements, which is read once from memory and once
// more from a cache. 8 bytes move for each element.

kernel void rms_norm(device float* out [[buffer(0)]],
                     device const float* x [[buffer(1)]],
                     device const float* weight [[buffer(2)]],
                     constant float& eps [[buffer(3)]],
                     constant uint& dim [[buffer(4)]],
                     uint3 group [[threadgroup_position_in_grid]],
                     uint index [[thread_index_in_threadgroup]],
                     uint threads [[threads_per_threadgroup]]) {
  threadgroup float partial[SIMD];
  x += ulong(group.x) * dim;
  out += ulong(group.x) * dim;
  float sum = 0.0f;
  for (uint i = index; i < dim; i += threads) sum += x[i] * x[i];
  sum = threadgroup_sum(sum, partial, index, threads);
  const float scale = 1.0f / precise::sqrt(sum / float(dim) + eps);
  for (uint i = index; i < dim; i += threads) out[i] = x[i] * scale * weight[i];
}
