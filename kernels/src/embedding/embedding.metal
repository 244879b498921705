// `embedding`: a threadgroup decodes a row. Threads take its octets in the order of their columns;
// what is read is cached meanwhile, as 16 bytes have several. Bytes of a row of codes and scales are
// read, 4 bytes for each element written.

kernel void embedding(device float* out [[buffer(0)]],
                      device const uint* codes [[buffer(1)]],
                      device const uint* scales [[buffer(2)]],
                      device const uint* ids [[buffer(3)]],
                      constant uint& row_words [[buffer(4)]],
                      constant uint& scale_words [[buffer(5)]],
                      constant uint& format [[buffer(6)]],
                      constant uint& dim [[buffer(7)]],
                      uint3 group [[threadgroup_position_in_grid]],
                      uint index [[thread_index_in_threadgroup]],
                      uint threads [[threads_per_threadgroup]]) {
// A product is rounded before its bias is added, as on the CPU.
#pragma METAL fp contract(off)
  const uint kind = kind_of(format), windows = windows_of(kind);
  const ulong row = ids[group.x];
  codes += row * row_words;
  scales += row * scale_words;
  out += ulong(group.x) * dim;
  for (uint octet = index; 8 * octet < dim; octet += threads) {
    const uint window = octet / 4, column = 8 * octet;
    float values[8];
    const RawUnit raw = load_unit(codes, window / windows, octet % 4, kind);
    decode_octet(values, raw, window % windows, kind, zero_of(format));
    float2 scale = float2(1.0f, 0.0f);
    if (kind < BF16) scale = scale_of(scales, column >> group_log2_of(format), format);
    for (uint i = 0; i < 8 && column + i < dim; ++i) {
      float value = values[i];
      if (kind < BF16) value = scale.x * value;
      if (kind < BF16 && is_biased(format)) value = value + scale.y;
      out[column + i] = value;
    }
  }
}
