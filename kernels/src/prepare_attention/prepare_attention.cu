// `prepare_attention`: a warp for each head of a row, of queries, keys and values in one launch. A head
// is read once, in loads of 16 bytes, normalized as `rms_norm` does it, turned as `rope` does it, which
// needs the element half a head away and so a way through shared memory, and written where attention
// reads it: of queries to `queries`, of keys and values into a page, as they are or in 8 bits. Bound by
// memory: 8 bytes move for each element, about 5 in 8 bits; of one row that is nothing beside the
// launch, of which there are five otherwise.
#include "../attention/kv_write.cuh"

namespace {

constexpr unsigned PREPARE_WARPS = 4;
// Elements of a head, at most, and how many of them a lane has.
constexpr unsigned PREPARE_DIM = 256, PREPARE_HELD = PREPARE_DIM / WARP;

struct Prepare {
  float* queries;
  void* keys;
  void* values;
  const float* q;
  const float* k;
  const float* v;
  const float* cos;
  const float* sin;
  const float* q_norm;
  const float* k_norm;
  const unsigned* slots;
  unsigned rows, heads, kv_heads, page_tokens, dim, half_dim;
  bool normed;
  float eps;
  bool wide;
};

enum class Side { Query, Key, Value };

// The head that a warp has.
struct PreparedHead {
  Side side;
  size_t row;
  unsigned head;
  const float* from;
  const float* norm;

