// `expert_matmul`: pairs of one expert times some outputs of it, for each threadgroup. Grids have a
// row for as many blocks of pairs as any choice may make, surplus ones are without pairs, times
// tiles of outputs.
//
// With few pairs for each expert (`expert_gemv_*`) the simdgroups of a threadgroup have 16 outputs
// each, or share them, unit by unit of inputs: four threads read 16 bytes each of two rows of the
// weight, and multiply in f32. Activations are read once for both rows; a group's scale and bias
// multiply once for 8 inputs. Floor: the bytes of the chosen experts over the bandwidth.
//
// With many (`expert_gemm`) a threadgroup has 32 pairs times 64 outputs and goes over windows of 32
// inputs, which it decodes into threadgroup memory for simdgroup matrices of f32: they are about as
// fast as those of 16 bits, and exact. While it multiplies, the next window is on its way into
// registers. Floor: 2 * pairs * outputs * inputs operations over the rate of f32.

constant constexpr uint GEMV_OUTPUTS = 16, GEMV_SIMDS = 8;
// Pairs whose sums a thread keeps at a time; others pass the weights again.
constant constexpr uint GEMV_PAIRS = 4;
constant constexpr uint GEMM_PAIRS = 32, GEMM_OUTPUTS = 64, GEMM_THREADS = 128;
// Elements between rows of a window in threadgroup memory.
constant constexpr uint GEMM_STRIDE = 36;

// A stack of experts, one after another, and where its results go.
struct ExpertStack {
  device float* out;  // [pairs, outputs]
  device const uint* codes;
  device const uint* scales;
  uint row_words, scale_words, format, outputs;
};

struct ExpertJob {
  device float* out;        // of the first pair
  device const float* x;    // of the first pair, or of the first row where pairs read rows
  device const uint* rows;  // rows that the pairs read, if they read rows
  device const uint* codes;
  device const uint* scales;
  uint row_words, scale_words, format;
  uint outputs, inputs, first_output, pairs;
  bool gather, vectors;
};

// Two stacks with the same input, as gate and up; the second may have no outputs.
#define EXPERT_PARAMETERS                                                                         \
  device float *out_0 [[buffer(0)]], device const uint *codes_0 [[buffer(1)]],                    \
      device const uint *scales_0 [[buffer(2)]], constant uint &row_words_0 [[buffer(3)]],        \
      constant uint &scale_words_0 [[buffer(4)]], constant uint &format_0 [[buffer(5)]],          \
      constant uint &outputs_0 [[buffer(6)]], device float *out_1 [[buffer(7)]],                  \
      device const uint *codes_1 [[buffer(8)]], device const uint *scales_1 [[buffer(9)]],        \
      constant uint &row_words_1 [[buffer(10)]], constant uint &scale_words_1 [[buffer(11)]],     \
      constant uint &format_1 [[buffer(12)]], constant uint &outputs_1 [[buffer(13)]],            \
      device const float *x [[buffer(14)]], device const uint *pair_rows [[buffer(15)]],          \
      device const uint4 *blocks [[buffer(16)]], constant uint &inputs [[buffer(17)]],            \
      constant uint &gather [[buffer(18)]], constant uint &vectors [[buffer(19)]],                \
      uint3 group [[threadgroup_position_in_grid]], uint index [[thread_index_in_threadgroup]]

// The work of threadgroup (x, y): the pairs of block x of the list, `OUTPUTS` outputs from tile y
// on.
#define EXPERT_JOB(OUTPUTS)                                                                       \
  ExpertStack stacks[2] = {                                                                       \
      {out_0, codes_0, scales_0, row_words_0, scale_words_0, format_0, outputs_0},                \
      {out_1, codes_1, scales_1, row_words_1, scale_words_1, format_1, outputs_1}};               \
  const uint tile_outputs = OUTPUTS, tiles = (outputs_0 + tile_outputs - 1) / tile_outputs;       \
  ExpertJob job = expert_job(stacks[group.y < tiles ? 0 : 1], blocks[group.x]);                   \
  job.x = gather != 0 ? x : x + ulong(blocks[group.x].y) * inputs;                                \
  job.rows = pair_rows + blocks[group.x].y;                                                       \
  job.gather = gather != 0;                                                                       \
  job.vectors = vectors != 0;                                                                     \
  job.inputs = inputs;                                                                            \
  job.first_output = (group.y < tiles ? group.y : group.y - tiles) * tile_outputs;

