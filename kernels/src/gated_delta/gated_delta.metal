// `gated_delta` token by token: decoding, and the sequential form over any number of tokens. A
// simdgroup has 16 columns of a head's state in its registers from a segment's first token to its
// last, so that the state is read and written once in a launch: 8 bytes move for each element of a
// state, and to decode a token is bound by that (128 KiB for a head of 128 by 128; 10 us at 400 GB/s
// for 32 heads). Eight groups of four threads share the rows; sums over keys are added up over the
// groups once a token, as the output comes from the state before the token:
// `(exp(g) S + k u^T)^T q = exp(g) S^T q + (k q) u`. The simdgroups of a threadgroup prepare the
// queries, keys and gates of a few tokens at a time, one token each.

// Tokens that are prepared together.
constant constexpr uint SCAN_TOKENS = 8;
// Words of a segment: first row, tokens, slot, first stop, end of its stops.
constant constexpr uint SCAN_SEGMENT = 5;

struct ScanOperands {
  device float* out;
  device float* state;
  device const float* qkv;
  device const float* a;
  device const float* b;
  device const float* rate;
  device const float* dt_bias;
  device const uint* segments;
  device const uint* stops;
};

struct ScanSizes {
  uint key_heads, value_heads, key_dim, value_dim, tiled;
};

// Where a thread is.
struct ScanPlace {
  uint3 group;
  uint index, threads;
};

inline ulong scan_query(thread const ScanSizes& sizes, ulong row, uint head) {
  const ulong width = ulong(2) * sizes.key_heads * sizes.key_dim +
                      ulong(sizes.value_heads) * sizes.value_dim;
  const uint key_head = sizes.tiled != 0 ? head % sizes.key_heads
                                         : head / (sizes.value_heads / sizes.key_heads);
  return row * width + ulong(key_head) * sizes.key_dim;
}

inline ulong scan_value(thread const ScanSizes& sizes, ulong row, uint head) {
  const ulong keys = ulong(2) * sizes.key_heads * sizes.key_dim;
  const ulong width = keys + ulong(sizes.value_heads) * sizes.value_dim;
  return row * width + keys + ulong(head) * sizes.value_dim;
}

inline ulong scan_state(thread const ScanSizes& sizes, ulong slot, uint head) {
  return (slot * sizes.value_heads + head) * sizes.key_dim * sizes.value_dim;
}

// A token of a head: its pairs, and `gates`, the decay, the strength, and the product of key and query.
// By one simdgroup.
template <uint ROWS>
inline void scan_prepare(threadgroup float2* pairs, threadgroup float4* gates,
                         thread const ScanOperands& x, thread const ScanSizes& sizes, ulong row,
                         uint head, uint lane) {
  device const float* query = x.qkv + scan_query(sizes, row, head);
  device const float* key = query + ulong(sizes.key_heads) * sizes.key_dim;
  float q[ROWS / 4], k[ROWS / 4];
  for (uint m = 0; m < ROWS / 4; ++m) {
    const uint i = lane + SIMD * m;
    q[m] = i < sizes.key_dim ? query[i] : 0.0f;
    k[m] = i < sizes.key_dim ? key[i] : 0.0f;
  }
  const float product = scan_pairs<ROWS>(pairs, q, k, sizes.key_dim, lane);
  if (lane == 0) {
    const ulong gate = row * sizes.value_heads + head;
    const float g = x.rate[head] * scan_softplus(x.a[gate] + x.dt_bias[head]);
    const float strength = sigmoid(x.b[gate]);
    *gates = float4(precise::exp(g), strength, product, 0.0f);
  }
}

