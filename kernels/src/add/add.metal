// `add`, `add_bias`, `add_gated`: four elements a thread, in loads and stores of 16 bytes. Bound by
// memory: 12 bytes move for each element of `add` and `add_gated`, 8 for one of `add_bias`, whose
// bias stays in a cache; the floor is their time at the bandwidth of memory.

// Of all rows as one array of `len`, each threadgroup has four elements for each of its threads.
kernel void add(device float* out [[buffer(0)]],
                device const float* x [[buffer(1)]],
                constant uint& len [[buffer(2)]],
                constant uint& wide [[buffer(3)]],
                uint3 group [[threadgroup_position_in_grid]],
                uint index [[thread_index_in_threadgroup]],
                uint threads [[threads_per_threadgroup]]) {
  const ulong start = ulong(group.x) * threads * 4;
  const uint rest = uint(len - start), first = index * 4;
  const float4 before = load_four(out + start, first, rest, wide);
  const float4 four = load_four(x + start, first, rest, wide);
  store_four(out + start, first, rest, wide, before + four);
}

// Threadgroups [rows, parts of a row].
kernel void add_bias(device float* out [[buffer(0)]],
                     device const float* bias [[buffer(1)]],
                     constant uint& dim [[buffer(2)]],
                     constant uint& wide [[buffer(3)]],
                     uint3 group [[threadgroup_position_in_grid]],
                     uint index [[thread_index_in_threadgroup]],
                     uint threads [[threads_per_threadgroup]]) {
  const uint first = (group.y * threads + index) * 4;
  out += ulong(group.x) * dim;
  const float4 before = load_four(out, first, dim, wide);
  const float4 four = load_four(bias, first, dim, wide);
  store_four(out, first, dim, wide, before + four);
}

// Threadgroups [rows, parts of a row].
kernel void add_gated(device float* out [[buffer(0)]],
                      device const float* x [[buffer(1)]],
                      device const float* gate [[buffer(2)]],
                      constant uint& dim [[buffer(3)]],
                      constant uint& wide [[buffer(4)]],
                      uint3 group [[threadgroup_position_in_grid]],
                      uint index [[thread_index_in_threadgroup]],
                      uint threads [[threads_per_threadgroup]]) {
  const uint first = (group.y * threads + index) * 4;
  out += ulong(group.x) * dim;
  x += ulong(group.x) * dim;
  const float4 before = load_four(out, first, dim, wide);
  const float4 four = load_four(x, first, dim, wide);
  const float4 weight = float4(sigmoid(gate[group.x]));
  store_four(out, first, dim, wide, fma(weight, four, before));
}