inline ExpertJob expert_job(ExpertStack stack, uint4 block) {
  const ulong expert = block.x;
  ExpertJob job;
  job.out = stack.out + ulong(block.y) * stack.outputs;
  job.codes = stack.codes + expert * stack.outputs * stack.row_words;
  job.scales = stack.scales + expert * stack.outputs * stack.scale_words;
  job.row_words = stack.row_words;
  job.scale_words = stack.scale_words;
  job.format = stack.format;
  job.outputs = stack.outputs;
  job.pairs = block.z;
  return job;
}

// Eight activations of a pair from `column` on; zeros beyond the end, and all of them where the
// pair is not `live`.
inline void expert_octet(thread float* values, thread const ExpertJob& job, uint pair, uint column,
                         bool live) {
  if (!live) {
    for (uint i = 0; i < 8; ++i) values[i] = 0.0f;
    return;
  }
  device const float* row = job.x + ulong(job.gather ? job.rows[pair] : pair) * job.inputs;
  if (job.vectors && column + 8 <= job.inputs) {
    device const float4* from = (device const float4*)(row + column);
    const float4 low = from[0], high = from[1];
    values[0] = low.x, values[1] = low.y, values[2] = low.z, values[3] = low.w;
    values[4] = high.x, values[5] = high.y, values[6] = high.z, values[7] = high.w;
  } else {
    for (uint i = 0; i < 8; ++i) values[i] = column + i < job.inputs ? row[column + i] : 0.0f;
  }
}

// A group's scale and bias at a column; of plain numbers one and zero.
inline float2 expert_scale(device const uint* row, uint column, uint kind, uint format) {
  if (kind >= BF16) return float2(1.0f, 0.0f);
  return scale_of(row, column >> group_log2_of(format), format);
}

// Adds a thread's octets of both its rows times those of `count` pairs from `first` on.
template <uint KIND>
inline void expert_unit(thread float* sums, thread const ExpertJob& job, thread const RawUnit* raw,
                        device const uint* scales_0, device const uint* scales_1, uint unit,
                        uint q, uint first, uint count) {
  const uint windows = windows_of(KIND);
  const float zero = zero_of(job.format);
  for (uint window = 0; window < windows; ++window) {
    const uint column = (unit * windows + window) * 32 + 8 * q;
    if (column >= job.inputs) break;
    float values_0[8], values_1[8], x[8];
    decode_octet(values_0, raw[0], window, KIND, zero);
    decode_octet(values_1, raw[1], window, KIND, zero);
    const float2 scale_0 = expert_scale(scales_0, column, KIND, job.format);
    const float2 scale_1 = expert_scale(scales_1, column, KIND, job.format);
    for (uint pair = 0; pair < GEMV_PAIRS; ++pair) {
      if (pair >= count) break;
      expert_octet(x, job, first + pair, column, true);
      float products_0 = 0.0f, products_1 = 0.0f, sum = 0.0f;
      for (uint i = 0; i < 8; ++i) {
        products_0 += x[i] * values_0[i];
        products_1 += x[i] * values_1[i];
        sum += x[i];
      }
      sums[2 * pair] += scale_0.x * products_0;
      sums[2 * pair + 1] += scale_1.x * products_1;
      if (KIND < BF16 && is_biased(job.format)) {
        sums[2 * pair] += scale_0.y * sum;
        sums[2 * pair + 1] += scale_1.y * sum;
      }
    }
  }
}

