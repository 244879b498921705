// `gated_delta` token by token: decoding, and the sequential form over any number of tokens. A warp
// has 16 columns of a head's state in its registers from a segment's first token to its last, so that
// the state is read and written once in a launch, in pieces of 64 bytes: 8 bytes move for each element
// of a state, and to decode a token is bound by that (64 KiB read and 64 KiB written for a head of 128
// by 128; 4.3 MB and 0.9 us at 4.8 TB/s for 32 heads). Eight groups of four lanes share the rows; sums
// over keys are added up over the groups once a token, as the output comes from the state before the
// token: `(exp(g) S + k u^T)^T q = exp(g) S^T q + (k q) u`. The warps of a block prepare the queries,
// keys and gates of a few tokens at a time, one token each, while the state is on its way.
//
// Over many tokens a token costs what the sums' way through the warp takes, about 0.4 us: use the
// chunked form there.
#include "gated_delta.cuh"

namespace {

// Tokens that are prepared together.
constexpr unsigned SCAN_TOKENS = 8;
// Columns of a warp.
constexpr unsigned SCAN_COLUMNS = 16;
// Words of a segment: first row, tokens, slot, first stop, end of its stops.
constexpr unsigned SCAN_SEGMENT = 5;

struct ScanOperands {
  float* out;
  float* state;
  const float* qkv;
  const float* a;
  const float* b;
  const float* rate;
  const float* dt_bias;
  const unsigned* segments;
  const unsigned* stops;
};

// Up to `count` elements; with `wide` all four are one load.
__device__ __forceinline__ float4 load_columns(const float* from, unsigned count, bool wide) {
  float4 four = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  if (wide) {
    if (count > 0) four = *reinterpret_cast<const float4*>(from);
    return four;
  }
  if (count > 0) four.x = from[0];
  if (count > 1) four.y = from[1];
  if (count > 2) four.z = from[2];
  if (count > 3) four.w = from[3];
  return four;
}

__device__ __forceinline__ void store_columns(float* to, unsigned count, bool wide,
                                              const float4& four) {
  if (wide) {
    if (count > 0) *reinterpret_cast<float4*>(to) = four;
    return;
  }
  if (count > 0) to[0] = four.x;
  if (count > 1) to[1] = four.y;
  if (count > 2) to[2] = four.z;
  if (count > 3) to[3] = four.w;
}

// The sum over the groups of four lanes, in every one.
__device__ __forceinline__ float sum_of_groups(float value) {
#pragma unroll
  for (int bits = 16; bits >= 4; bits /= 2) value += __shfl_xor_sync(ALL_LANES, value, bits);
  return value;
}

__device__ __forceinline__ float4 sum_of_groups(const float4& four) {
  return make_float4(sum_of_groups(four.x), sum_of_groups(four.y), sum_of_groups(four.z),
                     sum_of_groups(four.w));
}

__device__ __forceinline__ void add_scaled(float4& sum, const float4& x, float factor) {
  sum.x = fmaf(x.x, factor, sum.x);
  sum.y = fmaf(x.y, factor, sum.y);
  sum.z = fmaf(x.z, factor, sum.z);
  sum.w = fmaf(x.w, factor, sum.w);
}

// A token of a head: keys and queries at their lengths, in pairs, zeros up to `ROWS * 8`. `gates` are
// the decay, the strength, and the product of key and query. By one warp.
template <unsigned ROWS>
__device__ __forceinline__ void scan_prepare(float2* pairs, float4* gates, const ScanOperands& x,
                                             const DeltaSizes& sizes, size_t row, unsigned head) {
  const unsigned lane = threadIdx.x % WARP, key_head = sizes.key_head(head);
  const float* query = x.qkv + sizes.query(row, key_head);
  const float* key = x.qkv + sizes.key(row, key_head);
  float q[ROWS / 4], k[ROWS / 4], squares = 0.0f, key_squares = 0.0f;
#pragma unroll
  for (unsigned m = 0; m < ROWS / 4; ++m) {
    const unsigned i = lane + WARP * m;
    q[m] = i < sizes.key_dim ? query[i] : 0.0f;
    k[m] = i < sizes.key_dim ? key[i] : 0.0f;
    squares = fmaf(q[m], q[m], squares);
    key_squares = fmaf(k[m], k[m], key_squares);
  }
  const float scale = 1.0f / sqrtf(static_cast<float>(sizes.key_dim));
  const float q_scale = scale / sqrtf(warp_sum(squares) + DELTA_L2_EPS);
  const float k_scale = 1.0f / sqrtf(warp_sum(key_squares) + DELTA_L2_EPS);
  float product = 0.0f;
#pragma unroll
  for (unsigned m = 0; m < ROWS / 4; ++m) {
    const float2 pair = make_float2(k[m] * k_scale, q[m] * q_scale);
    pairs[lane + WARP * m] = pair;
    product = fmaf(pair.x, pair.y, product);
  }
  product = warp_sum(product);
  if (lane == 0) {
    const size_t gate = row * sizes.value_heads + head;
    const float decay = expf(delta_log_decay(x.a[gate], x.dt_bias[head], x.rate[head]));
    *gates = make_float4(decay, sigmoid(x.b[gate]), product, 0.0f);
  }
}

// What a lane has of a state: rows `group + 8 * m`, four columns.
template <unsigned ROWS> struct ScanState {
  float4 rows[ROWS];

  __device__ __forceinline__ void load(const float* from, const DeltaSizes& sizes,
                                       unsigned columns, bool wide) {
    const unsigned group = threadIdx.x % WARP / 4;
#pragma unroll
    for (unsigned m = 0; m < ROWS; ++m) {
      const unsigned i = group + 8 * m;
      const unsigned count = i < sizes.key_dim ? columns : 0;
      rows[m] = load_columns(from + size_t(i) * sizes.value_dim, count, wide);
    }
  }

  __device__ __forceinline__ void store(float* to, const DeltaSizes& sizes, unsigned columns,
                                        bool wide) const {
    const unsigned group = threadIdx.x % WARP / 4;
#pragma unroll
    for (unsigned m = 0; m < ROWS; ++m) {
      const unsigned i = group + 8 * m;
      const unsigned count = i < sizes.key_dim ? columns : 0;
      store_columns(to + size_t(i) * sizes.value_dim, count, wide, rows[m]);
    }
  }

  // Takes a token in; returns its output.
  __device__ __forceinline__ float4 advance(const float2* pairs, const float4& gates,
                                            const float4& value) {
    const unsigned group = threadIdx.x % WARP / 4;
    const float decay = gates.x, strength = gates.y;
    float4 held = make_float4(0.0f, 0.0f, 0.0f, 0.0f), read = held;
#pragma unroll
    for (unsigned m = 0; m < ROWS; ++m) {
      const float2 pair = pairs[group + 8 * m];
      add_scaled(held, rows[m], pair.x);
      add_scaled(read, rows[m], pair.y);
    }
    held = sum_of_groups(held);
    read = sum_of_groups(read);
    const float4 write = make_float4(
        strength * (value.x - decay * held.x), strength * (value.y - decay * held.y),
        strength * (value.z - decay * held.z), strength * (value.w - decay * held.w));
    float4 out = make_float4(decay * read.x, decay * read.y, decay * read.z, decay * read.w);
    add_scaled(out, write, gates.z);
    // Keys are read again rather than kept: registers are what the state needs.
    __syncwarp();
#pragma unroll
    for (unsigned m = 0; m < ROWS; ++m) {
      const float key = pairs[group + 8 * m].x;
      float4& row = rows[m];
      row = make_float4(decay * row.x, decay * row.y, decay * row.z, decay * row.w);
      add_scaled(row, write, key);
    }
    return out;
  }
};

// Blocks `[columns / (16 * warps), value_heads, segments]`.
template <unsigned ROWS>
__device__ __forceinline__ void delta_scan(const ScanOperands& x, const DeltaSizes& sizes,
                                           bool wide) {
  __shared__ float2 pairs[SCAN_TOKENS * ROWS * 8];
  __shared__ float4 gates[SCAN_TOKENS];
  const unsigned warps = blockDim.x / WARP, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const unsigned head = blockIdx.y;
  const unsigned* segment = x.segments + blockIdx.z * SCAN_SEGMENT;
  const unsigned first = segment[0], len = segment[1], slot = segment[2], stops_end = segment[4];
  unsigned stop = segment[3];
  const unsigned column = (blockIdx.x * warps + warp) * SCAN_COLUMNS + lane % 4 * 4;
  const unsigned columns = column < sizes.value_dim ? min(sizes.value_dim - column, 4u) : 0u;
  ScanState<ROWS> state;
  state.load(x.state + sizes.state(slot, head) + column, sizes, columns, wide);
  for (unsigned start = 0; start < len; start += SCAN_TOKENS) {
    const unsigned end = min(len, start + SCAN_TOKENS);
    if (start > 0) __syncthreads();
    for (unsigned token = start + warp; token < end; token += warps) {
      const unsigned at = token - start;
      scan_prepare<ROWS>(pairs + at * ROWS * 8, gates + at, x, sizes, size_t(first) + token, head);
    }
    __syncthreads();
    for (unsigned token = start; token < end; ++token) {
      const size_t row = size_t(first) + token;
      const float4 value =
          load_columns(x.qkv + sizes.value(row, head) + column, columns, wide);
      const unsigned at = token - start;
      const float4 out = state.advance(pairs + at * ROWS * 8, gates[at], value);
      if (lane < 4) store_columns(x.out + sizes.output(row, head) + column, columns, wide, out);
      for (; stop < stops_end && x.stops[2 * stop] == token + 1; ++stop) {
        float* kept = x.state + sizes.state(x.stops[2 * stop + 1], head) + column;
        state.store(kept, sizes, columns, wide);
      }
    }
  }
  state.store(x.state + sizes.state(slot, head) + column, sizes, columns, wide);
}

}  // namespace

// For key heads of up to 64, 128 and 256 elements: 32, 64 and 128 registers of state.
#define GATED_DELTA_SCAN(NAME, ROWS, BLOCKS)                                                       \
  extern "C" __global__ void __launch_bounds__(256, BLOCKS)                                        \
      NAME(float* out, float* state, const float* qkv, const float* a, const float* b,             \
           const float* rate, const float* dt_bias, const unsigned* segments,                      \
           const unsigned* stops, unsigned key_heads, unsigned value_heads, unsigned key_dim,      \
           unsigned value_dim, unsigned tiled, unsigned wide) {                                    \
    const ScanOperands x = {out, state, qkv, a, b, rate, dt_bias, segments, stops};                \
    const DeltaSizes sizes = {key_heads, value_heads, key_dim, value_dim, tiled != 0};             \
    delta_scan<ROWS>(x, sizes, wide != 0);                                                         \
  }
GATED_DELTA_SCAN(gated_delta_scan_64, 8, 2)
GATED_DELTA_SCAN(gated_delta_scan_128, 16, 2)
GATED_DELTA_SCAN(gated_delta_scan_256, 32, 1)
