// `prepare_attention`: a simdgroup for each head of a row, of queries, keys and values in one launch. A
// head is read once, in loads of 16 bytes, normalized as `rms_norm` does it, turned as `rope` does it,
// which needs the element half a head away and so a way through threadgroup memory, and written where
// attention reads it: of queries to `queries`, of keys and values into a page, as they are or in 8
// bits. Bound by memory: 8 bytes move for each element, about 5 in 8 bits; of one row that is nothing
// beside the launch, of which there are five otherwise.

constant constexpr uint PREPARE_SIMDGROUPS = 4;
// Elements of a head, at most, and how many of them a thread has.
constant constexpr uint PREPARE_DIM = 256, PREPARE_HELD = PREPARE_DIM / SIMD;
// What a head is of.
constant constexpr uint PREPARE_QUERY = 0, PREPARE_KEY = 1, PREPARE_VALUE = 2;

struct Prepare {
  device const float* cos;
  device const float* sin;
  device const uint* slots;
  uint heads, kv_heads, page_tokens, dim, half_dim;
  bool normed;
  float eps;
  bool wide;
};

// The head that a simdgroup has.
struct PreparedHead {
  device const float* from;
  device const float* norm;
  ulong row;
  uint side, head, lane;
};

// Brings a head into threadgroup memory, normalized if it is to be.
inline void prepare_load(threadgroup float* shared, Prepare p, PreparedHead head) {
  constexpr uint FOURS = PREPARE_HELD / 4;
  const bool normed = p.normed && head.side != PREPARE_VALUE;
  float4 held[FOURS], weights[FOURS];
  float sum = 0.0f;
#pragma unroll
  for (uint j = 0; j < FOURS; ++j) {
    const uint first = (head.lane + j * SIMD) * 4;
    held[j] = load_four(head.from, first, p.dim, p.wide);
    weights[j] = float4(1.0f);
    if (normed) weights[j] = load_four(head.norm, first, p.dim, p.wide);
  }
#pragma unroll
  for (uint j = 0; j < FOURS; ++j) sum = add_squares(sum, held[j]);
  sum = simd_sum(sum);
  const float scale = normed ? 1.0f / precise::sqrt(sum / float(p.dim) + p.eps) : 1.0f;
#pragma unroll
  for (uint j = 0; j < FOURS; ++j) {
    const uint first = (head.lane + j * SIMD) * 4;
    const float4 x = held[j] * float4(scale) * weights[j];
    if (first < p.dim) shared[first] = x.x;
    if (first + 1 < p.dim) shared[first + 1] = x.y;
    if (first + 2 < p.dim) shared[first + 2] = x.z;
    if (first + 3 < p.dim) shared[first + 3] = x.w;
  }
}

// Element `i` of a head, turned unless it is a value; zero beyond its end.
inline float prepare_turned(threadgroup const float* shared, Prepare p, PreparedHead head, uint i) {
  if (i >= p.dim) return 0.0f;
  const uint half_dim = head.side == PREPARE_VALUE ? 0 : p.half_dim;
  const float x = shared[i];
  if (i >= 2 * half_dim) return x;
  const uint pair = i < half_dim ? i : i - half_dim;
  const float c = p.cos[head.row * half_dim + pair], s = p.sin[head.row * half_dim + pair];
  return i < half_dim ? fma(x, c, -(shared[i + half_dim] * s)) : fma(x, c, shared[pair] * s);
}

inline void prepare_store(device float* to, threadgroup const float* shared, Prepare p,
                          PreparedHead head) {
  for (uint i = head.lane; i < p.dim; i += SIMD) to[i] = prepare_turned(shared, p, head, i);
}

// Where a key or value of the page starts, in tokens of its head.
inline ulong prepare_block(Prepare p, PreparedHead head) {
  return ulong(p.slots[head.row] / p.page_tokens) * p.kv_heads + head.head;
}

