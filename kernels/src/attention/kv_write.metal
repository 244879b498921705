// `write_kv`: a simdgroup for each head of each new row, of keys and of values in one launch. 4 bytes
// are read for each element, and 4 or about 1.1 written; the floor is those bytes over the bandwidth.
// Threads take elements side by side, so that both sides of a copy are whole lines.

// Which head of which row a simdgroup writes, and where.
struct NewHead {
  ulong from, block;
  uint offset, dim;
  bool is_value, exists;
};

// The simdgroup's task; `rows * kv_heads` heads of keys, then as many of values.
inline NewHead new_head(ulong task, device const uint* slots, uint rows, uint kv_heads,
                        uint page_tokens, uint key_dim, uint value_dim) {
  NewHead head;
  const ulong heads = ulong(rows) * kv_heads;
  head.exists = task < 2 * heads;
  head.is_value = task >= heads;
  const ulong at = head.exists ? (head.is_value ? task - heads : task) : 0;
  head.dim = head.is_value ? value_dim : key_dim;
  head.from = at * head.dim;
  const uint slot = slots[at / kv_heads];
  head.block = ulong(slot / page_tokens) * kv_heads + at % kv_heads;
  head.offset = slot % page_tokens;
  return head;
}

kernel void write_kv_f32(device float* keys [[buffer(0)]],
                         device float* values [[buffer(1)]],
                         device const float* k [[buffer(2)]],
                         device const float* v [[buffer(3)]],
                         device const uint* slots [[buffer(4)]],
                         constant uint& rows [[buffer(5)]],
                         constant uint& kv_heads [[buffer(6)]],
                         constant uint& page_tokens [[buffer(7)]],
                         constant uint& key_dim [[buffer(8)]],
                         constant uint& value_dim [[buffer(9)]],
                         uint3 group [[threadgroup_position_in_grid]],
                         uint index [[thread_index_in_threadgroup]],
                         uint threads [[threads_per_threadgroup]]) {
  const ulong task = ulong(group.x) * (threads / SIMD) + index / SIMD;
  const NewHead head = new_head(task, slots, rows, kv_heads, page_tokens, key_dim, value_dim);
  if (!head.exists) return;
  device float* to = head.is_value ? values : keys;
  device const float* from = (head.is_value ? v : k) + head.from;
  to += (head.block * page_tokens + head.offset) * head.dim;
  for (uint i = index % SIMD; i < head.dim; i += SIMD) to[i] = from[i];
}

kernel void write_kv_int8(device uint* keys [[buffer(0)]],
                          device uint* values [[buffer(1)]],
                          device const float* k [[buffer(2)]],
                          device const float* v [[buffer(3)]],
                          device const uint* slots [[buffer(4)]],
                          constant uint& rows [[buffer(5)]],
                          constant uint& kv_heads [[buffer(6)]],
                          constant uint& page_tokens [[buffer(7)]],
                          constant uint& key_dim [[buffer(8)]],
                          constant uint& value_dim [[buffer(9)]],
                          constant uint& key_group [[buffer(10)]],
                          constant uint& value_group [[buffer(11)]],
                          uint3 group [[threadgroup_position_in_grid]],
                          uint index [[thread_index_in_threadgroup]],
                          uint threads [[threads_per_threadgroup]]) {
  const ulong task = ulong(group.x) * (threads / SIMD) + index / SIMD;
  const NewHead head = new_head(task, slots, rows, kv_heads, page_tokens, key_dim, value_dim);
  if (!head.exists) return;
  const uint width = head.is_value ? value_group : key_group;
  const uint words = head.dim / 4, groups = (head.dim + width - 1) / width;
  device uint* block = head.is_value ? values : keys;
  block += head.block * (words + groups) * page_tokens;
  device const float* from = (head.is_value ? v : k) + head.from;
  device uchar* codes = (device uchar*)(block + head.offset * words);
  device uint* scales = block + page_tokens * words + head.offset * groups;
  for (uint i = 0; i < groups; ++i) {
    const uint first = i * width;
    const uint lane = index % SIMD, len = min(width, head.dim - first);
    const float low = lane < len ? from[first + lane] : 0.0f;
    const float high = lane + SIMD < len ? from[first + lane + SIMD] : 0.0f;
    round_group(codes + first, scales + i, low, high, len, lane);
  }
}