// `partial` has the sums of all simdgroups, [GEMV_SIMDS][GEMV_PAIRS][GEMV_OUTPUTS]; `split` of them
// share outputs.
template <uint KIND>
inline void expert_gemv(thread const ExpertJob& job, uint split, threadgroup float* partial,
                        uint index) {
  const uint simd = index / SIMD, lane = index % SIMD, q = lane % 4;
  const uint units = (job.inputs + 32 * windows_of(KIND) - 1) / (32 * windows_of(KIND));
  const uint outputs = GEMV_SIMDS / split * GEMV_OUTPUTS;
  // Rows beyond the last are those of the last: their sums are not written.
  const uint output = job.first_output + simd / split * GEMV_OUTPUTS + lane / 4;
  const ulong row_0 = min(output, job.outputs - 1), row_1 = min(output + 8, job.outputs - 1);
  for (uint first = 0; first < job.pairs; first += GEMV_PAIRS) {
    const uint count = min(GEMV_PAIRS, job.pairs - first);
    float sums[2 * GEMV_PAIRS];
    for (uint i = 0; i < 2 * GEMV_PAIRS; ++i) sums[i] = 0.0f;
    for (uint unit = simd % split; unit < units; unit += split) {
      RawUnit raw[2];
      raw[0] = load_unit(job.codes + row_0 * job.row_words, unit, q, KIND);
      raw[1] = load_unit(job.codes + row_1 * job.row_words, unit, q, KIND);
      expert_unit<KIND>(sums, job, raw, job.scales + row_0 * job.scale_words,
                        job.scales + row_1 * job.scale_words, unit, q, first, count);
    }
    // Sums of the pairs before may still be read.
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = 0; i < 2 * GEMV_PAIRS; ++i) {
      sums[i] += simd_shuffle_xor(sums[i], 1);
      sums[i] += simd_shuffle_xor(sums[i], 2);
      const uint at = simd * GEMV_PAIRS * GEMV_OUTPUTS + i / 2 * GEMV_OUTPUTS + i % 2 * 8;
      if (q == 0) partial[at + lane / 4] = sums[i];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = index; i < outputs * count; i += GEMV_SIMDS * SIMD) {
      const uint pair = i / outputs, inside = i % outputs, to = job.first_output + inside;
      const uint from = inside / GEMV_OUTPUTS * split;
      float sum = 0.0f;
      for (uint other = from; other < from + split; ++other)
        sum += partial[(other * GEMV_PAIRS + pair) * GEMV_OUTPUTS + inside % GEMV_OUTPUTS];
      if (to < job.outputs) job.out[ulong(first + pair) * job.outputs + to] = sum;
    }
  }
}

#define EXPERT_GEMV(NAME, KIND)                                                   \
  kernel void NAME(EXPERT_PARAMETERS, constant uint &split [[buffer(20)]]) {      \
    threadgroup float partial[GEMV_SIMDS * GEMV_PAIRS * GEMV_OUTPUTS];            \
    EXPERT_JOB(GEMV_SIMDS / split * GEMV_OUTPUTS)                                 \
    expert_gemv<KIND>(job, split, partial, index);                                \
  }

EXPERT_GEMV(expert_gemv_nibbles, NIBBLES)
EXPERT_GEMV(expert_gemv_bytes, BYTES)
EXPERT_GEMV(expert_gemv_e2m1, E2M1)
EXPERT_GEMV(expert_gemv_iq4_nl, IQ4_NL)
EXPERT_GEMV(expert_gemv_e4m3, E4M3)
EXPERT_GEMV(expert_gemv_bf16, BF16)
EXPERT_GEMV(expert_gemv_f16, F16)
EXPERT_GEMV(expert_gemv_f32, F32)

// What a thread has of a window: octet `index % 4` of pair `index / 4`, and of outputs `index / 4`
// and 32 more.
struct ExpertWindow {
  RawUnit raw[2];
  float2 scales[2];
  float x[8];
};

