// `gated_delta_step`: a threadgroup for each value head of each sequence does all of a decode step
// between the projections: convolution, gates, delta update, gated norm. Bound by memory: 8 bytes move
// for each element of a state (128 KiB for a head of 128 by 128; 10 us at 400 GB/s for 32 heads), the
// rest is a hundredth of that. So each thread asks for its part of the state before anything else, and
// convolution and gates are computed while it is on its way.
//
// A norm needs all columns of a head, hence a threadgroup has all of them. Value heads that share a
// key head convolve its query and key each for itself. Their last inputs must not be replaced before
// all of these have read them: a counter for each key head tells the threadgroup that comes last,
// which replaces them. None waits for another, and none reads what another has written.

// Inputs that an output of the convolution is made of, at most.
constant constexpr uint STEP_INPUTS = 8;
// Elements of a value, at most.
constant constexpr uint STEP_VALUES = 512;
// Words of a sequence: row, slot, first of the slots that get a copy, and the end of these.
constant constexpr uint STEP_SEQUENCE = 4;

struct StepOperands {
  device float* out;
  device float* conv;
  device float* state;
  // Zeros before and after, `[sequences, key_heads]`.
  device atomic_uint* counters;
  device const float* qkv;
  device const float* weight;
  device const float* a;
  device const float* b;
  device const float* rate;
  device const float* dt_bias;
  device const float* gate;
  device const float* norm;
  device const uint* sequences;
  device const uint* copies;
};

struct StepSizes {
  uint key_heads, value_heads, key_dim, value_dim, tiled, inputs;
  float eps;
  bool wide;
};

// What the threads of a threadgroup pass each other.
struct StepShared {
  threadgroup float* query;
  threadgroup float* key;
  threadgroup float* values;
  threadgroup float* outs;
  threadgroup float2* pairs;
  threadgroup float* partial;
  threadgroup float* product;
  threadgroup uint* is_last;
};

// A threadgroup's sequence and head, and which of its threads this is.
struct StepPlace {
  ulong row;
  uint slot, copies, copies_end, sequence, head, key_head, index, threads;
};

// Channels of the convolution.
inline ulong step_width(thread const StepSizes& sizes) {
  return ulong(2) * sizes.key_heads * sizes.key_dim + ulong(sizes.value_heads) * sizes.value_dim;
}

// A channel of the convolution: query, key and value of the head, one after another.
inline ulong step_channel(thread const StepSizes& sizes, thread const StepPlace& place, uint i) {
  const ulong keys = ulong(sizes.key_heads) * sizes.key_dim;
  const ulong of_key = ulong(place.key_head) * sizes.key_dim;
  if (i < sizes.key_dim) return of_key + i;
  if (i < 2 * sizes.key_dim) return keys + of_key + (i - sizes.key_dim);
  return 2 * keys + ulong(place.head) * sizes.value_dim + (i - 2 * sizes.key_dim);
}

// The inputs that a channel's output is made of, zeros behind them.
struct StepWindow {
  float x[STEP_INPUTS];
};

inline StepWindow step_window(thread const StepOperands& s, thread const StepSizes& sizes,
                              thread const StepPlace& place, ulong channel) {
  const ulong channels = step_width(sizes);
  device const float* last = s.conv + place.slot * ((sizes.inputs - 1) * channels) + channel;
  StepWindow window;
#pragma unroll
  for (uint k = 0; k < STEP_INPUTS; ++k) {
    window.x[k] = 0.0f;
    if (k + 1 < sizes.inputs) window.x[k] = last[k * channels];
    if (k + 1 == sizes.inputs) window.x[k] = s.qkv[place.row * channels + channel];
  }
  return window;
}

inline float step_convolved(thread const StepOperands& s, thread const StepSizes& sizes,
                            StepWindow window, ulong channel) {
  const ulong channels = step_width(sizes);
  float sum = 0.0f;
#pragma unroll
  for (uint k = 0; k < STEP_INPUTS; ++k) {
    if (k < sizes.inputs) sum = fma(s.weight[k * channels + channel], window.x[k], sum);
  }
  return silu(sum);
}

// The slot of the sequence, and those that get a copy, by their number.
inline uint step_slot(thread const StepOperands& s, thread const StepPlace& place, uint number) {
  return number == 0 ? place.slot : s.copies[place.copies + number - 1];
}
inline uint step_slots(thread const StepPlace& place) {
  return place.copies_end - place.copies + 1;
}

// Writes all inputs but the oldest: what the next token sees.
inline void step_replace(thread const StepOperands& s, thread const StepSizes& sizes,
                         thread const StepPlace& place, StepWindow window, ulong channel) {
  const ulong channels = step_width(sizes);
  for (uint number = 0; number < step_slots(place); ++number) {
    const ulong slot = step_slot(s, place, number);
    device float* last = s.conv + slot * ((sizes.inputs - 1) * channels) + channel;
#pragma unroll
    for (uint k = 1; k < STEP_INPUTS; ++k) {
      if (k < sizes.inputs) last[(k - 1) * channels] = window.x[k];
    }
  }
}

