// `gated_delta` in chunks of 64 tokens, second kernel: what needs the state, chunk after chunk, by a
// threadgroup for 16 columns of a value head of a segment. See gated_delta_prepare.metal for the first.
//
// The state's columns stay in threadgroup memory from a segment's first token to its last, as f32, as
// all operands are: a simdgroup has 16 tokens of the chunk, and every fourth eight rows of keys of the
// state's update. Queries, keys, scores and solution come from memory where they are multiplied, each
// by one simdgroup. For a chunk and a head of 128 by 128: 128 KiB of them for each 16 columns, mostly
// from the second-level cache, and 0.9 MFLOP, twice as many as the sequential form has: what is gained
// is that they are products of matrices, and three passes over the state in 64 tokens.

constant constexpr uint CHUNK = 64, COLUMNS = 16;
// Words of a segment: first row, tokens, slot, first chunk, first stop, end of its stops.
constant constexpr uint CHUNK_SEGMENT = 6;
constant constexpr float LOG_ONE = 1099511627776.0f;
constant constexpr long LOG_NAN = long(1) << 62;

struct ChunkOperands {
  device float* out;
  device float* state;
  device const float* scratch;
  device const float* qkv;
  device const uint* stops;
};

struct ChunkSizes {
  uint chunks, key_heads, value_heads, key_dim, value_dim, tiled;
};

struct ChunkShared {
  // `[key_dim, COLUMNS]`, rows of zeros up to a multiple of eight.
  threadgroup float* state;
  // `[CHUNK, COLUMNS]` each.
  threadgroup float* values;
  threadgroup float* writes;
  threadgroup float* read;
  threadgroup long* sums;
  threadgroup float* decays;
  // The first token whose value, or write, is no finite number, for each column.
  threadgroup atomic_int* first_bad_value;
  threadgroup atomic_int* first_bad_write;
};

// What a threadgroup works on.
struct ChunkPlace {
  uint head, first_column, index;
};

inline bool chunk_finite(float x) { return (as_type<uint>(x) & 0x7f800000u) != 0x7f800000u; }
inline float chunk_not_a_number() { return as_type<float>(0x7fc00000u); }

// `exp` of what was added to a sum since it was `from`.
inline float chunk_decay(long from, long to) {
  if (to == LOG_NAN) return chunk_not_a_number();
  return precise::exp(float(to - from) * (1.0f / LOG_ONE));
}

inline uint chunk_stride(thread const ChunkSizes& sizes) { return (sizes.key_dim + 15) / 16 * 16; }

// Queries `[CHUNK, stride]`, then keys, of the head's key head.
inline device const float* chunk_queries(thread const ChunkOperands& x,
                                         thread const ChunkSizes& sizes, uint chunk, uint head) {
  const uint key_head = sizes.tiled != 0 ? head % sizes.key_heads
                                         : head / (sizes.value_heads / sizes.key_heads);
  const ulong index = ulong(chunk) * sizes.key_heads + key_head;
  return x.scratch + index * 2 * CHUNK * chunk_stride(sizes);
}
// Scores and solution, `[CHUNK, CHUNK]` each, and sums of 64 bits.
inline device const float* chunk_scores(thread const ChunkOperands& x,
                                        thread const ChunkSizes& sizes, uint chunk, uint head) {
  const ulong rows = ulong(sizes.chunks) * sizes.key_heads * 2 * CHUNK * chunk_stride(sizes);
  const ulong index = ulong(chunk) * sizes.value_heads + head;
  return x.scratch + rows + index * (2 * CHUNK * CHUNK + 2 * CHUNK);
}

inline ulong chunk_state(thread const ChunkSizes& sizes, ulong slot, uint head) {
  return (slot * sizes.value_heads + head) * sizes.key_dim * sizes.value_dim;
}