inline void expert_fetch(thread ExpertWindow& to, thread const ExpertJob& job, uint first,
                         uint window, uint index) {
  const uint kind = kind_of(job.format), windows = windows_of(kind);
  const uint q = index % 4, column = 32 * window + 8 * q, pair = first + index / 4;
  expert_octet(to.x, job, pair, column, pair < job.pairs);
  for (uint i = 0; i < 2; ++i) {
    // Rows beyond the last are those of the last: their products are not written.
    const uint inside = index / 4 + i * GEMM_THREADS / 4;
    const ulong output = min(job.first_output + inside, job.outputs - 1);
    if (window % windows == 0)
      to.raw[i] = load_unit(job.codes + output * job.row_words, window / windows, q, kind);
    // Zeros beyond the last column are of the last group.
    to.scales[i] = expert_scale(job.scales + output * job.scale_words,
                                min(column, job.inputs - 1), kind, job.format);
  }
}

inline void expert_store(thread const ExpertWindow& from, threadgroup float* xs,
                         threadgroup float* ws, uint format, uint window, uint index) {
  const uint kind = kind_of(format), windows = windows_of(kind);
  const uint at = index / 4 * GEMM_STRIDE + index % 4 * 8;
  for (uint j = 0; j < 8; ++j) xs[at + j] = from.x[j];
  for (uint i = 0; i < 2; ++i) {
    float values[8];
    decode_octet(values, from.raw[i], window % windows, kind, zero_of(format));
    threadgroup float* to = ws + at + i * (GEMM_THREADS / 4) * GEMM_STRIDE;
    for (uint j = 0; j < 8; ++j) to[j] = values[j] * from.scales[i].x + from.scales[i].y;
  }
}

// Adds a window's products: a simdgroup has 16 pairs from `left` on times 32 outputs from `right`
// on.
inline void expert_multiply(thread simdgroup_float8x8* sums, threadgroup const float* xs,
                            threadgroup const float* ws, uint left, uint right) {
  for (uint k = 0; k < 32; k += 8) {
    simdgroup_float8x8 a[2], b[4];
    for (uint i = 0; i < 2; ++i)
      simdgroup_load(a[i], xs + (left + 8 * i) * GEMM_STRIDE + k, GEMM_STRIDE);
    for (uint i = 0; i < 4; ++i)
      simdgroup_load(b[i], ws + (right + 8 * i) * GEMM_STRIDE + k, GEMM_STRIDE, 0, true);
    for (uint i = 0; i < 8; ++i)
      simdgroup_multiply_accumulate(sums[i], a[i / 4], b[i % 4], sums[i]);
  }
}

kernel void expert_gemm(EXPERT_PARAMETERS) {
  threadgroup float shared[(GEMM_PAIRS + GEMM_OUTPUTS) * GEMM_STRIDE];
  threadgroup float* xs = shared;
  threadgroup float* ws = shared + GEMM_PAIRS * GEMM_STRIDE;
  EXPERT_JOB(GEMM_OUTPUTS)
  const uint simd = index / SIMD, left = simd % 2 * 16, right = simd / 2 * 32;
  const uint windows = (job.inputs + 31) / 32;
  for (uint first = 0; first < job.pairs; first += GEMM_PAIRS) {
    simdgroup_float8x8 sums[8];
    for (uint i = 0; i < 8; ++i) sums[i] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    ExpertWindow loaded;
    if (windows > 0) expert_fetch(loaded, job, first, 0, index);
    for (uint window = 0; window < windows; ++window) {
      threadgroup_barrier(mem_flags::mem_threadgroup);
      expert_store(loaded, xs, ws, job.format, window, index);
      threadgroup_barrier(mem_flags::mem_threadgroup);
      if (window + 1 < windows) expert_fetch(loaded, job, first, window + 1, index);
      expert_multiply(sums, xs, ws, left, right);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = 0; i < 8; ++i)
      simdgroup_store(sums[i], shared + (left + i / 4 * 8) * GEMM_OUTPUTS + right + i % 4 * 8,
                      GEMM_OUTPUTS);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = index; i < GEMM_PAIRS * GEMM_OUTPUTS; i += GEMM_THREADS) {
      const uint pair = first + i / GEMM_OUTPUTS, output = job.first_output + i % GEMM_OUTPUTS;
      if (pair < job.pairs && output < job.outputs)
        job.out[ulong(pair) * job.outputs + output] = shared[i];
    }
  }
}
