// `matmul`. With up to 8 rows a threadgroup has 8 outputs, and its simdgroups share the columns: four
// lanes read a row of the weight, 16 bytes each, and multiply in f32, each group by its scale and
// bias once for 8 columns. Floor: the bytes of the weight over the bandwidth. With more rows a
// threadgroup has 32 rows times 64 outputs, and goes over windows of 32 columns, which it decodes
// into threadgroup memory for simdgroup matrices of f32: they are about as fast as those of 16 bits,
// and exact. Floor: 2 * rows * outputs * inputs operations over the rate of f32.

constant constexpr uint FEW_OUTPUTS = 8, FEW_SIMDGROUPS = 8;

// `out[row, head, o] (+)= sum of x[row, head, i] * weight[o, i]`, for one head.
struct Product {
  device float* out;      // [rows, heads, outputs], from the head on
  device const float* x;  // [rows, heads, inputs], from the head on
  device const uint* codes;
  device const uint* scales;
  uint row_words, scale_words, format;
  uint outputs, inputs, rows;
  uint x_stride, out_stride;  // elements between rows
  bool add;
};

#define PRODUCT_PARAMETERS                                                                        \
  device float *out [[buffer(0)]], device const float *x [[buffer(1)]],                           \
      device const uint *codes [[buffer(2)]], device const uint *scales [[buffer(3)]],            \
      constant uint &row_words [[buffer(4)]], constant uint &scale_words [[buffer(5)]],           \
      constant uint &format [[buffer(6)]], constant uint &outputs [[buffer(7)]],                  \
      constant uint &inputs [[buffer(8)]], constant uint &rows [[buffer(9)]],                     \
      constant uint &add [[buffer(10)]], constant uint &heads [[buffer(11)]],                     \
      constant uint &first_head [[buffer(12)]], uint3 group [[threadgroup_position_in_grid]],     \
      uint index [[thread_index_in_threadgroup]], uint threads [[threads_per_threadgroup]]

// Head `first_head + HEAD` has the weight that many after the first of the stack.
#define PRODUCT(HEAD)                                                            \
  Product product;                                                               \
  product.out = out + ulong(first_head + HEAD) * outputs;                        \
  product.x = x + ulong(first_head + HEAD) * inputs;                             \
  product.codes = codes + ulong(HEAD) * outputs * row_words;                     \
  product.scales = scales + ulong(HEAD) * outputs * scale_words;                 \
  product.row_words = row_words;                                                 \
  product.scale_words = scale_words;                                             \
  product.format = format;                                                       \
  product.outputs = outputs;                                                     \
  product.inputs = inputs;                                                       \
  product.rows = rows;                                                           \
  product.x_stride = heads * inputs;                                             \
  product.out_stride = heads * outputs;                                          \
  product.add = add != 0;

inline void put(thread const Product& product, uint row, uint output, float value) {
  device float* to = product.out + ulong(row) * product.out_stride + output;
  *to = product.add ? *to + value : value;
}

// Eight elements of a row of activations from `column` on; zeros beyond the row's end, and all of
// them where the row is not `live`.
inline void load_octet(thread float* values, device const float* row, uint column, uint inputs,
                       bool live) {
  if (live && inputs % 4 == 0 && column + 8 <= inputs) {
    const float4 low = *(device const float4*)(row + column);
    const float4 high = *(device const float4*)(row + column + 4);
    values[0] = low.x, values[1] = low.y, values[2] = low.z, values[3] = low.w;
    values[4] = high.x, values[5] = high.y, values[6] = high.z, values[7] = high.w;
  } else {
    for (uint i = 0; i < 8; ++i) values[i] = live && column + i < inputs ? row[column + i] : 0.0f;
  }
}

// `shared` has the sums of all simdgroups, [FEW_SIMDGROUPS][ROWS][FEW_OUTPUTS].
template <uint KIND, uint ROWS>
inline void few_rows(thread const Product& product, threadgroup float* shared, uint block,
                     uint index, uint threads) {
  const uint lane = index % SIMD, warp = index / SIMD, warps = threads / SIMD, q = lane % 4;
  // Rows beyond the last are those of the last: their sums are not written.
  const ulong weight_row = min(block * FEW_OUTPUTS + lane / 4, product.outputs - 1);
  device const uint* codes = product.codes + weight_row * product.row_words;
  device const uint* scales = product.scales + weight_row * product.scale_words;
  const uint windows = windows_of(KIND);
  const float zero = zero_of(product.format);
  float sums[ROWS];
  for (uint row = 0; row < ROWS; ++row) sums[row] = 0.0f;
  for (uint unit = warp; unit * 32 * windows < product.inputs; unit += warps) {
    const RawUnit raw = load_unit(codes, unit, q, KIND);
    for (uint window = 0; window < windows; ++window) {
      const uint column = (unit * windows + window) * 32 + 8 * q;
      if (column >= product.inputs) break;
      float values[8], x[8];
      decode_octet(values, raw, window, KIND, zero);
      const float2 scale = KIND >= BF16
          ? float2(1.0f, 0.0f)
          : scale_of(scales, column >> group_log2_of(product.format), product.format);
      for (uint row = 0; row < ROWS; ++row) {
        load_octet(x, product.x + ulong(row) * product.x_stride, column, product.inputs,
                   row < product.rows);
        float products = 0.0f, sum = 0.0f;
        for (uint i = 0; i < 8; ++i) {
          products += x[i] * values[i];
          sum += x[i];
        }
        sums[row] += scale.x * products;
        if (KIND < BF16 && is_biased(product.format)) sums[row] += scale.y * sum;
      }
    }
  }
  for (uint row = 0; row < ROWS; ++row) {
    sums[row] += simd_shuffle_xor(sums[row], 1);
    sums[row] += simd_shuffle_xor(sums[row], 2);
    if (q == 0) shared[(warp * ROWS + row) * FEW_OUTPUTS + lane / 4] = sums[row];
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = index; i < FEW_OUTPUTS * product.rows; i += threads) {
    const uint row = i / FEW_OUTPUTS, output = block * FEW_OUTPUTS + i % FEW_OUTPUTS;
    float sum = 0.0f;
    for (uint w = 0; w < warps; ++w) sum += shared[(w * ROWS + row) * FEW_OUTPUTS + i % FEW_OUTPUTS];
    if (output < product.outputs) put(product, row, output, sum);
  }
}