// out = rows * x for the 16 rows of the simdgroup's tokens; `depth` is a multiple of eight.
inline void chunk_product(threadgroup float* out, device const float* rows, uint stride,
                          threadgroup const float* x, uint depth, uint simdgroup) {
  simdgroup_float8x8 sums[2][2];
  for (uint i = 0; i < 2; ++i) {
    for (uint j = 0; j < 2; ++j) sums[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  }
  rows += 16 * simdgroup * stride;
  for (uint k = 0; k < depth; k += 8) {
    simdgroup_float8x8 left[2], right[2];
    for (uint i = 0; i < 2; ++i) simdgroup_load(left[i], rows + 8 * i * stride + k, stride);
    for (uint j = 0; j < 2; ++j) simdgroup_load(right[j], x + k * COLUMNS + 8 * j, COLUMNS);
    for (uint i = 0; i < 2; ++i) {
      for (uint j = 0; j < 2; ++j) {
        simdgroup_multiply_accumulate(sums[i][j], left[i], right[j], sums[i][j]);
      }
    }
  }
  out += 16 * simdgroup * COLUMNS;
  for (uint i = 0; i < 2; ++i) {
    for (uint j = 0; j < 2; ++j) {
      simdgroup_store(sums[i][j], out + 8 * i * COLUMNS + 8 * j, COLUMNS);
    }
  }
}

// What is no finite number would spread to all tokens: it is replaced, and noted where it was.
inline float chunk_kept(float x, threadgroup atomic_int* first_bad, uint token, uint column) {
  if (chunk_finite(x)) return x;
  atomic_fetch_min_explicit(first_bad + column, int(token), memory_order_relaxed);
  return 0.0f;
}

inline bool chunk_bad(threadgroup atomic_int* first_bad, uint column, uint token) {
  return int(token) >= atomic_load_explicit(first_bad + column, memory_order_relaxed);
}

// Sums and decays of a chunk.
inline void chunk_begin(thread const ChunkShared& shared, device const long* sums, uint index) {
  if (index < CHUNK) {
    shared.sums[index] = sums[index];
    shared.decays[index] = chunk_decay(0, sums[index]);
  }
  if (index < COLUMNS) {
    atomic_store_explicit(shared.first_bad_value + index, int(CHUNK), memory_order_relaxed);
    atomic_store_explicit(shared.first_bad_write + index, int(CHUNK), memory_order_relaxed);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

// What the chunk's tokens write, and their outputs. `row` is that of the first.
inline void chunk_tokens(thread const ChunkOperands& x, thread const ChunkSizes& sizes,
                         thread const ChunkPlace& place, thread const ChunkShared& shared,
                         uint chunk, ulong row, uint len) {
  const uint stride = chunk_stride(sizes), simdgroup = place.index / SIMD;
  const ulong before = ulong(2) * sizes.key_heads * sizes.key_dim;
  const ulong width = before + ulong(sizes.value_heads) * sizes.value_dim;
  device const float* queries = chunk_queries(x, sizes, chunk, place.head);
  device const float* scores = chunk_scores(x, sizes, chunk, place.head);
  device const float* solution = scores + CHUNK * CHUNK;
  chunk_product(shared.read, queries, stride, shared.state, stride, simdgroup);
  chunk_product(shared.values, queries + CHUNK * stride, stride, shared.state, stride, simdgroup);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = place.index; i < CHUNK * COLUMNS; i += 128) {
    const uint token = i / COLUMNS, column = i % COLUMNS, at = place.first_column + column;
    float value = 0.0f;
    if (token < len && at < sizes.value_dim) {
      value = x.qkv[(row + token) * width + before + ulong(place.head) * sizes.value_dim + at];
    }
    value -= shared.decays[token] * shared.values[i];
    shared.values[i] = chunk_kept(value, shared.first_bad_value, token, column);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  // The solution and the scores are zeros past the diagonal.
  const uint depth = 16 * (simdgroup + 1);
  chunk_product(shared.writes, solution, CHUNK, shared.values, depth, simdgroup);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = place.index; i < CHUNK * COLUMNS; i += 128) {
    const uint token = i / COLUMNS, column = i % COLUMNS;
    float write = shared.writes[i];
    if (chunk_bad(shared.first_bad_value, column, token)) write = chunk_not_a_number();
    shared.writes[i] = chunk_kept(write, shared.first_bad_write, token, column);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  chunk_product(shared.values, scores, CHUNK, shared.writes, depth, simdgroup);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = place.index; i < CHUNK * COLUMNS; i += 128) {
    const uint token = i / COLUMNS, column = i % COLUMNS, at = place.first_column + column;
    if (token >= len || at >= sizes.value_dim) continue;
    float out = fma(shared.decays[token], shared.read[i], shared.values[i]);
    if (chunk_bad(shared.first_bad_write, column, token)) out = chunk_not_a_number();
    x.out[((row + token) * sizes.value_heads + place.head) * sizes.value_dim + at] = out;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

// The state after the chunk's first `count` tokens, at least one, in memory at `to` if `keep`, else in
// its place.
inline void chunk_state_after(thread const ChunkSizes& sizes, thread const ChunkPlace& place,
                              thread const ChunkShared& shared, device const float* keys,
                              uint count, device float* to, bool keep) {
  const uint stride = chunk_stride(sizes), simdgroup = place.index / SIMD;
  const long end = shared.sums[count - 1];
  for (uint i = place.index; i < CHUNK * COLUMNS; i += 128) {
    const uint token = i / COLUMNS;
    float decayed = 0.0f;
    if (token < count) decayed = shared.writes[i] * chunk_decay(shared.sums[token], end);
    // What a NaN among the sums spoils is marked below.
    shared.values[i] = chunk_finite(decayed) ? decayed : 0.0f;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const float decay = chunk_decay(0, end);
  threadgroup float* added = shared.read + simdgroup * 8 * COLUMNS;
  for (uint first = 8 * simdgroup; first < stride; first += 32) {
    simdgroup_float8x8 sums[2];
    for (uint j = 0; j < 2; ++j) sums[j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    for (uint token = 0; token < CHUNK; token += 8) {
      simdgroup_float8x8 left, right;
      simdgroup_load(left, keys + token * stride + first, stride, 0, true);
      for (uint j = 0; j < 2; ++j) {
        simdgroup_load(right, shared.values + token * COLUMNS + 8 * j, COLUMNS);
        simdgroup_multiply_accumulate(sums[j], left, right, sums[j]);
      }
    }
    for (uint j = 0; j < 2; ++j) simdgroup_store(sums[j], added + 8 * j, COLUMNS);
    simdgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = place.index % SIMD; i < 8 * COLUMNS; i += SIMD) {
      const uint key = first + i / COLUMNS, column = i % COLUMNS;
      const uint at = place.first_column + column;
      float after = fma(shared.state[key * COLUMNS + column], decay, added[i]);
      if (chunk_bad(shared.first_bad_write, column, count - 1)) after = chunk_not_a_number();
      if (!keep) {
        shared.state[key * COLUMNS + column] = key < sizes.key_dim ? after : 0.0f;
      } else if (key < sizes.key_dim && at < sizes.value_dim) {
        to[ulong(key) * sizes.value_dim + at] = after;
      }
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

// Copies the columns of the state to memory.
inline void chunk_store(thread const ChunkSizes& sizes, thread const ChunkPlace& place,
                        threadgroup const float* state, device float* to) {
  for (uint i = place.index; i < sizes.key_dim * COLUMNS; i += 128) {
    const uint at = place.first_column + i % COLUMNS;
    if (at < sizes.value_dim) to[ulong(i / COLUMNS) * sizes.value_dim + at] = state[i];
  }
}

// Threadgroups `[columns / 16, value_heads, segments]` of 128.
inline void delta_chunks(thread const ChunkOperands& x, thread const ChunkSizes& sizes,
                         thread const ChunkPlace& place, thread const ChunkShared& shared,
                         device const uint* segment) {
  const uint len = segment[1], slot = segment[2], stops_end = segment[5];
  const uint stride = chunk_stride(sizes);
  uint stop = segment[4];
  device float* own = x.state + chunk_state(sizes, slot, place.head);
  for (uint i = place.index; i < stride * COLUMNS; i += 128) {
    const uint key = i / COLUMNS, at = place.first_column + i % COLUMNS;
    float s = 0.0f;
    if (key < sizes.key_dim && at < sizes.value_dim) s = own[ulong(key) * sizes.value_dim + at];
    shared.state[i] = s;
  }
  for (uint start = 0; start < len; start += CHUNK) {
    const uint chunk = segment[3] + start / CHUNK, end = min(len, start + CHUNK);
    device const float* keys = chunk_queries(x, sizes, chunk, place.head) + CHUNK * stride;
    device const float* squares = chunk_scores(x, sizes, chunk, place.head);
    chunk_begin(shared, reinterpret_cast<device const long*>(squares + 2 * CHUNK * CHUNK),
                place.index);
    chunk_tokens(x, sizes, place, shared, chunk, ulong(segment[0]) + start, end - start);
    for (; stop < stops_end && x.stops[2 * stop] < end; ++stop) {
      device float* kept = x.state + chunk_state(sizes, x.stops[2 * stop + 1], place.head);
      chunk_state_after(sizes, place, shared, keys, x.stops[2 * stop] - start, kept, true);
    }
    chunk_state_after(sizes, place, shared, keys, end - start, own, false);
    for (; stop < stops_end && x.stops[2 * stop] == end; ++stop) {
      device float* kept = x.state + chunk_state(sizes, x.stops[2 * stop + 1], place.head);
      chunk_store(sizes, place, shared.state, kept);
    }
  }
  chunk_store(sizes, place, shared.state, own);
}

// For key heads of up to 64, 128 and 256 elements.
#define GATED_DELTA_CHUNKS(NAME, KEY_DIM)                                                          \
  kernel void NAME(device float* out [[buffer(0)]], device float* state [[buffer(1)]],             \
                   device const float* scratch [[buffer(2)]],                                      \
                   device const float* qkv [[buffer(3)]],                                          \
                   device const uint* segments [[buffer(4)]],                                      \
                   device const uint* stops [[buffer(5)]],                                         \
                   constant uint& chunk_count [[buffer(6)]],                                       \
                   constant uint& key_heads [[buffer(7)]],                                         \
                   constant uint& value_heads [[buffer(8)]],                                       \
                   constant uint& key_dim [[buffer(9)]],                                           \
                   constant uint& value_dim [[buffer(10)]],                                        \
                   constant uint& tiled [[buffer(11)]],                                            \
                   uint3 group [[threadgroup_position_in_grid]],                                   \
                   uint index [[thread_index_in_threadgroup]]) {                                   \
    threadgroup float columns[KEY_DIM * COLUMNS];                                                  \
    threadgroup float values[CHUNK * COLUMNS];                                                     \
    threadgroup float writes[CHUNK * COLUMNS];                                                     \
    threadgroup float read[CHUNK * COLUMNS];                                                       \
    threadgroup long sums[CHUNK];                                                                  \
    threadgroup float decays[CHUNK];                                                               \
    threadgroup atomic_int first_bad_value[COLUMNS];                                               \
    threadgroup atomic_int first_bad_write[COLUMNS];                                               \
    const ChunkOperands x = {out, state, scratch, qkv, stops};                                     \
    const ChunkSizes sizes = {chunk_count, key_heads, value_heads, key_dim, value_dim, tiled};     \
    const ChunkShared shared = {columns, values, writes,          read,                            \
                                sums,    decays, first_bad_value, first_bad_write};                \
    const ChunkPlace place = {group.y, group.x * COLUMNS, index};                                  \
    delta_chunks(x, sizes, place, shared, segments + group.z * CHUNK_SEGMENT);                     \
  }
GATED_DELTA_CHUNKS(gated_delta_chunks_64, 64)
GATED_DELTA_CHUNKS(gated_delta_chunks_128, 128)
GATED_DELTA_CHUNKS(gated_delta_chunks_256, 256)
