// `gated_delta` in chunks of 64 tokens, first kernel: all that does not need the state, by a
// threadgroup for each chunk and key head. It leaves queries and keys at their lengths, and for each
// value head the decayed scores of queries with keys, `P`, and `T = (I + A)^-1 diag(beta)`, where
// `A_ij = beta_i decay_ij (k_i k_j)` below the diagonal, so that writes are `T (v - decay S^T k)`.
//
// For a chunk, a key head of 128 and two value heads: 64 KiB are read, 128 KiB written, 2.5 MFLOP, all
// in f32. Products are made of what was just written, which the cache has, as 64 by 64 elements fill
// half of a threadgroup's memory. The inverse is made in place: the four blocks of 16 on the diagonal
// by substitution, a column a thread, what is below them by products of blocks.
//
// A key with an element that is no finite number is taken as zeros with a strength of NaN: all that
// comes after it is NaN, and nothing that came before.

constant constexpr uint CHUNK = 64, CHUNK_BLOCKS = CHUNK / 16;
// Distance of rows of the matrix that becomes the inverse.
constant constexpr uint STRIDE = CHUNK + 1;
constant constexpr float L2_EPS = 1e-6f;
// Sums of logarithms of decays are whole multiples of 2^-40: exact in any order, and so are the
// differences that decays between tokens are made of. Beyond 110 `exp` is 0 or infinite in f32.
constant constexpr float LOG_ONE = 1099511627776.0f;
constant constexpr float LOG_MAX = 110.0f;
// In place of a sum with a NaN in it.
constant constexpr long LOG_NAN = long(1) << 62;

struct PrepareOperands {
  device float* scratch;
  device const float* qkv;
  device const float* a;
  device const float* b;
  device const float* rate;
  device const float* dt_bias;
};

struct PrepareSizes {
  uint chunks, key_heads, value_heads, key_dim, value_dim, tiled;
};

// Where a threadgroup works, and what it shares.
struct PreparePlace {
  ulong first_row;
  uint len, chunk, key_head, index;
};
struct PrepareShared {
  threadgroup float* matrix;
  threadgroup long* logs;
  threadgroup long* sums;
  threadgroup float* strengths;
  threadgroup int* finite;
};

// Whether bits are those of no finite number: safe where the compiler takes all to be finite.
inline bool prepare_finite(float x) { return (as_type<uint>(x) & 0x7f800000u) != 0x7f800000u; }
inline bool prepare_nan(float x) { return (as_type<uint>(x) & 0x7fffffffu) > 0x7f800000u; }
inline float prepare_not_a_number() { return as_type<float>(0x7fc00000u); }

// Elements of a row of queries or keys in the scratch memory.
inline uint prepare_stride(thread const PrepareSizes& sizes) {
  return (sizes.key_dim + 15) / 16 * 16;
}
// `[CHUNK, stride]`; the keys follow.
inline device float* prepare_queries(thread const PrepareOperands& x,
                                     thread const PrepareSizes& sizes, uint chunk, uint key_head) {
  const ulong index = ulong(chunk) * sizes.key_heads + key_head;
  return x.scratch + index * 2 * CHUNK * prepare_stride(sizes);
}
// Scores and solution, `[CHUNK, CHUNK]` each, and sums of 64 bits.
inline device float* prepare_head_start(thread const PrepareOperands& x,
                                        thread const PrepareSizes& sizes, uint chunk, uint head) {
  const ulong rows = ulong(sizes.chunks) * sizes.key_heads * 2 * CHUNK * prepare_stride(sizes);
  const ulong index = ulong(chunk) * sizes.value_heads + head;
  return x.scratch + rows + index * (2 * CHUNK * CHUNK + 2 * CHUNK);
}

// As in gated_delta.metal.
inline float prepare_softplus(float x) {
  const float y = precise::exp(-fabs(x)), z = y / (2.0f + y), w = z * z;
  float sum = 1.0f / 15.0f;
  sum = fma(sum, w, 1.0f / 13.0f);
  sum = fma(sum, w, 1.0f / 11.0f);
  sum = fma(sum, w, 1.0f / 9.0f);
  sum = fma(sum, w, 1.0f / 7.0f);
  sum = fma(sum, w, 1.0f / 5.0f);
  sum = fma(sum, w, 1.0f / 3.0f);
  sum = fma(sum, w, 1.0f);
  return (x < 0.0f ? 0.0f : x) + 2.0f * z * sum;
}

inline long prepare_fixed(float log_decay) {
  if (prepare_nan(log_decay)) return LOG_NAN;
  return long(clamp(log_decay, -LOG_MAX, LOG_MAX) * LOG_ONE);
}

// `exp` of what was added to a sum since it was `from`.
inline float prepare_decay(long from, long to) {
  if (to == LOG_NAN) return prepare_not_a_number();
  return precise::exp(float(to - from) * (1.0f / LOG_ONE));
}