#define FEW(NAME, KIND, ROWS)                                              \
  kernel void NAME(PRODUCT_PARAMETERS) {                                   \
    threadgroup float shared[FEW_SIMDGROUPS * ROWS * FEW_OUTPUTS];         \
    PRODUCT(group.y)                                                       \
    few_rows<KIND, ROWS>(product, shared, group.x, index, threads);        \
  }
#define FEW_OF(NAME, KIND)      \
  FEW(matmul_##NAME##_1, KIND, 1) \
  FEW(matmul_##NAME##_2, KIND, 2) \
  FEW(matmul_##NAME##_4, KIND, 4) \
  FEW(matmul_##NAME##_8, KIND, 8)

FEW_OF(nibbles, NIBBLES)
FEW_OF(bytes, BYTES)
FEW_OF(e2m1, E2M1)
FEW_OF(iq4_nl, IQ4_NL)
FEW_OF(e4m3, E4M3)
FEW_OF(bf16, BF16)
FEW_OF(f16, F16)
FEW_OF(f32, F32)

constant constexpr uint TILE_ROWS = 32, TILE_OUTPUTS = 64, TILE_THREADS = 128;
// Elements between rows of a window in threadgroup memory.
constant constexpr uint TILE_STRIDE = 36;

// Decodes a window of the rows of activations and of the weight into threadgroup memory: octet
// `i % 4` of row `i / 4` is that of thread `i`.
struct Window {
  RawUnit raw[2];
};
inline void load_window(thread Window& loaded, thread const Product& product, threadgroup float* xs,
                        threadgroup float* ws, uint2 first, uint window, uint index) {
  const uint kind = kind_of(product.format), windows = windows_of(kind);
  const uint q = index % 4, column = 32 * window + 8 * q, row = first.x + index / 4;
  float values[8];
  load_octet(values, product.x + ulong(row) * product.x_stride, column, product.inputs,
             row < product.rows);
  for (uint j = 0; j < 8; ++j) xs[index / 4 * TILE_STRIDE + 8 * q + j] = values[j];
  for (uint i = 0; i < 2; ++i) {
    const uint inside = (index + i * TILE_THREADS) / 4;
    // Rows beyond the last are those of the last: their products are not written.
    const ulong output = min(first.y + inside, product.outputs - 1);
    if (window % windows == 0)
      loaded.raw[i] =
          load_unit(product.codes + output * product.row_words, window / windows, q, kind);
    decode_octet(values, loaded.raw[i], window % windows, kind, zero_of(product.format));
    if (kind < BF16) {
      // The zeros beyond the last column are of the last group.
      const uint group = min(column, product.inputs - 1) >> group_log2_of(product.format);
      const float2 scale =
          scale_of(product.scales + output * product.scale_words, group, product.format);
      for (uint j = 0; j < 8; ++j) values[j] = values[j] * scale.x + scale.y;
    }
    for (uint j = 0; j < 8; ++j) ws[inside * TILE_STRIDE + 8 * q + j] = values[j];
  }
}

kernel void matmul_gemm(PRODUCT_PARAMETERS) {
  threadgroup float shared[(TILE_ROWS + TILE_OUTPUTS) * TILE_STRIDE];
  threadgroup float* xs = shared;
  threadgroup float* ws = shared + TILE_ROWS * TILE_STRIDE;
  PRODUCT(group.z)
  // Each of the four simdgroups has 16 rows times 32 outputs.
  const uint warp = index / SIMD, left = warp % 2 * 16, right = warp / 2 * 32;
  uint2 first;
  first.x = group.y * TILE_ROWS;
  first.y = group.x * TILE_OUTPUTS;
  simdgroup_float8x8 sums[2][4];
  for (uint i = 0; i < 8; ++i) sums[i / 4][i % 4] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  Window loaded;
  for (uint window = 0; 32 * window < product.inputs; ++window) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    load_window(loaded, product, xs, ws, first, window, index);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint k = 0; k < 32; k += 8) {
      simdgroup_float8x8 a[2], b[4];
      for (uint i = 0; i < 2; ++i) simdgroup_load(a[i], xs + (left + 8 * i) * TILE_STRIDE + k, TILE_STRIDE);
      for (uint i = 0; i < 4; ++i)
        simdgroup_load(b[i], ws + (right + 8 * i) * TILE_STRIDE + k, TILE_STRIDE, 0, true);
      for (uint i = 0; i < 8; ++i)
        simdgroup_multiply_accumulate(sums[i / 4][i % 4], a[i / 4], b[i % 4], sums[i / 4][i % 4]);
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = 0; i < 8; ++i)
    simdgroup_store(sums[i / 4][i % 4],
                    shared + (left + i / 4 * 8) * TILE_OUTPUTS + right + i % 4 * 8, TILE_OUTPUTS);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = index; i < TILE_ROWS * TILE_OUTPUTS; i += threads) {
    const uint row = first.x + i / TILE_OUTPUTS, output = first.y + i % TILE_OUTPUTS;
    if (row < product.rows && output < product.outputs) put(product, row, output, shared[i]);
  }
}
