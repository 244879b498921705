// Weights as matmul/device.rs lays them out, decoded to f32: what every Metal kernel that reads
// weights shares. It goes before each source, after common.metal.
//
// A *unit* is what four lanes load of a row at a time, 16 bytes each (32 of f32). It holds one or more
// *windows* of 32 columns, in each of which lane `q` of the four has the *octet* of columns
// `8 q .. 8 q + 8`.

// What the highest byte of a weight's format says.
constant constexpr uint NIBBLES = 0, BYTES = 1, E2M1 = 2, IQ4_NL = 3, E4M3 = 4;
constant constexpr uint BF16 = 5, F16 = 6, F32 = 7;

constant constexpr float E2M1_VALUES[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                            -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
constant constexpr float IQ4_NL_VALUES[16] = {-127.0f, -104.0f, -83.0f, -65.0f, -49.0f, -35.0f,
                                              -22.0f,  -10.0f,  1.0f,   13.0f,  25.0f,  38.0f,
                                              53.0f,   69.0f,   89.0f,  113.0f};

// How a weight is stored, from one word: log2 of the columns of a group, type of the scales (f32, f16,
// bf16, E8M0), whether there are biases, the zero point, the kind.
inline uint kind_of(uint format) { return format >> 24; }
inline uint group_log2_of(uint format) { return format & 0xff; }
inline uint scale_type_of(uint format) { return format >> 8 & 3; }
inline bool is_biased(uint format) { return (format >> 10 & 1) != 0; }
inline float zero_of(uint format) { return float(format >> 16 & 0xff); }

// Windows of a unit.
inline uint windows_of(uint kind) {
  return kind >= BF16 ? 1 : kind == BYTES || kind == E4M3 ? 2 : 4;
}
// Words of a unit of one row.
inline uint unit_words_of(uint kind) { return kind == F32 ? 32 : 16; }

// What a lane loads of a unit of a row; the second half of f32 only.
struct RawUnit {
  uint4 words, more;
};
inline RawUnit load_unit(device const uint* row, uint unit, uint q, uint kind) {
  device const uint4* from = (device const uint4*)(row + ulong(unit) * unit_words_of(kind));
  RawUnit raw;
  raw.words = from[kind == F32 ? 2 * q : q];
  raw.more = kind == F32 ? from[2 * q + 1] : uint4(0);
  return raw;
}
inline uint word_of(uint4 words, uint index) {
  return index == 0 ? words.x : index == 1 ? words.y : index == 2 ? words.z : words.w;
}

inline float e4m3_value(uint code) {
  const uint exponent = code >> 3 & 15, fraction = code & 7;
  const float magnitude = exponent == 0 ? float(fraction) * 0.001953125f
                                        : as_type<float>((exponent + 120) << 23 | fraction << 20);
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}

// The octet of window `window` of a unit in f32, codes less the zero point.
inline void decode_octet(thread float* values, RawUnit raw, uint window, uint kind, float zero) {
  if (kind == F32) {
    for (uint i = 0; i < 4; ++i) {
      values[i] = as_type<float>(word_of(raw.words, i));
      values[4 + i] = as_type<float>(word_of(raw.more, i));
    }
  } else if (kind == BF16 || kind == F16) {
    for (uint i = 0; i < 4; ++i) {
      const uint word = word_of(raw.words, i);
      if (kind == BF16) {
        values[2 * i] = as_type<float>(word << 16);
        values[2 * i + 1] = as_type<float>(word & 0xffff0000u);
      } else {
        values[2 * i] = float(as_type<half>(ushort(word & 0xffff)));
        values[2 * i + 1] = float(as_type<half>(ushort(word >> 16)));
      }
    }
  } else if (kind == BYTES || kind == E4M3) {
    for (uint i = 0; i < 8; ++i) {
      const uint code = word_of(raw.words, 2 * window + i / 4) >> 8 * (i % 4) & 0xff;
      values[i] = kind == BYTES ? float(code) - zero : e4m3_value(code);
    }
  } else {
    const uint word = word_of(raw.words, window);
    for (uint i = 0; i < 8; ++i) {
      const uint code = word >> 4 * (i / 2 + i % 2 * 4) & 0xf;
      values[i] = kind == NIBBLES ? float(code) - zero
                                  : kind == E2M1 ? E2M1_VALUES[code] : IQ4_NL_VALUES[code];
    }
  }
}

inline float power_of_two(uint exponent) {
  return as_type<float>(exponent == 0 ? 0x00400000u : exponent == 255 ? 0x7fc00000u : exponent << 23);
}
// Number `index` of a row of scales.
inline float scale_at(device const uint* row, uint index, uint type) {
  if (type == 0) return as_type<float>(row[index]);
  if (type == 1) return float(((device const half*)row)[index]);
  if (type == 2) return as_type<float>(uint(((device const ushort*)row)[index]) << 16);
  return power_of_two(((device const uchar*)row)[index]);
}
// A group's scale, and its bias; zero where none is stored.
inline float2 scale_of(device const uint* row, uint group, uint format) {
  const uint type = scale_type_of(format);
  if (!is_biased(format)) return float2(scale_at(row, group, type), 0.0f);
  return float2(scale_at(row, 2 * group, type), scale_at(row, 2 * group + 1, type));
}
