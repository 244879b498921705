// `gated_delta_step`: a block for each value head of each sequence does all of a decode step between
// the projections: convolution, gates, delta update, gated norm. Bound by memory: 8 bytes move for
// each element of a state (64 KiB read and 64 KiB written for a head of 128 by 128; with 32 heads 4.3
// MB a sequence, 0.9 us at 4.8 TB/s), the rest is a hundredth of that. So each thread asks for its
// part of the state, 64 registers, before anything else, and convolution and gates are computed while
// it is on its way; two blocks share a multiprocessor, so that one reads while the other computes.
//
// A norm needs all columns of a head, hence a block has all of them. Value heads that share a key head
// convolve its query and key each for itself, which reads 4 KiB once more from a cache. Their last
// inputs must not be replaced before all of these have read them: a counter for each key head tells
// the block that comes last, which replaces them. No block waits for another.
#include "../gated_delta/gated_delta_state.cuh"

namespace {

// Inputs that an output of the convolution is made of, at most.
constexpr unsigned STEP_INPUTS = 8;
// Elements of a value, at most.
constexpr unsigned STEP_VALUES = 512;
// Words of a sequence: row, slot, first of the slots that get a copy, and the end of these.
constexpr unsigned STEP_SEQUENCE = 4;

struct StepOperands {
  float* out;
  float* conv;
  float* state;
  // Zeros before and after, `[sequences, key_heads]`.
  unsigned* counters;
  const float* qkv;
  const float* weight;
  const float* a;
  const float* b;
  const float* rate;
  const float* dt_bias;
  const float* gate;
  const float* norm;
  const unsigned* sequences;
  const unsigned* copies;
  unsigned inputs;
  float eps;
  bool wide;
};

// The inputs that a channel's output is made of, zeros behind them.
struct StepWindow {
  float x[STEP_INPUTS];

  __device__ __forceinline__ void load(const StepOperands& s, size_t channels, const float* last,
                                       const float* row, size_t channel) {
#pragma unroll
    for (unsigned k = 0; k < STEP_INPUTS; ++k) {
      const float* from = k + 1 < s.inputs ? last + k * channels : row;
      x[k] = k < s.inputs ? from[channel] : 0.0f;
    }
  }
  __device__ __forceinline__ float convolved(const StepOperands& s, size_t channels,
                                             size_t channel) const {
    float weights[STEP_INPUTS], sum = 0.0f;
#pragma unroll
    for (unsigned k = 0; k < STEP_INPUTS; ++k)
      weights[k] = k < s.inputs ? s.weight[k * channels + channel] : 0.0f;
#pragma unroll
    for (unsigned k = 0; k < STEP_INPUTS; ++k) sum = fmaf(weights[k], x[k], sum);
    return silu(sum);
  }
  // Writes all but the oldest: what the next token sees.
  __device__ __forceinline__ void store(const StepOperands& s, size_t channels, float* last,
                                        size_t channel) const {
#pragma unroll
    for (unsigned k = 1; k < STEP_INPUTS; ++k)
      if (k < s.inputs) last[(k - 1) * channels + channel] = x[k];
  }
};

// A block's sequence and head.
struct StepPlace {
  size_t row;
  unsigned slot, copies, copies_end, head, key_head;

