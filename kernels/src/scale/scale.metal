// `scale`: four elements a thread, in loads and stores of 16 bytes. Bound by memory: 8 bytes move
// for each element. Once a step, over the rows of the step.

// Of all rows as one array of `len`, each threadgroup has four elements for each of its threads.
kernel void scale(device float* out [[buffer(0)]],
                  constant float& factor [[buffer(1)]],
                  constant uint& len [[buffer(2)]],
                  constant uint& wide [[buffer(3)]],
                  uint3 group [[threadgroup_position_in_grid]],
                  uint index [[thread_index_in_threadgroup]],
                  uint threads [[threads_per_threadgroup]]) {
  const ulong start = ulong(group.x) * threads * 4;
  const uint rest = uint(len - start), first = index * 4;
  const float4 four = load_four(out + start, first, rest, wide);
  store_four(out + start, first, rest, wide, four * factor);
}
