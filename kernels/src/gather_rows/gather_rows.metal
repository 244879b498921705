// `gather_rows`: four elements a thread, in loads and stores of 16 bytes; threadgroups [rows, parts
// of a row]. Bound by memory: 8 bytes move for each element that is picked.

kernel void gather_rows(device float* out [[buffer(0)]],
                        device const float* x [[buffer(1)]],
                        device const uint* indices [[buffer(2)]],
                        constant uint& dim [[buffer(3)]],
                        constant uint& wide [[buffer(4)]],
                        uint3 group [[threadgroup_position_in_grid]],
                        uint index [[thread_index_in_threadgroup]],
                        uint threads [[threads_per_threadgroup]]) {
  const uint first = (group.y * threads + index) * 4;
  out += ulong(group.x) * dim;
  x += ulong(indices[group.x]) * dim;
  store_four(out, first, dim, wide, load_four(x, first, dim, wide));
}
