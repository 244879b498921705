// `combine_experts`: a thread for each element of a row, or for four. It reads the results of the
// row's pairs, `4 * choices` bytes for each element, and reads and writes 8 of the output; memory's
// speed is the floor. All threads of a threadgroup read the same pairs and weights, from a cache.

template <class T>
inline void combine_experts_at(device T* out, device const T* y, device const uint* pairs,
                               device const float* weights, uint choices, uint dim, uint row,
                               uint column) {
  if (column >= dim) return;
  pairs += ulong(row) * choices;
  weights += ulong(row) * choices;
  T sum = T(0.0f);
  for (uint choice = 0; choice < choices; ++choice)
    sum += weights[choice] * y[ulong(pairs[choice]) * dim + column];
  out[ulong(row) * dim + column] += sum;
}

kernel void combine_experts(device float* out [[buffer(0)]],
                            device const float* y [[buffer(1)]],
                            device const uint* pairs [[buffer(2)]],
                            device const float* weights [[buffer(3)]],
                            constant uint& choices [[buffer(4)]],
                            constant uint& dim [[buffer(5)]],
                            uint3 group [[threadgroup_position_in_grid]],
                            uint index [[thread_index_in_threadgroup]],
                            uint threads [[threads_per_threadgroup]]) {
  const uint column = group.y * threads + index;
  combine_experts_at(out, y, pairs, weights, choices, dim, group.x, column);
}

// `dim` counts vectors.
kernel void combine_experts_vectors(device float4* out [[buffer(0)]],
                                    device const float4* y [[buffer(1)]],
                                    device const uint* pairs [[buffer(2)]],
                                    device const float* weights [[buffer(3)]],
                                    constant uint& choices [[buffer(4)]],
                                    constant uint& dim [[buffer(5)]],
                                    uint3 group [[threadgroup_position_in_grid]],
                                    uint index [[thread_index_in_threadgroup]],
                                    uint threads [[threads_per_threadgroup]]) {
  const uint column = group.y * threads + index;
  combine_experts_at(out, y, pairs, weights, choices, dim, group.x, column);
}
