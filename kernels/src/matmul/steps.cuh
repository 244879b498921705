// Rows of a weight in steps of 64 inputs, two windows, as kernels go over them that decode codes
// into the fragments of tensor cores.
#pragma once

#include "fragments.cuh"

// Inputs of a step.
constexpr unsigned STEP_INPUTS = 64;

// How the inputs of a step are stored in a row of a weight.
enum class Store : unsigned { NIBBLES, BYTES, HALVES, WORDS };

__host__ __device__ constexpr bool is_plain(Store store) { return store >= Store::HALVES; }
// Words of a row that a lane has of a step: two octets.
__host__ __device__ constexpr unsigned step_words_of(Store store) {
  return 2u << static_cast<unsigned>(store);
}

__device__ __forceinline__ void put_four(unsigned* to, uint4 from) {
  to[0] = from.x, to[1] = from.y, to[2] = from.z, to[3] = from.w;
}

// Loads octet `q` of both windows of a step of a row that has `row_words` words.
template <Store S>
__device__ __forceinline__ void load_step(unsigned (&words)[step_words_of(S)], const unsigned* row,
                                          unsigned row_words, unsigned index, unsigned q) {
  if constexpr (S == Store::NIBBLES) {
    // Half of a unit; the other half comes from the first-level cache.
    const unsigned* from = row + index / 2 * 16 + 4 * q + index % 2 * 2;
    const uint2 two = *reinterpret_cast<const uint2*>(from);
    words[0] = two.x, words[1] = two.y;
  } else if constexpr (S == Store::BYTES) {
    put_four(words, *reinterpret_cast<const uint4*>(row + index * 16 + 4 * q));
  } else {
    constexpr unsigned OCTET = step_words_of(S) / 2;
#pragma unroll
    for (unsigned w = 0; w < 2; ++w)
#pragma unroll
      for (unsigned i = 0; i < OCTET; i += 4) {
        const unsigned at = (2 * index + w) * 4 * OCTET;
        uint4 four = make_uint4(0, 0, 0, 0);
        if (at < row_words) four = *reinterpret_cast<const uint4*>(row + at + OCTET * q + i);
        put_four(words + w * OCTET + i, four);
      }
  }
}

// The octet of window `w` of a step as parts in bf16.
template <Store S, int WP>
__device__ __forceinline__ void decode_step(unsigned (&parts)[WP][4],
                                            const unsigned (&words)[step_words_of(S)], unsigned w,
                                            WeightFormat format) {
  const Kind kind = format.kind();
  if constexpr (S == Store::NIBBLES) {
    const uint4 word = make_uint4(words[w], 0, 0, 0);
    if (kind == Kind::NIBBLES)
      decode_octet<Kind::NIBBLES>(parts[0], Raw<Kind::NIBBLES>{{word}}, 0, format.zero());
    else if (kind == Kind::E2M1)
      decode_octet<Kind::E2M1>(parts[0], Raw<Kind::E2M1>{{word}}, 0, 0);
    else
      decode_octet<Kind::IQ4_NL>(parts[0], Raw<Kind::IQ4_NL>{{word}}, 0, 0);
  } else if constexpr (S == Store::BYTES) {
    const uint4 two = make_uint4(words[2 * w], words[2 * w + 1], 0, 0);
    if (kind == Kind::BYTES)
      decode_octet<Kind::BYTES>(parts[0], Raw<Kind::BYTES>{{two}}, 0, format.zero());
    else
      decode_octet<Kind::E4M3>(parts[0], Raw<Kind::E4M3>{{two}}, 0, 0);
  } else if constexpr (S == Store::HALVES && WP == 1) {
    // bf16, as it is.
#pragma unroll
    for (int i = 0; i < 4; ++i) parts[0][i] = words[4 * w + i];
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float low, high;
      if constexpr (S == Store::HALVES) {
        const unsigned word = words[4 * w + i];
        low = __half2float(__ushort_as_half(static_cast<unsigned short>(word)));
        high = __half2float(__ushort_as_half(static_cast<unsigned short>(word >> 16)));
      } else {
        low = __uint_as_float(words[8 * w + 2 * i]);
        high = __uint_as_float(words[8 * w + 2 * i + 1]);
      }
      unsigned pair[WP];
      split_pair<WP>(low, high, pair);
#pragma unroll
      for (int part = 0; part < WP; ++part) parts[part][i] = pair[part];
    }
  }
}
