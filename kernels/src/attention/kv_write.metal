// `write_kv`: a simdgroup for each head of each new row, of keys and of values in one launch. 4 bytes
// are read for each element, and 4 or about 1.1 written; the floor is those bytes over the bandwidth.
// Threads take elements side by side, so that both sides of a copy are whole lines.

// What a code of zero is, and the largest code beside it.
constant constexpr int KV_ZERO_CODE = 128;
constant constexpr float KV_CODE_MAX = 127.0f;
// Below, all elements of a group count as zeros.
constant constexpr float KV_ZERO = 1e-30f;

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

// Rounds a group of at most 64 elements, two to a thread; the first one writes the scale.
inline void round_group(device uchar* codes, device uint* scale, device const float* from, uint len,
                        uint lane) {
  const float low = lane < len ? from[lane] : 0.0f;
  const float high = lane + SIMD < len ? from[lane + SIMD] : 0.0f;
  const float largest = simd_max(max(fabs(low), fabs(high)));
  const bool finite = simd_all(isfinite(low) && isfinite(high));
  const bool zeros = !finite || largest < KV_ZERO;
  const float inverse = zeros ? 0.0f : precise::divide(KV_CODE_MAX, largest);
  const int low_code = zeros ? 0 : int(rint(low * inverse));
  const int high_code = zeros ? 0 : int(rint(high * inverse));
  if (lane < len) codes[lane] = uchar(low_code + KV_ZERO_CODE);
  if (lane + SIMD < len) codes[lane + SIMD] = uchar(high_code + KV_ZERO_CODE);
  // The bits of the NaN that the CPU writes.
  const uint bits = zeros ? 0u : as_type<uint>(precise::divide(largest, KV_CODE_MAX));
  if (lane == 0) *scale = finite ? bits : 0x7fc00000u;
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
    round_group(codes + first, scales + i, from + first, min(width, head.dim - first), index % SIMD);
  }
}