// Threadgroups `[columns / (16 * simdgroups), value_heads, segments]`.
template <uint ROWS>
inline void delta_scan(thread const ScanOperands& x, thread const ScanSizes& sizes, bool wide,
                       threadgroup float2* pairs, threadgroup float4* gates, ScanPlace place) {
  const uint simdgroups = place.threads / SIMD, simdgroup = place.index / SIMD;
  const uint lane = place.index % SIMD, group = lane / 4, head = place.group.y;
  device const uint* segment = x.segments + place.group.z * SCAN_SEGMENT;
  const uint first = segment[0], len = segment[1], slot = segment[2], stops_end = segment[4];
  uint stop = segment[3];
  const uint column = (place.group.x * simdgroups + simdgroup) * SCAN_COLUMNS + lane % 4 * 4;
  const uint columns = column < sizes.value_dim ? min(sizes.value_dim - column, 4u) : 0u;
  float4 rows[ROWS];
  device float* own = x.state + scan_state(sizes, slot, head) + column;
  for (uint m = 0; m < ROWS; ++m) {
    const uint i = group + 8 * m;
    const uint count = i < sizes.key_dim ? columns : 0u;
    rows[m] = scan_load(own + ulong(i) * sizes.value_dim, count, wide);
  }
  for (uint start = 0; start < len; start += SCAN_TOKENS) {
    const uint end = min(len, start + SCAN_TOKENS);
    if (start > 0) threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint token = start + simdgroup; token < end; token += simdgroups) {
      const uint at = token - start;
      scan_prepare<ROWS>(pairs + at * ROWS * 8, gates + at, x, sizes, ulong(first) + token, head,
                         lane);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint token = start; token < end; ++token) {
      const ulong row = ulong(first) + token;
      const float4 value = scan_load(x.qkv + scan_value(sizes, row, head) + column, columns, wide);
      const uint at = token - start;
      const float4 out =
          scan_advance<ROWS>(rows, pairs + at * ROWS * 8, gates[at], value, group);
      device float* to = x.out + (row * sizes.value_heads + head) * sizes.value_dim + column;
      if (lane < 4) scan_store(to, columns, wide, out);
      for (; stop < stops_end && x.stops[2 * stop] == token + 1; ++stop) {
        device float* kept = x.state + scan_state(sizes, x.stops[2 * stop + 1], head) + column;
        for (uint m = 0; m < ROWS; ++m) {
          const uint i = group + 8 * m;
          const uint count = i < sizes.key_dim ? columns : 0u;
          scan_store(kept + ulong(i) * sizes.value_dim, count, wide, rows[m]);
        }
      }
    }
  }
  for (uint m = 0; m < ROWS; ++m) {
    const uint i = group + 8 * m;
    const uint count = i < sizes.key_dim ? columns : 0u;
    scan_store(own + ulong(i) * sizes.value_dim, count, wide, rows[m]);
  }
}

// For key heads of up to 64, 128 and 256 elements: 32, 64 and 128 registers of state.
#define GATED_DELTA_SCAN(NAME, ROWS)                                                              \
  kernel void NAME(device float* out [[buffer(0)]], device float* state [[buffer(1)]],            \
                   device const float* qkv [[buffer(2)]], device const float* a [[buffer(3)]],    \
                   device const float* b [[buffer(4)]], device const float* rate [[buffer(5)]],   \
                   device const float* dt_bias [[buffer(6)]],                                     \
                   device const uint* segments [[buffer(7)]],                                     \
                   device const uint* stops [[buffer(8)]], constant uint& key_heads [[buffer(9)]], \
                   constant uint& value_heads [[buffer(10)]],                                     \
                   constant uint& key_dim [[buffer(11)]],                                         \
                   constant uint& value_dim [[buffer(12)]], constant uint& tiled [[buffer(13)]],  \
                   constant uint& wide [[buffer(14)]],                                            \
                   uint3 group [[threadgroup_position_in_grid]],                                  \
                   uint index [[thread_index_in_threadgroup]],                                    \
                   uint threads [[threads_per_threadgroup]]) {                                    \
    threadgroup float2 pairs[SCAN_TOKENS * ROWS * 8];                                             \
    threadgroup float4 gates[SCAN_TOKENS];                                                        \
    const ScanOperands x = {out, state, qkv, a, b, rate, dt_bias, segments, stops};               \
    const ScanSizes sizes = {key_heads, value_heads, key_dim, value_dim, tiled};                  \
    const ScanPlace place = {group, index, threads};                                              \
    delta_scan<ROWS>(x, sizes, wide != 0, pairs, gates, place);                                   \
  }
GATED_DELTA_SCAN(gated_delta_scan_64, 8)
GATED_DELTA_SCAN(gated_delta_scan_128, 16)
GATED_DELTA_SCAN(gated_delta_scan_256, 32)
