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
#include "gated_delta_state.cuh"

namespace {

// Tokens that are prepared together.
constexpr unsigned SCAN_TOKENS = 8;
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

// A token of a head: its pairs, and `gates`, the decay, the strength, and the product of key and query.
// By one warp.
template <unsigned ROWS>
__device__ __forceinline__ void scan_prepare(float2* pairs, float4* gates, const ScanOperands& x,
                                             const DeltaSizes& sizes, size_t row, unsigned head) {
  const unsigned key_head = sizes.key_head(head);
  const float* query = x.qkv + sizes.query(row, key_head);
  const float product =
      scan_pairs<ROWS>(pairs, query, x.qkv + sizes.key(row, key_head), sizes.key_dim);
  if (threadIdx.x % WARP == 0) {
    const size_t gate = row * sizes.value_heads + head;
    const float decay = expf(delta_log_decay(x.a[gate], x.dt_bias[head], x.rate[head]));
    *gates = make_float4(decay, sigmoid(x.b[gate]), product, 0.0f);
  }
}

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