  // The page's block of a key or value head, and the token's place in it.
  __device__ __forceinline__ size_t block(const Prepare& p) const {
    return size_t(p.slots[row] / p.page_tokens) * p.kv_heads + head;
  }
  __device__ __forceinline__ unsigned offset(const Prepare& p) const {
    return p.slots[row] % p.page_tokens;
  }
};

__device__ __forceinline__ PreparedHead prepared_head(const Prepare& p, size_t task) {
  const unsigned per_row = p.heads + 2 * p.kv_heads;
  const size_t row = task / per_row;
  const unsigned at = static_cast<unsigned>(task % per_row);
  if (at < p.heads)
    return {Side::Query, row, at, p.q + (row * p.heads + at) * p.dim, p.q_norm};
  const bool is_value = at >= p.heads + p.kv_heads;
  const unsigned head = at - p.heads - (is_value ? p.kv_heads : 0);
  const float* from = (is_value ? p.v : p.k) + (row * p.kv_heads + head) * p.dim;
  return {is_value ? Side::Value : Side::Key, row, head, from, p.k_norm};
}

// Brings a head into shared memory, normalized if it is to be.
__device__ __forceinline__ void prepare_load(float* shared, const Prepare& p,
                                             const PreparedHead& head) {
  constexpr unsigned FOURS = PREPARE_HELD / 4;
  const unsigned lane = threadIdx.x % WARP;
  const bool normed = p.normed && head.side != Side::Value;
  float4 held[FOURS], weights[FOURS];
  float sum = 0.0f;
#pragma unroll
  for (unsigned j = 0; j < FOURS; ++j) {
    const unsigned first = (lane + j * WARP) * 4;
    held[j] = load_four(head.from, first, p.dim, p.wide);
    weights[j] = make_float4(1.0f, 1.0f, 1.0f, 1.0f);
    if (normed) weights[j] = load_four(head.norm, first, p.dim, p.wide);
  }
#pragma unroll
  for (unsigned j = 0; j < FOURS; ++j) sum = add_squares(sum, held[j]);
  sum = warp_sum(sum);
  const float scale = normed ? 1.0f / sqrtf(sum / static_cast<float>(p.dim) + p.eps) : 1.0f;
#pragma unroll
  for (unsigned j = 0; j < FOURS; ++j) {
    const auto scaled = [=](float x, float weight) { return x * scale * weight; };
    store_four(shared, (lane + j * WARP) * 4, p.dim, false, map_four(held[j], weights[j], scaled));
  }
  __syncwarp();
}

// Elements `lane + 32 * m` of a head, turned unless it is a value; zeros beyond its end.
__device__ __forceinline__ void prepare_turn(float (&x)[PREPARE_HELD], const float* shared,
                                             const Prepare& p, const PreparedHead& head) {
  const unsigned lane = threadIdx.x % WARP, half = head.side == Side::Value ? 0 : p.half_dim;
#pragma unroll
  for (unsigned m = 0; m < PREPARE_HELD; ++m) {
    const unsigned i = lane + m * WARP;
    x[m] = i < p.dim ? shared[i] : 0.0f;
    if (i >= 2 * half) continue;
    const unsigned pair = i < half ? i : i - half;
    const float cos = p.cos[head.row * half + pair], sin = p.sin[head.row * half + pair];
    x[m] = i < half ? fmaf(x[m], cos, -(shared[i + half] * sin))
                    : fmaf(x[m], cos, shared[pair] * sin);
  }
}

__device__ __forceinline__ void prepare_store(float* to, const float (&x)[PREPARE_HELD],
                                              unsigned dim) {
#pragma unroll
  for (unsigned m = 0; m < PREPARE_HELD; ++m) {
    const unsigned i = threadIdx.x % WARP + m * WARP;
    if (i < dim) to[i] = x[m];
  }
}

// Codes and scales of a token; groups are of 32 elements for keys and of 64 for values, one or two to a
// lane.
__device__ __forceinline__ void prepare_round(unsigned* pages, const float (&x)[PREPARE_HELD],
                                              const Prepare& p, const PreparedHead& head) {
  const unsigned each = head.side == Side::Value ? 2 : 1, group = each * WARP;
  const unsigned words = p.dim / 4, groups = (p.dim + group - 1) / group;
  unsigned* block = pages + head.block(p) * (words + groups) * p.page_tokens;
  const unsigned offset = head.offset(p);
  unsigned char* codes = reinterpret_cast<unsigned char*>(block + offset * words);
  unsigned* scales = block + p.page_tokens * words + offset * groups;
#pragma unroll
  for (unsigned m = 0; m < PREPARE_HELD; ++m) {
    const unsigned first = m * WARP, at = first / group;
    if (first >= p.dim || first % group != 0) continue;
    const float high = each == 2 && m + 1 < PREPARE_HELD ? x[(m + 1) % PREPARE_HELD] : 0.0f;
    round_group(codes + first, scales + at, x[m], high, min(group, p.dim - first));
  }
}

template <bool CODES> __device__ __forceinline__ void prepare(const Prepare& p) {
  __shared__ float shared[PREPARE_WARPS * PREPARE_DIM];
  const unsigned warp = threadIdx.x / WARP;
  const size_t task = size_t(blockIdx.x) * PREPARE_WARPS + warp;
  if (task >= size_t(p.rows) * (p.heads + 2 * p.kv_heads)) return;
  const PreparedHead head = prepared_head(p, task);
  prepare_load(shared + warp * PREPARE_DIM, p, head);
  float x[PREPARE_HELD];
  prepare_turn(x, shared + warp * PREPARE_DIM, p, head);
  if (head.side == Side::Query) {
    prepare_store(p.queries + (head.row * p.heads + head.head) * p.dim, x, p.dim);
    return;
  }
  void* pages = head.side == Side::Value ? p.values : p.keys;
  if (CODES) {
    prepare_round(static_cast<unsigned*>(pages), x, p, head);
  } else {
    const size_t token = head.block(p) * p.page_tokens + head.offset(p);
    prepare_store(static_cast<float*>(pages) + token * p.dim, x, p.dim);
  }
}

}  // namespace

#define PREPARE_ATTENTION(NAME, CODES)                                                            \
  extern "C" __global__ void __launch_bounds__(128)                                               \
      NAME(float* queries, void* keys, void* values, const float* q, const float* k,              \
           const float* v, const float* cos, const float* sin, const float* q_norm,               \
           const float* k_norm, const unsigned* slots, unsigned rows, unsigned heads,             \
           unsigned kv_heads, unsigned page_tokens, unsigned dim, unsigned half_dim,              \
           unsigned normed, float eps, unsigned wide) {                                           \
    prepare<CODES>({queries, keys,  values, q,        k,           v,   cos,      sin,            \
                    q_norm,  k_norm, slots, rows,     heads,       kv_heads, page_tokens, dim,    \
                    half_dim, normed != 0,  eps, wide != 0});                                     \
  }
PREPARE_ATTENTION(prepare_attention_f32, false)
PREPARE_ATTENTION(prepare_attention_int8, true)
