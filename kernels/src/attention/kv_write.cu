// `write_kv`: a warp for each head of each new row, of keys and of values in one launch. 4 bytes are
// read for each element, and 4 or about 1.1 written; the floor is those bytes over the bandwidth.
// Lanes take elements side by side, so that both sides of a copy are whole lines.
#include "kv_write.cuh"

// The head of a row that a warp writes, and where.
struct NewHead {
  const float* from;
  size_t block;
  unsigned offset, dim;
  bool is_value;
};

// The warp's task; `rows * kv_heads` heads of keys, then as many of values.
__device__ __forceinline__ bool new_head(NewHead& head, const float* k, const float* v,
                                         const unsigned* slots, unsigned rows, unsigned kv_heads,
                                         unsigned page_tokens, unsigned key_dim,
                                         unsigned value_dim) {
  const unsigned warps = blockDim.x / WARP;
  const size_t task = static_cast<size_t>(blockIdx.x) * warps + threadIdx.x / WARP;
  const size_t heads = static_cast<size_t>(rows) * kv_heads;
  if (task >= 2 * heads) return false;
  head.is_value = task >= heads;
  const size_t at = head.is_value ? task - heads : task;
  head.dim = head.is_value ? value_dim : key_dim;
  head.from = (head.is_value ? v : k) + at * head.dim;
  const unsigned slot = slots[at / kv_heads];
  head.block = static_cast<size_t>(slot / page_tokens) * kv_heads + at % kv_heads;
  head.offset = slot % page_tokens;
  return true;
}

extern "C" __global__ void __launch_bounds__(128)
    write_kv_f32(float* keys, float* values, const float* k, const float* v, const unsigned* slots,
                 unsigned rows, unsigned kv_heads, unsigned page_tokens, unsigned key_dim,
                 unsigned value_dim) {
  NewHead head;
  if (!new_head(head, k, v, slots, rows, kv_heads, page_tokens, key_dim, value_dim)) return;
  float* to = (head.is_value ? values : keys) + (head.block * page_tokens + head.offset) * head.dim;
  for (unsigned i = threadIdx.x % WARP; i < head.dim; i += WARP) to[i] = head.from[i];
}

extern "C" __global__ void __launch_bounds__(128)
    write_kv_int8(unsigned* keys, unsigned* values, const float* k, const float* v,
                  const unsigned* slots, unsigned rows, unsigned kv_heads, unsigned page_tokens,
                  unsigned key_dim, unsigned value_dim, unsigned key_group, unsigned value_group) {
  NewHead head;
  if (!new_head(head, k, v, slots, rows, kv_heads, page_tokens, key_dim, value_dim)) return;
  const unsigned group = head.is_value ? value_group : key_group;
  const unsigned words = head.dim / 4, groups = (head.dim + group - 1) / group;
  unsigned* block =
      (head.is_value ? values : keys) + head.block * (words + groups) * page_tokens;
  unsigned char* codes = reinterpret_cast<unsigned char*>(block + head.offset * words);
  unsigned* scales = block + page_tokens * words + head.offset * groups;
  for (unsigned i = 0; i < groups; ++i) {
    const unsigned first = i * group;
    const unsigned lane = threadIdx.x % WARP, len = min(group, head.dim - first);
    const float low = lane < len ? head.from[first + lane] : 0.0f;
    const float high = lane + WARP < len ? head.from[first + lane + WARP] : 0.0f;
    round_group(codes + first, scales + i, low, high, len);
  }
}
