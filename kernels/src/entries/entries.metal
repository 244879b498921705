// Operators on entries of a pool: four words a thread, in loads and stores of 16 bytes where all of
// them start at such places; threadgroups [entries, parts of an entry]. Words are moved as they
// are. Bound by memory: 8 bytes move for each word, 4 where it is cleared.

// Copies the four words from `first` on of an entry of `len` words.
inline void entries_move(device uint* to, device const uint* from, uint first, uint len,
                         bool wide) {
  if (wide) {
    if (first < len) {
      *reinterpret_cast<device uint4*>(to + first) =
          *reinterpret_cast<device const uint4*>(from + first);
    }
    return;
  }
  for (uint i = first; i < first + 4 && i < len; ++i) to[i] = from[i];
}

kernel void entries_gather(device uint* packed [[buffer(0)]],
                           device const uint* pool [[buffer(1)]],
                           device const uint* entries [[buffer(2)]],
                           constant uint& len [[buffer(3)]],
                           constant uint& stride [[buffer(4)]],
                           constant uint& offset [[buffer(5)]],
                           constant uint& wide [[buffer(6)]],
                           uint3 group [[threadgroup_position_in_grid]],
                           uint index [[thread_index_in_threadgroup]],
                           uint threads [[threads_per_threadgroup]]) {
  const uint first = (group.y * threads + index) * 4;
  packed += ulong(group.x) * stride + offset;
  pool += ulong(entries[group.x]) * len;
  entries_move(packed, pool, first, len, wide);
}

kernel void entries_scatter(device uint* pool [[buffer(0)]],
                            device const uint* packed [[buffer(1)]],
                            device const uint* entries [[buffer(2)]],
                            constant uint& len [[buffer(3)]],
                            constant uint& stride [[buffer(4)]],
                            constant uint& offset [[buffer(5)]],
                            constant uint& wide [[buffer(6)]],
                            uint3 group [[threadgroup_position_in_grid]],
                            uint index [[thread_index_in_threadgroup]],
                            uint threads [[threads_per_threadgroup]]) {
  const uint first = (group.y * threads + index) * 4;
  packed += ulong(group.x) * stride + offset;
  pool += ulong(entries[group.x]) * len;
  entries_move(pool, packed, first, len, wide);
}

kernel void entries_copy(device uint* pool [[buffer(0)]],
                         device const uint* from_to [[buffer(1)]],
                         constant uint& len [[buffer(2)]],
                         constant uint& wide [[buffer(3)]],
                         uint3 group [[threadgroup_position_in_grid]],
                         uint index [[thread_index_in_threadgroup]],
                         uint threads [[threads_per_threadgroup]]) {
  const uint first = (group.x * threads + index) * 4;
  device const uint* from = pool + ulong(from_to[0]) * len;
  entries_move(pool + ulong(from_to[1]) * len, from, first, len, wide);
}

kernel void entries_clear(device uint* pool [[buffer(0)]],
                          device const uint* entry [[buffer(1)]],
                          constant uint& len [[buffer(2)]],
                          constant uint& wide [[buffer(3)]],
                          uint3 group [[threadgroup_position_in_grid]],
                          uint index [[thread_index_in_threadgroup]],
                          uint threads [[threads_per_threadgroup]]) {
  const uint first = (group.x * threads + index) * 4;
  pool += ulong(entry[0]) * len;
  if (wide) {
    if (first < len) *reinterpret_cast<device uint4*>(pool + first) = uint4(0);
    return;
  }
  for (uint i = first; i < first + 4 && i < len; ++i) pool[i] = 0;
}