  // Calls `f` with the slot of the sequence and with those that get a copy.
  template <class F>
  __device__ __forceinline__ void for_slots(const StepOperands& s, F f) const {
    f(slot);
    for (unsigned copy = copies; copy < copies_end; ++copy) f(s.copies[copy]);
  }
};

// A channel of the convolution: query, key and value of the head, one after another.
__device__ __forceinline__ size_t step_channel(const DeltaSizes& sizes, const StepPlace& place,
                                               unsigned i) {
  if (i < sizes.key_dim) return sizes.query(0, place.key_head) + i;
  if (i < 2 * sizes.key_dim) return sizes.key(0, place.key_head) + (i - sizes.key_dim);
  return sizes.value(0, place.head) + (i - 2 * sizes.key_dim);
}

// Convolves channels of the head; where `replaced` says so, writes what the next token sees.
template <class F, class G>
__device__ __forceinline__ void step_channels(const StepOperands& s, const DeltaSizes& sizes,
                                              const StepPlace& place, unsigned count, F convolved,
                                              G replaced) {
  const size_t channels = sizes.width(), slot_len = (s.inputs - 1) * channels;
  for (unsigned i = threadIdx.x; i < count; i += blockDim.x) {
    const size_t channel = step_channel(sizes, place, i);
    StepWindow window;
    window.load(s, channels, s.conv + place.slot * slot_len, s.qkv + place.row * channels, channel);
    convolved(i, window, channel);
    if (replaced(i))
      place.for_slots(s, [&](size_t slot) {
        window.store(s, channels, s.conv + slot * slot_len, channel);
      });
  }
}

// Whether this block is the last of its sequence and key head to come here; by one thread.
__device__ __forceinline__ bool step_is_last(const StepOperands& s, const DeltaSizes& sizes,
                                             const StepPlace& place) {
  __threadfence();
  unsigned* counter = s.counters + blockIdx.y * sizes.key_heads + place.key_head;
  const bool last = atomicAdd(counter, 1u) + 1 == sizes.ratio();
  if (last) *counter = 0;
  __threadfence();
  return last;
}

// Blocks `[value_heads, sequences]`.
template <unsigned ROWS>
__device__ __forceinline__ void delta_step(const StepOperands& s, const DeltaSizes& sizes) {
  constexpr unsigned WIDTH = ROWS * 8;
  __shared__ float query[WIDTH];
  __shared__ float key[WIDTH];
  __shared__ float values[STEP_VALUES];
  __shared__ float outs[STEP_VALUES];
  __shared__ float2 pairs[WIDTH];
  __shared__ float product;
  __shared__ unsigned is_last;
  __shared__ float partial[WARP];
  const unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const unsigned stride = blockDim.x / WARP * SCAN_COLUMNS, value_dim = sizes.value_dim;
  const unsigned* sequence = s.sequences + blockIdx.y * STEP_SEQUENCE;
  const StepPlace place = {sequence[0], sequence[1], sequence[2],
                           sequence[3], blockIdx.x,  sizes.key_head(blockIdx.x)};
  const unsigned head = place.head;
  const unsigned first = warp * SCAN_COLUMNS + lane % 4 * 4;
  const auto columns_of = [&](unsigned column) {
    return column < value_dim ? min(value_dim - column, 4u) : 0u;
  };
  ScanState<ROWS> state;
  const float* own = s.state + sizes.state(place.slot, head);
  state.load(own + first, sizes, columns_of(first), s.wide);

  // What an element of the output is multiplied with, but for the scale of the norm.
  const size_t output = sizes.output(place.row, head);
  const auto factor = [&](unsigned i) {
    return i < value_dim ? s.norm[i] * silu(s.gate[output + i]) : 0.0f;
  };
  const float first_factor = factor(threadIdx.x);
  const size_t at = place.row * sizes.value_heads + head;
  const float decay = expf(delta_log_decay(s.a[at], s.dt_bias[head], s.rate[head]));
  const float strength = sigmoid(s.b[at]);

  const unsigned keys = 2 * sizes.key_dim;
  step_channels(
      s, sizes, place, keys + value_dim,
      [&](unsigned i, const StepWindow& window, size_t channel) {
        const float y = window.convolved(s, sizes.width(), channel);
        if (i < sizes.key_dim) {
          query[i] = y;
        } else if (i < keys) {
          key[i - sizes.key_dim] = y;
        } else {
          values[i - keys] = y;
        }
      },
      [&](unsigned i) { return i >= keys; });
  __syncthreads();
  if (warp == 0) {
    const float both = scan_pairs<ROWS>(pairs, query, key, sizes.key_dim);
    if (lane == 0) {
      product = both;
      is_last = step_is_last(s, sizes, place);
    }
  }
  __syncthreads();

  const float4 gates = make_float4(decay, strength, product, 0.0f);
  float squares = 0.0f;
  for (unsigned start = 0; start < value_dim; start += stride) {
    const unsigned column = start + first, columns = columns_of(column);
    if (start > 0) state.load(own + column, sizes, columns, s.wide);
    const float4 value = load_columns(values + column, columns, false);
    const float4 out = state.advance(pairs, gates, value);
    place.for_slots(s, [&](size_t slot) {
      state.store(s.state + sizes.state(slot, head) + column, sizes, columns, s.wide);
    });
    if (lane < 4) {
      store_columns(outs + column, columns, false, out);
      squares = add_squares(squares, out);
    }
  }
  // Beyond a value's end there are zeros.
  squares = block_sum(squares, partial);
  const float scale = 1.0f / sqrtf(squares / static_cast<float>(value_dim) + s.eps);
  for (unsigned i = threadIdx.x; i < value_dim; i += blockDim.x)
    s.out[output + i] = outs[i] * scale * (i < blockDim.x ? first_factor : factor(i));
  if (is_last != 0)
    step_channels(
        s, sizes, place, keys, [](unsigned, const StepWindow&, size_t) {},
        [](unsigned) { return true; });
}

}  // namespace

// For key heads of up to 64, 128 and 256 elements: 32, 64 and 128 registers of state.
#define GATED_DELTA_STEP(NAME, ROWS, BLOCKS)                                                       \
  extern "C" __global__ void __launch_bounds__(256, BLOCKS)                                        \
      NAME(float* out, float* conv, float* state, unsigned* counters, const float* qkv,            \
           const float* weight, const float* a, const float* b, const float* rate,                 \
           const float* dt_bias, const float* gate, const float* norm, const unsigned* sequences,  \
           const unsigned* copies, unsigned key_heads, unsigned value_heads, unsigned key_dim,     \
           unsigned value_dim, unsigned tiled, unsigned inputs, float eps, unsigned wide) {        \
    const StepOperands s = {out,     conv, state, counters,  qkv,    weight, a,   b,       rate,   \
                            dt_bias, gate, norm,  sequences, copies, inputs, eps, wide != 0};      \
    const DeltaSizes sizes = {key_heads, value_heads, key_dim, value_dim, tiled != 0};             \
    delta_step<ROWS>(s, sizes);                                                                    \
  }
GATED_DELTA_STEP(gated_delta_step_64, 8, 2)
GATED_DELTA_STEP(gated_delta_step_128, 16, 2)
GATED_DELTA_STEP(gated_delta_step_256, 32, 1)
