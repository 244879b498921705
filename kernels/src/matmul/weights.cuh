// Weights as `device.rs` lays them out, decoded: what every kernel that reads weights shares.
//
// A *unit* is what four lanes load of a row at a time, 16 bytes each (32 of f32). It holds one or more
// *windows* of 32 columns, in each of which lane `q` of the four has the *octet* of columns
// `8 q .. 8 q + 8`. Codes decode to pairs of bf16, exactly: integers below 257 and minifloats of up to
// four significant bits fit; scales and biases of groups are applied to sums of products in f32.
#pragma once

#include "../gpu/cuda.cuh"

enum class Kind : unsigned { NIBBLES, BYTES, E2M1, IQ4_NL, E4M3, BF16, F16, F32 };
enum class ScaleType : unsigned { F32, F16, BF16, E8M0 };

// How a weight is stored, from one word (`device_format.rs` makes it).
struct WeightFormat {
  unsigned word;
  __device__ Kind kind() const { return static_cast<Kind>(word >> 24); }
  // Columns of a group are two to the power of this; not of plain numbers.
  __device__ unsigned group_log2() const { return word & 0xff; }
  __device__ ScaleType scale_type() const { return static_cast<ScaleType>(word >> 8 & 3); }
  __device__ bool biased() const { return word >> 10 & 1; }
  // Taken off codes.
  __device__ unsigned zero() const { return word >> 16 & 0xff; }
};

// A weight, row by row; `rows` outputs.
struct Weight {
  const unsigned* codes;
  const unsigned* scales;
  unsigned row_words, scale_words;
  WeightFormat format;
};

__host__ __device__ constexpr bool is_plain(Kind kind) { return kind >= Kind::BF16; }
// Windows of a unit.
__host__ __device__ constexpr unsigned windows_of(Kind kind) {
  return is_plain(kind) ? 1 : kind == Kind::BYTES || kind == Kind::E4M3 ? 2 : 4;
}
// Words of a unit of one row.
__host__ __device__ constexpr unsigned unit_words_of(Kind kind) {
  return kind == Kind::F32 ? 32 : 16;
}
// Parts in bf16 that are together just what an element is.
__host__ __device__ constexpr int parts_of(Kind kind) {
  return kind == Kind::F32 ? 3 : kind == Kind::F16 ? 2 : 1;
}

// Pairs of bf16.