// Stores queries and keys at their lengths; a simdgroup takes every eighth token.
inline void prepare_rows(thread const PrepareOperands& x, thread const PrepareSizes& sizes,
                         thread const PreparePlace& place, threadgroup int* finite) {
  const ulong keys = ulong(sizes.key_heads) * sizes.key_dim;
  const ulong width = 2 * keys + ulong(sizes.value_heads) * sizes.value_dim;
  const uint lane = place.index % SIMD, stride = prepare_stride(sizes);
  device float* queries = prepare_queries(x, sizes, place.chunk, place.key_head);
  const float scale = 1.0f / precise::sqrt(float(sizes.key_dim));
  for (uint token = place.index / SIMD; token < CHUNK; token += 8) {
    const ulong row = place.first_row + token;
    device const float* query = x.qkv + row * width + ulong(place.key_head) * sizes.key_dim;
    const uint len = token < place.len ? sizes.key_dim : 0u;
    float squares = 0.0f, key_squares = 0.0f;
    int all_finite = 1;
    for (uint i = lane; i < len; i += SIMD) {
      const float q = query[i], k = query[keys + i];
      squares = fma(q, q, squares);
      key_squares = fma(k, k, key_squares);
      all_finite &= prepare_finite(k) ? 1 : 0;
    }
    all_finite = simd_min(all_finite);
    const float q_scale = scale / precise::sqrt(simd_sum(squares) + L2_EPS);
    const float k_scale = 1.0f / precise::sqrt(simd_sum(key_squares) + L2_EPS);
    for (uint i = lane; i < stride; i += SIMD) {
      queries[token * stride + i] = i < len ? query[i] * q_scale : 0.0f;
      const bool known = i < len && all_finite != 0;
      queries[(CHUNK + token) * stride + i] = known ? query[keys + i] * k_scale : 0.0f;
    }
    if (lane == 0) finite[token] = all_finite;
  }
}

// matrix = rows * keys^T up to the diagonal: a simdgroup has eight rows.
inline void prepare_products(threadgroup float* matrix, device const float* rows,
                             device const float* keys, uint stride, uint simdgroup) {
  for (uint column = 0; column <= simdgroup; ++column) {
    simdgroup_float8x8 sum = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    for (uint i = 0; i < stride; i += 8) {
      simdgroup_float8x8 left, right;
      simdgroup_load(left, rows + 8 * simdgroup * stride + i, stride);
      simdgroup_load(right, keys + 8 * column * stride + i, stride, 0, true);
      simdgroup_multiply_accumulate(sum, left, right, sum);
    }
    simdgroup_store(sum, matrix + 8 * simdgroup * STRIDE + 8 * column, STRIDE);
  }
}