// Convolves query, key and value of the head; replaces the inputs of the value.
inline void step_convolve(thread const StepOperands& s, thread const StepSizes& sizes,
                          thread const StepPlace& place, thread const StepShared& shared) {
  const uint keys = 2 * sizes.key_dim;
  for (uint i = place.index; i < keys + sizes.value_dim; i += place.threads) {
    const ulong channel = step_channel(sizes, place, i);
    const StepWindow window = step_window(s, sizes, place, channel);
    const float y = step_convolved(s, sizes, window, channel);
    if (i < sizes.key_dim) {
      shared.query[i] = y;
    } else if (i < keys) {
      shared.key[i - sizes.key_dim] = y;
    } else {
      shared.values[i - keys] = y;
      step_replace(s, sizes, place, window, channel);
    }
  }
}

// Key and query at their lengths, and whether this threadgroup is the last of its sequence and key
// head to have read their inputs. By the first simdgroup.
template <uint ROWS>
inline void step_prepare(thread const StepOperands& s, thread const StepSizes& sizes,
                         thread const StepPlace& place, thread const StepShared& shared) {
  const uint lane = place.index % SIMD;
  float q[ROWS / 4], k[ROWS / 4];
  for (uint m = 0; m < ROWS / 4; ++m) {
    const uint i = lane + SIMD * m;
    q[m] = i < sizes.key_dim ? shared.query[i] : 0.0f;
    k[m] = i < sizes.key_dim ? shared.key[i] : 0.0f;
  }
  const float product = scan_pairs<ROWS>(shared.pairs, q, k, sizes.key_dim, lane);
  if (lane > 0) return;
  *shared.product = product;
  device atomic_uint* counter = s.counters + place.sequence * sizes.key_heads + place.key_head;
  const uint before = atomic_fetch_add_explicit(counter, 1u, memory_order_relaxed);
  const bool last = before + 1 == sizes.value_heads / sizes.key_heads;
  if (last) atomic_store_explicit(counter, 0u, memory_order_relaxed);
  *shared.is_last = last ? 1u : 0u;
}

template <uint ROWS>
inline void step_store(thread const float4* rows, device float* to, thread const StepSizes& sizes,
                       uint columns, uint group) {
  for (uint m = 0; m < ROWS; ++m) {
    const uint i = group + 8 * m;
    const uint count = i < sizes.key_dim ? columns : 0u;
    scan_store(to + ulong(i) * sizes.value_dim, count, sizes.wide, rows[m]);
  }
}

template <uint ROWS>
inline void step_load(thread float4* rows, device const float* from, thread const StepSizes& sizes,
                      uint columns, uint group) {
  for (uint m = 0; m < ROWS; ++m) {
    const uint i = group + 8 * m;
    const uint count = i < sizes.key_dim ? columns : 0u;
    rows[m] = scan_load(from + ulong(i) * sizes.value_dim, count, sizes.wide);
  }
}

