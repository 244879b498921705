// What the kernels of the gated delta rule share: sizes of heads, gates, sums of logarithms of
// decays, and the layout of what `gated_delta_prepare` leaves for `gated_delta_chunks`.
#pragma once

#include "../gpu/cuda.cuh"

// Sizes of heads, and which key head a value head works with.
struct DeltaSizes {
  unsigned key_heads, value_heads, key_dim, value_dim;
  bool tiled;

  __device__ __forceinline__ unsigned ratio() const { return value_heads / key_heads; }
  __device__ __forceinline__ unsigned key_head(unsigned value_head) const {
    return tiled ? value_head % key_heads : value_head / ratio();
  }
  // The value head that is number `index` of a key head.
  __device__ __forceinline__ unsigned value_head(unsigned key_head, unsigned index) const {
    return tiled ? key_head + index * key_heads : key_head * ratio() + index;
  }
  __device__ __forceinline__ size_t width() const {
    return size_t(2) * key_heads * key_dim + size_t(value_heads) * value_dim;
  }
  // Where queries, keys and values start in `qkv`, outputs in `out`, and a head's state in `state`.
  __device__ __forceinline__ size_t query(size_t row, unsigned key_head) const {
    return row * width() + size_t(key_head) * key_dim;
  }
  __device__ __forceinline__ size_t key(size_t row, unsigned key_head) const {
    return query(row, key_head) + size_t(key_heads) * key_dim;
  }
  __device__ __forceinline__ size_t value(size_t row, unsigned head) const {
    return row * width() + size_t(2) * key_heads * key_dim + size_t(head) * value_dim;
  }
  __device__ __forceinline__ size_t output(size_t row, unsigned head) const {
    return (row * value_heads + head) * value_dim;
  }
  __device__ __forceinline__ size_t state(size_t slot, unsigned head) const {
    return (slot * value_heads + head) * key_dim * value_dim;
  }
};

// Added to the sum of squares when queries and keys are brought to length one.
constexpr float DELTA_L2_EPS = 1e-6f;

// ln(1 + exp(x)), written so that neither end overflows; NaN stays NaN.
__device__ __forceinline__ float delta_softplus(float x) {
  return (x < 0.0f ? 0.0f : x) + log1pf(expf(-fabsf(x)));
}

// The logarithm of a token's decay.
__device__ __forceinline__ float delta_log_decay(float a, float dt_bias, float rate) {
  return rate * delta_softplus(a + dt_bias);
}

__device__ __forceinline__ float delta_not_a_number() { return __uint_as_float(0x7fc00000u); }

// Sums of logarithms of decays are whole multiples of 2^-40: exact in any order, and so are the
// differences that decays between tokens are made of.
constexpr float DELTA_LOG_ONE = 1099511627776.0f;
// Beyond it `exp` is 0 or infinite in f32.
constexpr float DELTA_LOG_MAX = 110.0f;
// In place of a sum with a NaN in it.
constexpr long long DELTA_LOG_NAN = 1ll << 62;

__device__ __forceinline__ long long delta_fixed(float log_decay) {
  if (isnan(log_decay)) return DELTA_LOG_NAN;
  const float inside = fminf(fmaxf(log_decay, -DELTA_LOG_MAX), DELTA_LOG_MAX);
  return static_cast<long long>(inside * DELTA_LOG_ONE);
}

// `exp` of what was added to a sum since it was `from`.
__device__ __forceinline__ float delta_decay(long long from, long long to) {
  if (to == DELTA_LOG_NAN) return delta_not_a_number();
  return expf(static_cast<float>(to - from) * (1.0f / DELTA_LOG_ONE));
}

// Tokens of a chunk; and, as operands of tensor cores, rows of 16 by 16 blocks of them.
constexpr unsigned CHUNK = 64, CHUNK_BLOCKS = CHUNK / 16;
// A block is four matrices of 8 by 8 bf16, row after row, first the upper two, and then the same of
// what the first four lack: 32-bit words.
constexpr unsigned MATRIX_WORDS = 32, PART_WORDS = 4 * MATRIX_WORDS, BLOCK_WORDS = 2 * PART_WORDS;
// Of a value head and a chunk: blocks of the scores, of the solution, and the sums of 64 bits.
constexpr unsigned SQUARE_WORDS = CHUNK_BLOCKS * CHUNK_BLOCKS * BLOCK_WORDS;
constexpr unsigned HEAD_WORDS = 2 * SQUARE_WORDS + 2 * CHUNK;

// Where what is prepared of a chunk lies. `gpu.rs` has the sum of it.
struct DeltaScratch {
  unsigned* words;
  unsigned chunks, key_heads, value_heads, dim_blocks;

  __device__ __forceinline__ unsigned rows_words() const {
    return CHUNK_BLOCKS * dim_blocks * BLOCK_WORDS;
  }
  // Normalized and scaled queries, `[token blocks, dim_blocks]`.
  __device__ __forceinline__ unsigned* queries(unsigned chunk, unsigned key_head) const {
    return words + (size_t(chunk) * key_heads + key_head) * 2 * rows_words();
  }
  // Normalized keys, as many.
  __device__ __forceinline__ unsigned* keys(unsigned chunk, unsigned key_head) const {
    return queries(chunk, key_head) + rows_words();
  }
  // What a token reads of earlier writes and its own, `[token blocks, token blocks]` of which the
  // lower triangle is there.
  __device__ __forceinline__ unsigned* scores(unsigned chunk, unsigned value_head) const {
    return words + size_t(chunks) * key_heads * 2 * rows_words() +
           (size_t(chunk) * value_heads + value_head) * HEAD_WORDS;
  }
  // What makes writes of the values without what the state holds for their keys; as the scores.
  __device__ __forceinline__ unsigned* solution(unsigned chunk, unsigned value_head) const {
    return scores(chunk, value_head) + SQUARE_WORDS;
  }
  // Sums of the logarithms of decays from the chunk's first token to each.
  __device__ __forceinline__ long long* sums(unsigned chunk, unsigned value_head) const {
    return reinterpret_cast<long long*>(solution(chunk, value_head) + SQUARE_WORDS);
  }
};

// Two numbers as bf16, and what these lack, as bf16: together 16 bits of mantissa.
__device__ __forceinline__ void split_pair(float x, float y, unsigned& high, unsigned& low) {
  const __nv_bfloat162 rounded = __floats2bfloat162_rn(x, y);
  const float2 back = __bfloat1622float2(rounded);
  const __nv_bfloat162 rest = __floats2bfloat162_rn(x - back.x, y - back.y);
  high = *reinterpret_cast<const unsigned*>(&rounded);
  low = *reinterpret_cast<const unsigned*>(&rest);
}

// d += a * b of operands in two parts. The product of both lower parts, 2^-18 of the whole, is left
// out.
__device__ __forceinline__ void mma_split(float (&d)[4], const unsigned (&a_high)[4],
                                          const unsigned (&a_low)[4],
                                          const unsigned (&b_high)[2],
                                          const unsigned (&b_low)[2]) {
  mma_m16n8k16<__nv_bfloat16>(d, a_low, b_high);
  mma_m16n8k16<__nv_bfloat16>(d, a_high, b_low);
  mma_m16n8k16<__nv_bfloat16>(d, a_high, b_high);
}
