// `embedding`: a block decodes a row. Threads take its octets in the order of their columns; what is
// read is cached meanwhile, as 16 bytes have several. Bytes of a row of codes and scales are read, 4
// bytes for each element written.
#include "../matmul/weights.cuh"

extern "C" __global__ void __launch_bounds__(256)
    embedding(float* out, const unsigned* codes, const unsigned* scales, const unsigned* ids,
              unsigned row_words, unsigned scale_words, unsigned word, unsigned dim) {
  const WeightFormat format = {word};
  const Kind kind = format.kind();
  const size_t row = ids[blockIdx.x];
  codes += row * row_words;
  scales += row * scale_words;
  out += static_cast<size_t>(blockIdx.x) * dim;
  const unsigned windows = windows_of(kind);
  for (unsigned octet = threadIdx.x; 8 * octet < dim; octet += blockDim.x) {
    const unsigned window = octet / 4, column = 8 * octet;
    float values[8];
    const AnyRaw raw = load_any(codes, window / windows, octet % 4, kind);
    decode_any(values, raw, window % windows, format);
    if (!is_plain(kind)) {
      const RawScale stored = load_scale(scales, column >> format.group_log2(), format);
      const float2 scale = scale_of(stored, format);
      // Rounded twice, as on the CPU.
      for (unsigned i = 0; i < 8; ++i) {
        values[i] = __fmul_rn(scale.x, values[i]);
        if (format.biased()) values[i] = __fadd_rn(values[i], scale.y);
      }
    }
    for (unsigned i = 0; i < 8; ++i)
      if (column + i < dim) out[column + i] = values[i];
  }
}
