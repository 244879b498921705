// `short_conv`: a block has 512 channels of up to 32 consecutive tokens of a segment, a tile; a
// thread four channels, whose last inputs and weights it keeps in registers while it walks over the
// tokens. Bound by memory: 8 bytes move for each element of a prefill, and a tile reads the inputs
// before it once more, a tenth at most; a decode step of one token moves its state besides, in and
// out, and the weights: all its loads are on the way at once, in one launch.
//
// The thread that reads a slot's state, that of the segment's first tile, also writes what replaces
// it, after all that it reads: so tiles need no order.
#include "../gpu/cuda.cuh"

struct ShortConv {
  float* out;
  const float *x, *weight;
  float* state;
  // Of each tile: row of the segment's first token, tokens of the segment, its slot, first token of
  // the tile and the one after its last, first of its emits and the one after its last.
  const unsigned* tiles;
  // Tokens of the segment after which a state is kept, and the slot that gets it.
  const unsigned* emits;
  unsigned channels;
  bool wide;
};

// Tokens whose inputs are read together.
constexpr unsigned SHORT_CONV_AHEAD = 4;

template <unsigned KERNEL> __device__ __forceinline__ void short_conv_tile(const ShortConv& conv) {
  constexpr unsigned TAIL = KERNEL - 1;
  const unsigned channels = conv.channels;
  const unsigned channel = (blockIdx.y * blockDim.x + threadIdx.x) * 4;
  if (channel >= channels) return;
  const unsigned* tile = conv.tiles + static_cast<size_t>(blockIdx.x) * 7;
  const unsigned len = tile[1], start = tile[3], end = tile[4];
  const size_t segment = static_cast<size_t>(tile[0]) * channels;
  const float* x = conv.x + segment;
  float* out = conv.out + segment;
  const auto load = [&](const float* rows, unsigned row) {
    return load_four(rows + static_cast<size_t>(row) * channels, channel, channels, conv.wide);
  };
  const auto store = [&](float* rows, unsigned row, const float4& four) {
    store_four(rows + static_cast<size_t>(row) * channels, channel, channels, conv.wide, four);
  };
  const auto slot = [&](unsigned index) {
    return conv.state + static_cast<size_t>(index) * TAIL * channels;
  };

  float4 weights[KERNEL], window[KERNEL];
#pragma unroll
  for (unsigned k = 0; k < KERNEL; ++k) weights[k] = load(conv.weight, k);
#pragma unroll
  for (unsigned k = 0; k < TAIL; ++k)
    window[k] = start == 0 ? load(slot(tile[2]), k) : load(x, start - TAIL + k);
  unsigned emit = tile[5];
  const unsigned emits_end = tile[6];
  for (unsigned first = start; first < end; first += SHORT_CONV_AHEAD) {
    float4 next[SHORT_CONV_AHEAD];
#pragma unroll
    for (unsigned j = 0; j < SHORT_CONV_AHEAD; ++j)
      if (first + j < end) next[j] = load(x, first + j);
#pragma unroll
    for (unsigned j = 0; j < SHORT_CONV_AHEAD; ++j) {
      const unsigned token = first + j;
      if (token >= end) break;
      window[TAIL] = next[j];
      float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
      for (unsigned k = 0; k < KERNEL; ++k)
        sum = make_float4(fmaf(weights[k].x, window[k].x, sum.x),
                          fmaf(weights[k].y, window[k].y, sum.y),
                          fmaf(weights[k].z, window[k].z, sum.z),
                          fmaf(weights[k].w, window[k].w, sum.w));
      store(out, token, make_float4(silu(sum.x), silu(sum.y), silu(sum.z), silu(sum.w)));
#pragma unroll
      for (unsigned k = 0; k < TAIL; ++k) window[k] = window[k + 1];
      for (; emit < emits_end && conv.emits[2 * emit] == token + 1; ++emit) {
#pragma unroll
        for (unsigned k = 0; k < TAIL; ++k) store(slot(conv.emits[2 * emit + 1]), k, window[k]);
      }
    }
  }
  if (start > 0) return;
  // What is left in the window is the new state, unless the segment has more tiles; these are longer
  // than a state, so that it is all among the segment's own inputs.
#pragma unroll
  for (unsigned k = 0; k < TAIL; ++k)
    store(slot(tile[2]), k, end < len ? load(x, len - TAIL + k) : window[k]);
}

// Inputs that an output is made of are known when it is compiled: they are in registers.
#define SHORT_CONV(KERNEL)                                                                       \
  extern "C" __global__ void __launch_bounds__(128) short_conv_##KERNEL(                         \
      float* __restrict__ out, const float* __restrict__ x, const float* __restrict__ weight,    \
      float* __restrict__ state, const unsigned* __restrict__ tiles,                             \
      const unsigned* __restrict__ emits, unsigned channels, unsigned wide) {                    \
    short_conv_tile<KERNEL>(ShortConv{out, x, weight, state, tiles, emits, channels, wide != 0}); \
  }
SHORT_CONV(2)
SHORT_CONV(3)
SHORT_CONV(4)
SHORT_CONV(5)
SHORT_CONV(6)
SHORT_CONV(7)
SHORT_CONV(8)