// Threadgroups `[value_heads, sequences]`.
template <uint ROWS>
inline void delta_step(thread const StepOperands& s, thread const StepSizes& sizes,
                       thread const StepPlace& place, thread const StepShared& shared) {
  const uint simdgroup = place.index / SIMD, lane = place.index % SIMD, group = lane / 4;
  const uint value_dim = sizes.value_dim, head = place.head;
  const uint stride = place.threads / SIMD * SCAN_COLUMNS;
  const uint first = simdgroup * SCAN_COLUMNS + lane % 4 * 4;
  const ulong head_len = ulong(sizes.key_dim) * value_dim;
  device const float* own = s.state + (ulong(place.slot) * sizes.value_heads + head) * head_len;
  float4 rows[ROWS];
  const uint first_columns = first < value_dim ? min(value_dim - first, 4u) : 0u;
  step_load<ROWS>(rows, own + first, sizes, first_columns, group);
  const ulong at = place.row * sizes.value_heads + head;
  const float decay = precise::exp(s.rate[head] * scan_softplus(s.a[at] + s.dt_bias[head]));
  const float strength = sigmoid(s.b[at]);
  step_convolve(s, sizes, place, shared);
  threadgroup_barrier(mem_flags::mem_device | mem_flags::mem_threadgroup);
  if (simdgroup == 0) step_prepare<ROWS>(s, sizes, place, shared);
  threadgroup_barrier(mem_flags::mem_device | mem_flags::mem_threadgroup);

  const float4 gates = float4(decay, strength, *shared.product, 0.0f);
  float squares = 0.0f;
  for (uint start = 0; start < value_dim; start += stride) {
    const uint column = start + first;
    const uint columns = column < value_dim ? min(value_dim - column, 4u) : 0u;
    if (start > 0) step_load<ROWS>(rows, own + column, sizes, columns, group);
    float4 value = float4(0.0f);
    if (columns > 0) value.x = shared.values[column];
    if (columns > 1) value.y = shared.values[column + 1];
    if (columns > 2) value.z = shared.values[column + 2];
    if (columns > 3) value.w = shared.values[column + 3];
    const float4 out = scan_advance<ROWS>(rows, shared.pairs, gates, value, group);
    for (uint number = 0; number < step_slots(place); ++number) {
      const ulong slot = step_slot(s, place, number);
      device float* to = s.state + (slot * sizes.value_heads + head) * head_len + column;
      step_store<ROWS>(rows, to, sizes, columns, group);
    }
    if (lane < 4) {
      if (columns > 0) shared.outs[column] = out.x;
      if (columns > 1) shared.outs[column + 1] = out.y;
      if (columns > 2) shared.outs[column + 2] = out.z;
      if (columns > 3) shared.outs[column + 3] = out.w;
      squares = add_squares(squares, out);
    }
  }
  // Beyond a value's end there are zeros.
  squares = threadgroup_sum(squares, shared.partial, place.index, place.threads);
  const float scale = 1.0f / precise::sqrt(squares / float(value_dim) + sizes.eps);
  for (uint i = place.index; i < value_dim; i += place.threads) {
    const float gate = silu(s.gate[at * value_dim + i]);
    s.out[at * value_dim + i] = shared.outs[i] * scale * s.norm[i] * gate;
  }
  if (*shared.is_last == 0) return;
  for (uint i = place.index; i < 2 * sizes.key_dim; i += place.threads) {
    const ulong channel = step_channel(sizes, place, i);
    step_replace(s, sizes, place, step_window(s, sizes, place, channel), channel);
  }
}

// For key heads of up to 64, 128 and 256 elements: 32, 64 and 128 registers of state.
#define GATED_DELTA_STEP(NAME, ROWS)                                                               \
  kernel void NAME(                                                                                \
      device float* out [[buffer(0)]], device float* conv [[buffer(1)]],                           \
      device float* state [[buffer(2)]], device atomic_uint* counters [[buffer(3)]],               \
      device const float* qkv [[buffer(4)]], device const float* weight [[buffer(5)]],             \
      device const float* a [[buffer(6)]], device const float* b [[buffer(7)]],                    \
      device const float* rate [[buffer(8)]], device const float* dt_bias [[buffer(9)]],           \
      device const float* gate [[buffer(10)]], device const float* norm [[buffer(11)]],            \
      device const uint* sequences [[buffer(12)]], device const uint* copies [[buffer(13)]],       \
      constant uint& key_heads [[buffer(14)]], constant uint& value_heads [[buffer(15)]],          \
      constant uint& key_dim [[buffer(16)]], constant uint& value_dim [[buffer(17)]],              \
      constant uint& tiled [[buffer(18)]], constant uint& inputs [[buffer(19)]],                   \
      constant float& eps [[buffer(20)]], constant uint& wide [[buffer(21)]],                      \
      uint3 group [[threadgroup_position_in_grid]], uint index [[thread_index_in_threadgroup]],    \
      uint threads [[threads_per_threadgroup]]) {                                                  \
    threadgroup float query[ROWS * 8];                                                             \
    threadgroup float key[ROWS * 8];                                                               \
    threadgroup float values[STEP_VALUES];                                                         \
    threadgroup float outs[STEP_VALUES];                                                           \
    threadgroup float2 pairs[ROWS * 8];                                                            \
    threadgroup float partial[SIMD];                                                               \
    threadgroup float product[1];                                                                  \
    threadgroup uint is_last[1];                                                                   \
    const StepOperands s = {out, conv, state,   counters, qkv,  weight,    a,                      \
                            b,   rate, dt_bias, gate,     norm, sequences, copies};                \
    const StepSizes sizes = {key_heads, value_heads, key_dim, value_dim,                           \
                             tiled,     inputs,      eps,     wide != 0};                          \
    device const uint* sequence = sequences + group.y * STEP_SEQUENCE;                             \
    const uint key_head = tiled != 0 ? group.x % key_heads : group.x / (value_heads / key_heads);  \
    const StepPlace place = {sequence[0], sequence[1], sequence[2], sequence[3], group.y,          \
                             group.x,     key_head,    index,       threads};                      \
    const StepShared shared = {query, key, values, outs, pairs, partial, product, is_last};        \
    delta_step<ROWS>(s, sizes, place, shared);                                                     \
  }
GATED_DELTA_STEP(gated_delta_step_64, 8)
GATED_DELTA_STEP(gated_delta_step_128, 16)
GATED_DELTA_STEP(gated_delta_step_256, 32)
