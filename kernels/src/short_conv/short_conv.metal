// `short_conv`: a threadgroup has 512 channels of up to 32 consecutive tokens of a segment, a tile;
// a thread four channels, whose last inputs and weights it keeps in registers while it walks over
// the tokens. Bound by memory: 8 bytes move for each element of a prefill, and a tile reads the
// inputs before it once more, a tenth at most; a decode step of one token moves its state besides,
// in and out, and the weights: all its loads are on the way at once, in one launch.
//
// The thread that reads a slot's state, that of the segment's first tile, also writes what replaces
// it, after all that it reads: so tiles need no order.

struct ShortConv {
  device float* out;
  device const float* x;
  device const float* weight;
  device float* state;
  // Of this tile: row of the segment's first token, tokens of the segment, its slot, first token of
  // the tile and the one after its last, first of its emits and the one after its last.
  device const uint* tile;
  // Tokens of the segment after which a state is kept, and the slot that gets it.
  device const uint* emits;
  // Those of a row, and the first of this thread.
  uint channels, channel;
  bool wide;
};

// Tokens whose inputs are read together.
constant constexpr uint SHORT_CONV_AHEAD = 4;

// The thread's channels of a row.
inline float4 short_conv_load(ShortConv conv, device const float* rows, uint row) {
  return load_four(rows + ulong(row) * conv.channels, conv.channel, conv.channels, conv.wide);
}
inline void short_conv_store(ShortConv conv, device float* rows, uint row, float4 four) {
  store_four(rows + ulong(row) * conv.channels, conv.channel, conv.channels, conv.wide, four);
}

template <uint KERNEL> inline void short_conv_tile(ShortConv conv) {
  constexpr uint TAIL = KERNEL - 1;
  if (conv.channel >= conv.channels) return;
  const uint len = conv.tile[1], start = conv.tile[3], end = conv.tile[4];
  const ulong slot_len = ulong(TAIL) * conv.channels;
  device const float* x = conv.x + ulong(conv.tile[0]) * conv.channels;
  device float* out = conv.out + ulong(conv.tile[0]) * conv.channels;
  device float* own = conv.state + conv.tile[2] * slot_len;

  float4 weights[KERNEL], window[KERNEL];
#pragma unroll
  for (uint k = 0; k < KERNEL; ++k) weights[k] = short_conv_load(conv, conv.weight, k);
#pragma unroll
  for (uint k = 0; k < TAIL; ++k) {
    window[k] = start == 0 ? short_conv_load(conv, own, k)
                           : short_conv_load(conv, x, start - TAIL + k);
  }
  uint emit = conv.tile[5];
  const uint emits_end = conv.tile[6];
  for (uint first = start; first < end; first += SHORT_CONV_AHEAD) {
    float4 next[SHORT_CONV_AHEAD];
#pragma unroll
    for (uint j = 0; j < SHORT_CONV_AHEAD; ++j) {
      if (first + j < end) next[j] = short_conv_load(conv, x, first + j);
    }
#pragma unroll
    for (uint j = 0; j < SHORT_CONV_AHEAD; ++j) {
      const uint token = first + j;
      if (token >= end) break;
      window[TAIL] = next[j];
      float4 sum = float4(0.0f);
#pragma unroll
      for (uint k = 0; k < KERNEL; ++k) sum = fma(weights[k], window[k], sum);
      short_conv_store(conv, out, token, silu(sum));
#pragma unroll
      for (uint k = 0; k < TAIL; ++k) window[k] = window[k + 1];
      for (; emit < emits_end && conv.emits[2 * emit] == token + 1; ++emit) {
        device float* kept = conv.state + conv.emits[2 * emit + 1] * slot_len;
#pragma unroll
        for (uint k = 0; k < TAIL; ++k) short_conv_store(conv, kept, k, window[k]);
      }
    }
  }
  if (start > 0) return;
  // What is left in the window is the new state, unless the segment has more tiles; these are longer
  // than a state, so that it is all among the segment's own inputs.
#pragma unroll
  for (uint k = 0; k < TAIL; ++k) {
    const float4 last = end < len ? short_conv_load(conv, x, len - TAIL + k) : window[k];
    short_conv_store(conv, own, k, last);
  }
}

// Inputs that an output is made of are known when it is compiled: they are in registers.
#define SHORT_CONV(KERNEL)                                                                    \
  kernel void short_conv_##KERNEL(device float* out [[buffer(0)]],                            \
                                  device const float* x [[buffer(1)]],                        \
                                  device const float* weight [[buffer(2)]],                   \
                                  device float* state [[buffer(3)]],                          \
                                  device const uint* tiles [[buffer(4)]],                     \
                                  device const uint* emits [[buffer(5)]],                     \
                                  constant uint& channels [[buffer(6)]],                      \
                                  constant uint& wide [[buffer(7)]],                          \
                                  uint3 group [[threadgroup_position_in_grid]],               \
                                  uint index [[thread_index_in_threadgroup]],                 \
                                  uint threads [[threads_per_threadgroup]]) {                 \
    const uint channel = (group.y * threads + index) * 4;                                     \
    const ShortConv conv = {out,   x,        weight,  state,    tiles + ulong(group.x) * 7,   \
                            emits, channels, channel, wide != 0};                             \
    short_conv_tile<KERNEL>(conv);                                                            \
  }
SHORT_CONV(2)
SHORT_CONV(3)
SHORT_CONV(4)
SHORT_CONV(5)
SHORT_CONV(6)
SHORT_CONV(7)
SHORT_CONV(8)
