// A head's state of the gated delta rule in registers: a simdgroup has 16 of its columns, in pieces of
// 64 bytes. Eight groups of four threads share the rows; sums over keys are added up over the groups.
// For kernels that take one token after another.

// Columns of a simdgroup.
constant constexpr uint SCAN_COLUMNS = 16;
// Added to the sum of squares when queries and keys are brought to length one.
constant constexpr float SCAN_L2_EPS = 1e-6f;

// ln(1 + exp(x)); NaN stays NaN. `ln(1 + y)` is the series of `2 atanh(y / (2 + y))`: there is no
// log1p in Metal, and nothing cancels here. `y` is 1 at most.
inline float scan_softplus(float x) {
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

// Up to `count` elements; with `wide` all four are one load.
inline float4 scan_load(device const float* from, uint count, bool wide) {
  float4 four = float4(0.0f);
  if (wide) {
    if (count > 0) four = *reinterpret_cast<device const float4*>(from);
    return four;
  }
  if (count > 0) four.x = from[0];
  if (count > 1) four.y = from[1];
  if (count > 2) four.z = from[2];
  if (count > 3) four.w = from[3];
  return four;
}

inline void scan_store(device float* to, uint count, bool wide, float4 four) {
  if (wide) {
    if (count > 0) *reinterpret_cast<device float4*>(to) = four;
    return;
  }
  if (count > 0) to[0] = four.x;
  if (count > 1) to[1] = four.y;
  if (count > 2) to[2] = four.z;
  if (count > 3) to[3] = four.w;
}

// The sum over the groups of four threads, in every one.
inline float4 sum_of_groups(float4 four) {
  for (ushort bits = 16; bits >= 4; bits /= 2) {
    four.x += simd_shuffle_xor(four.x, bits);
    four.y += simd_shuffle_xor(four.y, bits);
    four.z += simd_shuffle_xor(four.z, bits);
    four.w += simd_shuffle_xor(four.w, bits);
  }
  return four;
}

// Key and query of a token, of which a thread has every 32nd element, at their lengths, in pairs, zeros
// up to `ROWS * 8`; returns the product of both. By one simdgroup.
template <uint ROWS>
inline float scan_pairs(threadgroup float2* pairs, thread const float* q, thread const float* k,
                        uint key_dim, uint lane) {
  float squares = 0.0f, key_squares = 0.0f;
  for (uint m = 0; m < ROWS / 4; ++m) {
    squares = fma(q[m], q[m], squares);
    key_squares = fma(k[m], k[m], key_squares);
  }
  const float scale = 1.0f / precise::sqrt(float(key_dim));
  const float q_scale = scale / precise::sqrt(simd_sum(squares) + SCAN_L2_EPS);
  const float k_scale = 1.0f / precise::sqrt(simd_sum(key_squares) + SCAN_L2_EPS);
  float product = 0.0f;
  for (uint m = 0; m < ROWS / 4; ++m) {
    const float2 pair = float2(k[m] * k_scale, q[m] * q_scale);
    pairs[lane + SIMD * m] = pair;
    product = fma(pair.x, pair.y, product);
  }
  return simd_sum(product);
}

// Takes a token into a thread's rows `group + 8 * m` of the state; returns its output.
template <uint ROWS>
inline float4 scan_advance(thread float4* rows, threadgroup const float2* pairs, float4 gates,
                           float4 value, uint group) {
  float4 held = float4(0.0f), read = float4(0.0f);
  for (uint m = 0; m < ROWS; ++m) {
    const float2 pair = pairs[group + 8 * m];
    held += rows[m] * pair.x;
    read += rows[m] * pair.y;
  }
  held = sum_of_groups(held);
  read = sum_of_groups(read);
  const float4 write = (value - held * gates.x) * gates.y;
  for (uint m = 0; m < ROWS; ++m) {
    rows[m] = rows[m] * gates.x + write * pairs[group + 8 * m].x;
  }
  return read * gates.x + write * gates.z;
}