__device__ __forceinline__ unsigned bits_of(__nv_bfloat162 pair) {
  return *reinterpret_cast<unsigned*>(&pair);
}
__device__ __forceinline__ __nv_bfloat162 pair_of(unsigned bits) {
  return *reinterpret_cast<__nv_bfloat162*>(&bits);
}
__device__ __forceinline__ unsigned round_pair(float low, float high) {
  return bits_of(__floats2bfloat162_rn(low, high));
}
__device__ __forceinline__ float low_of(unsigned pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_of(unsigned pair) {
  return __uint_as_float(pair & 0xffff0000u);
}
// The parts of two numbers: each what is left of it, rounded.
template <int PARTS>
__device__ __forceinline__ void split_pair(float low, float high, unsigned (&parts)[PARTS]) {
#pragma unroll
  for (int part = 0; part < PARTS; ++part) {
    parts[part] = round_pair(low, high);
    low -= low_of(parts[part]);
    high -= high_of(parts[part]);
  }
}

// What a lane loads of a unit of a row.
template <Kind K> struct Raw {
  uint4 words[K == Kind::F32 ? 2 : 1];
};
template <Kind K>
__device__ __forceinline__ Raw<K> load_unit(const unsigned* row, unsigned unit, unsigned q) {
  const uint4* from = reinterpret_cast<const uint4*>(row + static_cast<size_t>(unit) * unit_words_of(K));
  Raw<K> raw;
  if constexpr (K == Kind::F32) {
    raw.words[0] = __ldcs(from + 2 * q);
    raw.words[1] = __ldcs(from + 2 * q + 1);
  } else {
    raw.words[0] = __ldcs(from + q);
  }
  return raw;
}
__device__ __forceinline__ unsigned word_of(const uint4& words, unsigned index) {
  return index == 0 ? words.x : index == 1 ? words.y : index == 2 ? words.z : words.w;
}

// Codes of nibbles as bytes by the table of IQ4_NL, 128 more than they stand for.
__device__ __forceinline__ unsigned iq4_nl_bytes(unsigned nibbles) {
  const unsigned low = __byte_perm(0x3f2d1801, 0x766a5d4f, nibbles & 0x7777);
  const unsigned high = __byte_perm(0xa6998d81, 0xf1d9c5b5, nibbles & 0x7777);
  return __byte_perm(low, high, 0x3210 + ((nibbles & 0x8888) >> 1));
}
// A byte as a number, `minus` less: 2^23 and the byte is a float.
__device__ __forceinline__ float byte_less(unsigned bytes, unsigned index, float minus) {
  return __uint_as_float(__byte_perm(bytes, 0x4b000000, 0x7540 + index)) - minus;
}

// The octet of window `window` of a unit as four pairs of bf16, less the zero point.
template <Kind K>
__device__ __forceinline__ void decode_octet(unsigned (&pairs)[4], const Raw<K>& raw,
                                             unsigned window, unsigned zero) {
  static_assert(parts_of(K) == 1, "exact in bf16");
  const uint4& words = raw.words[0];
  if constexpr (K == Kind::NIBBLES) {
    const unsigned word = word_of(words, window);
    const __nv_bfloat162 less = __float2bfloat162_rn(static_cast<float>(128 + zero));
#pragma unroll
    for (int i = 0; i < 4; ++i)  // 128 and the code.
      pairs[i] = bits_of(__hsub2(pair_of((word >> 4 * i & 0x000f000f) | 0x43004300), less));
  } else if constexpr (K == Kind::E2M1) {
    const unsigned word = word_of(words, window);
    const __nv_bfloat162 scale = pair_of(0x7e807e80);  // 2^126: exponents are less by as much.
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned codes = word >> 4 * i & 0x000f000f;
      const unsigned small = (codes & 0x00070007) << 6 | (codes & 0x00080008) << 12;
      pairs[i] = bits_of(__hmul2(pair_of(small), scale));
    }
  } else if constexpr (K == Kind::IQ4_NL) {
    const unsigned word = word_of(words, window);
    const unsigned even = iq4_nl_bytes(word), odd = iq4_nl_bytes(word >> 16);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      pairs[i] = round_pair(byte_less(even, i, 8388608.0f + 128.0f),
                            byte_less(odd, i, 8388608.0f + 128.0f));
  } else if constexpr (K == Kind::BYTES) {
    const float less = 8388608.0f + static_cast<float>(zero);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned word = word_of(words, 2 * window + i / 2);
      pairs[i] = round_pair(byte_less(word, i % 2 * 2, less), byte_less(word, i % 2 * 2 + 1, less));
    }
  } else if constexpr (K == Kind::E4M3) {
    const __nv_bfloat162 scale = pair_of(0x7b807b80);  // 2^120
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned word = word_of(words, 2 * window + i / 2);
      const unsigned codes = __byte_perm(word, 0, i % 2 ? 0x4342 : 0x4140);
      const unsigned small = (codes & 0x007f007f) << 4 | (codes & 0x00800080) << 8;
      pairs[i] = bits_of(__hmul2(pair_of(small), scale));
    }
  } else {
    pairs[0] = words.x, pairs[1] = words.y, pairs[2] = words.z, pairs[3] = words.w;
  }
}

// The octet as parts in bf16, which are together just what it holds.
template <Kind K>
__device__ __forceinline__ void decode_parts(unsigned (&parts)[parts_of(K)][4], const Raw<K>& raw,
                                             unsigned window, unsigned zero) {
  if constexpr (parts_of(K) == 1) {
    decode_octet<K>(parts[0], raw, window, zero);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float low, high;
      if constexpr (K == Kind::F16) {
        const unsigned word = word_of(raw.words[0], i);
        low = __half2float(__ushort_as_half(static_cast<unsigned short>(word)));
        high = __half2float(__ushort_as_half(static_cast<unsigned short>(word >> 16)));
      } else {
        low = __uint_as_float(word_of(raw.words[i / 2], i % 2 * 2));
        high = __uint_as_float(word_of(raw.words[i / 2], i % 2 * 2 + 1));
      }
      unsigned pair[parts_of(K)];
      split_pair(low, high, pair);
#pragma unroll
      for (int part = 0; part < parts_of(K); ++part) parts[part][i] = pair[part];
    }
  }
}