// Strengths, and sums of the logarithms of decays.
inline void prepare_gates(thread const PrepareOperands& x, thread const PrepareSizes& sizes,
                          thread const PreparePlace& place, thread const PrepareShared& shared,
                          uint head, device long* sums) {
  const uint token = place.index;
  if (token < CHUNK) {
    // Tokens past the end neither write nor decay.
    const bool inside = token < place.len;
    const ulong gate = (place.first_row + token) * sizes.value_heads + head;
    float g = 0.0f, strength = 0.0f;
    if (inside) {
      g = x.rate[head] * prepare_softplus(x.a[gate] + x.dt_bias[head]);
      strength = sigmoid(x.b[gate]);
    }
    shared.logs[token] = prepare_fixed(g);
    shared.strengths[token] = shared.finite[token] != 0 ? strength : prepare_not_a_number();
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (token < CHUNK) {
    long sum = 0;
    bool number = true;
    for (uint i = 0; i <= token; ++i) {
      number = number && shared.logs[i] != LOG_NAN;
      if (number) sum += shared.logs[i];
    }
    if (!number) sum = LOG_NAN;
    shared.sums[token] = sum;
    sums[token] = sum;
  }
}

// The inverse of a block of 16 on the diagonal of `I + A`: thread `16 * block + column`.
inline void prepare_diagonal(threadgroup float* matrix, uint index) {
  const uint first = index / 16 * 16, column = index % 16;
  float x[16];
  threadgroup const float* block = matrix + first * STRIDE + first;
  for (uint row = 0; row < 16; ++row) {
    float sum = row == column ? 1.0f : 0.0f;
    for (uint m = 0; m < row; ++m) sum = fma(-block[row * STRIDE + m], x[m], sum);
    x[row] = row < column ? 0.0f : sum;
  }
  // The other columns of the block are read by other threads of this simdgroup.
  simdgroup_barrier(mem_flags::mem_threadgroup);
  for (uint row = 0; row < 16; ++row) matrix[(first + row) * STRIDE + first + column] = x[row];
}

// Makes the lower triangle of `I + A` its inverse, by block rows: `T_bc = -T_bb sum A_bm T_mc`. The
// sums lie where the upper triangle would be.
inline void prepare_inverse(threadgroup float* matrix, uint index) {
  if (index < CHUNK) prepare_diagonal(matrix, index);
  const uint row = index / 16, column = index % 16;
  for (uint below = 16; below < CHUNK; below += 16) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint left = 0; left < below; left += 16) {
      float sum = 0.0f;
      for (uint m = left; m < below; ++m) {
        sum = fma(matrix[(below + row) * STRIDE + m], matrix[m * STRIDE + left + column], sum);
      }
      matrix[(left + row) * STRIDE + below + column] = sum;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint left = 0; left < below; left += 16) {
      float sum = 0.0f;
      // To the diagonal only: what a later token makes NaN stays out of it.
      for (uint m = 0; m <= row; ++m) {
        sum = fma(matrix[(below + row) * STRIDE + below + m],
                  matrix[(left + m) * STRIDE + below + column], sum);
      }
      matrix[(below + row) * STRIDE + left + column] = -sum;
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

// Gates, scores and solution of one value head.
inline void prepare_head(thread const PrepareOperands& x, thread const PrepareSizes& sizes,
                         thread const PreparePlace& place, thread const PrepareShared& shared,
                         uint head) {
  const uint stride = prepare_stride(sizes), simdgroup = place.index / SIMD;
  device const float* queries = prepare_queries(x, sizes, place.chunk, place.key_head);
  device const float* keys = queries + CHUNK * stride;
  device float* scores = prepare_head_start(x, sizes, place.chunk, head);
  device float* solution = scores + CHUNK * CHUNK;
  device long* sums = reinterpret_cast<device long*>(solution + CHUNK * CHUNK);
  prepare_gates(x, sizes, place, shared, head, sums);
  prepare_products(shared.matrix, queries, keys, stride, simdgroup);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = place.index; i < CHUNK * CHUNK; i += 256) {
    const uint row = i / CHUNK, column = i % CHUNK;
    float score = 0.0f;
    if (column <= row) {
      score = shared.matrix[row * STRIDE + column] *
              prepare_decay(shared.sums[column], shared.sums[row]);
    }
    scores[i] = score;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  prepare_products(shared.matrix, keys, keys, stride, simdgroup);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = place.index; i < CHUNK * CHUNK; i += 256) {
    const uint row = i / CHUNK, column = i % CHUNK;
    threadgroup float* element = shared.matrix + row * STRIDE + column;
    if (column < row) {
      const float decay = prepare_decay(shared.sums[column], shared.sums[row]);
      *element = *element * decay * shared.strengths[row];
    } else {
      *element = 0.0f;
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  prepare_inverse(shared.matrix, place.index);
  for (uint i = place.index; i < CHUNK * CHUNK; i += 256) {
    const uint row = i / CHUNK, column = i % CHUNK;
    float x = 0.0f;
    if (column <= row) x = shared.matrix[row * STRIDE + column] * shared.strengths[column];
    solution[i] = x;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

// Threadgroups `[key_heads, chunks]` of 256; `chunks` has the first row and the tokens of each.
kernel void gated_delta_prepare(device float* scratch [[buffer(0)]],
                                device const float* qkv [[buffer(1)]],
                                device const float* a [[buffer(2)]],
                                device const float* b [[buffer(3)]],
                                device const float* rate [[buffer(4)]],
                                device const float* dt_bias [[buffer(5)]],
                                device const uint* chunks [[buffer(6)]],
                                constant uint& chunk_count [[buffer(7)]],
                                constant uint& key_heads [[buffer(8)]],
                                constant uint& value_heads [[buffer(9)]],
                                constant uint& key_dim [[buffer(10)]],
                                constant uint& value_dim [[buffer(11)]],
                                constant uint& tiled [[buffer(12)]],
                                uint3 group [[threadgroup_position_in_grid]],
                                uint index [[thread_index_in_threadgroup]]) {
  threadgroup float matrix[CHUNK * STRIDE];
  threadgroup long logs[CHUNK];
  threadgroup long sums[CHUNK];
  threadgroup float strengths[CHUNK];
  threadgroup int finite[CHUNK];
  const PrepareOperands x = {scratch, qkv, a, b, rate, dt_bias};
  const PrepareSizes sizes = {chunk_count, key_heads, value_heads, key_dim, value_dim, tiled};
  const PreparePlace place = {chunks[2 * group.y], chunks[2 * group.y + 1], group.y, group.x,
                              index};
  const PrepareShared shared = {matrix, logs, sums, strengths, finite};
  prepare_rows(x, sizes, place, finite);
  threadgroup_barrier(mem_flags::mem_device);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const uint ratio = value_heads / key_heads;
  for (uint i = 0; i < ratio; ++i) {
    const uint head = tiled != 0 ? group.x + i * key_heads : group.x * ratio + i;
    prepare_head(x, sizes, place, shared, head);
  }
}