// Codes and scales of a token; groups are of 32 elements for keys and of 64 for values, one or two to a
// thread.
inline void prepare_round(device uint* pages, threadgroup const float* shared, Prepare p,
                          PreparedHead head) {
  const uint width = head.side == PREPARE_VALUE ? 2 * SIMD : SIMD;
  const uint words = p.dim / 4, groups = (p.dim + width - 1) / width;
  device uint* block = pages + prepare_block(p, head) * (words + groups) * p.page_tokens;
  const uint offset = p.slots[head.row] % p.page_tokens;
  device uchar* codes = (device uchar*)(block + offset * words);
  device uint* scales = block + p.page_tokens * words + offset * groups;
  for (uint i = 0; i < groups; ++i) {
    const uint first = i * width, len = min(width, p.dim - first);
    const float low = prepare_turned(shared, p, head, first + head.lane);
    const float high =
        len > SIMD ? prepare_turned(shared, p, head, first + SIMD + head.lane) : 0.0f;
    round_group(codes + first, scales + i, head.lane < len ? low : 0.0f, high, len, head.lane);
  }
}

#define PREPARE_ATTENTION(NAME, T, WRITE)                                                          \
  kernel void NAME(                                                                                \
      device float* queries [[buffer(0)]], device T* keys [[buffer(1)]],                           \
      device T* values [[buffer(2)]], device const float* q [[buffer(3)]],                         \
      device const float* k [[buffer(4)]], device const float* v [[buffer(5)]],                    \
      device const float* cos [[buffer(6)]], device const float* sin [[buffer(7)]],                \
      device const float* q_norm [[buffer(8)]], device const float* k_norm [[buffer(9)]],          \
      device const uint* slots [[buffer(10)]], constant uint& rows [[buffer(11)]],                 \
      constant uint& heads [[buffer(12)]], constant uint& kv_heads [[buffer(13)]],                 \
      constant uint& page_tokens [[buffer(14)]], constant uint& dim [[buffer(15)]],                \
      constant uint& half_dim [[buffer(16)]], constant uint& normed [[buffer(17)]],                \
      constant float& eps [[buffer(18)]], constant uint& wide [[buffer(19)]],                      \
      uint3 group [[threadgroup_position_in_grid]], uint index [[thread_index_in_threadgroup]]) {  \
    threadgroup float memory[PREPARE_SIMDGROUPS * PREPARE_DIM];                                    \
    const uint per_row = heads + 2 * kv_heads;                                                     \
    const ulong task = ulong(group.x) * PREPARE_SIMDGROUPS + index / SIMD;                         \
    const ulong row = task / per_row;                                                              \
    if (row >= rows) return;                                                                       \
    const uint at = uint(task % per_row);                                                          \
    const uint side = at < heads              ? PREPARE_QUERY                                      \
                      : at < heads + kv_heads ? PREPARE_KEY                                        \
                                              : PREPARE_VALUE;                                     \
    const uint number = side == PREPARE_QUERY ? at                                                 \
                        : side == PREPARE_KEY ? at - heads                                         \
                                              : at - heads - kv_heads;                             \
    const ulong start =                                                                            \
        (row * (side == PREPARE_QUERY ? heads : kv_heads) + number) * ulong(dim);                  \
    const Prepare p = {cos, sin,      slots,       heads, kv_heads, page_tokens,                   \
                       dim, half_dim, normed != 0, eps,   wide != 0};                              \
    device const float* from = side == PREPARE_QUERY ? q : side == PREPARE_KEY ? k : v;            \
    const PreparedHead head = {from + start, side == PREPARE_QUERY ? q_norm : k_norm, row,         \
                               side,         number,                                index % SIMD}; \
    threadgroup float* shared = memory + index / SIMD * PREPARE_DIM;                               \
    prepare_load(shared, p, head);                                                                 \
    simdgroup_barrier(mem_flags::mem_threadgroup);                                                 \
    if (side == PREPARE_QUERY) {                                                                   \
      prepare_store(queries + start, shared, p, head);                                             \
    } else {                                                                                       \
      WRITE(side == PREPARE_VALUE ? values : keys, shared, p, head);                               \
    }                                                                                              \
  }

// A token of a page in f32.
inline void prepare_write(device float* pages, threadgroup const float* shared, Prepare p,
                          PreparedHead head) {
  const uint offset = p.slots[head.row] % p.page_tokens;
  const ulong token = prepare_block(p, head) * p.page_tokens + offset;
  prepare_store(pages + token * p.dim, shared, p, head);
}
PREPARE_ATTENTION(prepare_attention_f32, float, prepare_write)
PREPARE_ATTENTION(prepare_attention_int8, uint, prepare_round)