// The octet in f32.
template <Kind K>
__device__ __forceinline__ void decode_values(float (&values)[8], const Raw<K>& raw,
                                              unsigned window, unsigned zero) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (K == Kind::F32) {
      values[2 * i] = __uint_as_float(word_of(raw.words[i / 2], i % 2 * 2));
      values[2 * i + 1] = __uint_as_float(word_of(raw.words[i / 2], i % 2 * 2 + 1));
    } else if constexpr (K == Kind::F16) {
      const unsigned word = word_of(raw.words[0], i);
      values[2 * i] = __half2float(__ushort_as_half(static_cast<unsigned short>(word)));
      values[2 * i + 1] = __half2float(__ushort_as_half(static_cast<unsigned short>(word >> 16)));
    } else {
      unsigned pairs[4];
      decode_octet<K>(pairs, raw, window, zero);
      values[2 * i] = low_of(pairs[i]);
      values[2 * i + 1] = high_of(pairs[i]);
    }
  }
}

// A group's scale and bias as they are stored, so that loading them does not wait for them.
struct RawScale {
  unsigned scale, bias;
};
__device__ __forceinline__ RawScale load_scale(const unsigned* row, unsigned group,
                                               WeightFormat format) {
  const bool biased = format.biased();
  RawScale raw = {0, 0};
  if (format.scale_type() == ScaleType::F32) {
    raw.scale = row[biased ? 2 * group : group];
    if (biased) raw.bias = row[2 * group + 1];
  } else if (format.scale_type() == ScaleType::E8M0) {
    if (biased)
      raw.scale = reinterpret_cast<const unsigned short*>(row)[group];
    else
      raw.scale = reinterpret_cast<const unsigned char*>(row)[group];
  } else if (biased) {
    raw.scale = row[group];
  } else {
    raw.scale = reinterpret_cast<const unsigned short*>(row)[group];
  }
  return raw;
}
__device__ __forceinline__ float power_of_two(unsigned exponent) {
  return __uint_as_float(exponent == 0 ? 0x00400000 : exponent == 255 ? 0x7fc00000 : exponent << 23);
}
// The scale, and the bias behind it; a bias that is not stored is zero.
__device__ __forceinline__ float2 scale_of(RawScale raw, WeightFormat format) {
  switch (format.scale_type()) {
    case ScaleType::F32:
      return make_float2(__uint_as_float(raw.scale), __uint_as_float(raw.bias));
    case ScaleType::F16:
      return make_float2(__half2float(__ushort_as_half(static_cast<unsigned short>(raw.scale))),
                         __half2float(__ushort_as_half(static_cast<unsigned short>(raw.scale >> 16))));
    case ScaleType::BF16:
      return make_float2(low_of(raw.scale), high_of(raw.scale));
    default:
      return make_float2(power_of_two(raw.scale & 0xff),
                         format.biased() ? power_of_two(raw.scale >> 8) : 0.0f);
  }
}

// The same for kernels that are told the kind of a weight when they run: room for every kind.
using AnyRaw = Raw<Kind::F32>;

__device__ __forceinline__ AnyRaw load_any(const unsigned* row, unsigned unit, unsigned q,
                                           Kind kind) {
  AnyRaw raw;
  if (kind == Kind::F32) {
    raw = load_unit<Kind::F32>(row, unit, q);
  } else {
    raw.words[0] = load_unit<Kind::NIBBLES>(row, unit, q).words[0];
    raw.words[1] = make_uint4(0, 0, 0, 0);
  }
  return raw;
}
template <Kind K>
__device__ __forceinline__ void decode_known(float (&values)[8], const AnyRaw& any, unsigned window,
                                             unsigned zero) {
  Raw<K> raw;
  raw.words[0] = any.words[0];
  decode_values<K>(values, raw, window, zero);
}
// The octet of window `window` of a unit in f32, codes less the zero point.
__device__ __forceinline__ void decode_any(float (&values)[8], const AnyRaw& raw, unsigned window,
                                           WeightFormat format) {
  const unsigned zero = format.zero();
  switch (format.kind()) {
    case Kind::NIBBLES: return decode_known<Kind::NIBBLES>(values, raw, window, zero);
    case Kind::BYTES: return decode_known<Kind::BYTES>(values, raw, window, zero);
    case Kind::E2M1: return decode_known<Kind::E2M1>(values, raw, window, zero);
    case Kind::IQ4_NL: return decode_known<Kind::IQ4_NL>(values, raw, window, zero);
    case Kind::E4M3: return decode_known<Kind::E4M3>(values, raw, window, zero);
    case Kind::BF16: return decode_known<Kind::BF16>(values, raw, window, zero);
    case Kind::F16: return decode_known<Kind::F16>(values, raw, window, zero);
    case Kind::F32: return decode_values<Kind::F32>(values, raw, window, zero);
  }
}
