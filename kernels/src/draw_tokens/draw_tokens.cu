// `draw_tokens`: a warp a row, two of its 64 largest logits a lane, whose weights a scan adds up. 4
// bytes are read for each of these, and 40 read or written for a row: nothing but a launch and some 40
// steps between lanes. Sums are in f32; `MARGIN` says where they do not tell.
#include "../gpu/cuda.cuh"

namespace {

constexpr unsigned UNDRAWN = 0xffffffffu;
constexpr unsigned NOT_FINITE = 0xfffffffeu;
constexpr unsigned NOWHERE = 0xffffffffu;
constexpr float MARGIN = 1e-5f;
// Numbers of a row's draw.
constexpr unsigned WORDS = 6;

struct Draw {
  unsigned count;
  float temperature;
  unsigned top_k;
  float top_p;
  float min_p;
  float uniform;
};

// The place of the token among the `draw.count` largest `values` of a row of `vocab` logits, of which
// `whole` is the sum of all weights; NOWHERE where these do not tell. In every lane.
__device__ __forceinline__ unsigned place_of(const float* values, float whole, const Draw& draw,
                                             unsigned vocab) {
  const unsigned lane = threadIdx.x;
  const bool limited = draw.top_k > 0 && draw.top_k < vocab;
  const unsigned survivors = limited ? draw.top_k : vocab;
  if (limited && survivors > draw.count) return NOWHERE;
  const unsigned known = min(survivors, draw.count);
  float weights[2], sum = 0.0f;
#pragma unroll
  for (unsigned i = 0; i < 2; ++i) {
    const unsigned place = 2 * lane + i;
    weights[i] = place < known ? expf((values[place] - values[0]) / draw.temperature) : 0.0f;
    sum += weights[i];
  }
#pragma unroll
  for (unsigned step = 1; step < WARP; step *= 2) {
    const float below = __shfl_up_sync(ALL_LANES, sum, step);
    if (lane >= step) sum += below;
  }
  const float below = __shfl_up_sync(ALL_LANES, sum, 1);
  // Of the weights before each of the lane's two, and before the next lane's.
  float sums[3];
  sums[0] = lane > 0 ? below : 0.0f;
  sums[1] = sums[0] + weights[0];
  sums[2] = sum;
  const float all = __shfl_sync(ALL_LANES, sum, WARP - 1);
  const float total = limited ? all : whole;
  unsigned kept = survivors;
  float mass = total;
  if (draw.top_p < 1.0f || draw.min_p > 0.0f) {
    const float nucleus = draw.top_p * total;
    unsigned cut = NOWHERE, near = NOWHERE;
#pragma unroll
    for (unsigned i = 0; i < 2; ++i) {
      const unsigned place = 2 * lane + i;
      if (place == 0 || place >= known) continue;
      bool out = false, close = false;
      if (draw.top_p < 1.0f) {
        out = sums[i] >= nucleus;
        close = fabsf(sums[i] - nucleus) <= MARGIN * total;
      }
      if (draw.min_p > 0.0f) {
        out |= weights[i] < draw.min_p;
        close |= fabsf(weights[i] - draw.min_p) <= MARGIN * draw.min_p;
      }
      if (out) cut = min(cut, place);
      if (close) near = min(near, place);
    }
    kept = min(__reduce_min_sync(ALL_LANES, cut), survivors);
    near = __reduce_min_sync(ALL_LANES, near);
    if (near <= kept || kept > known) return NOWHERE;
    const float before = __shfl_sync(ALL_LANES, kept % 2 == 0 ? sums[0] : sums[1], kept / 2 % WARP);
    mass = kept < known ? before : all;
  }
  const float target = draw.uniform * mass;
  unsigned chosen = NOWHERE, near = NOWHERE;
#pragma unroll
  for (unsigned i = 0; i < 2; ++i) {
    const unsigned place = 2 * lane + i;
    if (place >= known || place >= kept) continue;
    const bool last = place + 1 == kept;
    if (last || sums[i + 1] > target) chosen = min(chosen, place);
    if (!last && fabsf(sums[i + 1] - target) <= MARGIN * mass) near = min(near, place);
  }
  chosen = __reduce_min_sync(ALL_LANES, chosen);
  near = __reduce_min_sync(ALL_LANES, near);
  return near <= chosen ? NOWHERE : chosen;
}

}  // namespace

// words[row]: a token, or why there is none. `values` and `ids` are [rows, held].
extern "C" __global__ void __launch_bounds__(WARP)
    draw_tokens(unsigned* words, const float* values, const unsigned* ids, const float* sums,
                const unsigned* draws, unsigned vocab, unsigned held) {
  const unsigned row = blockIdx.x;
  const unsigned* words_of = draws + row * WORDS;
  const Draw draw = {words_of[0],
                     __uint_as_float(words_of[1]),
                     words_of[2],
                     __uint_as_float(words_of[3]),
                     __uint_as_float(words_of[4]),
                     __uint_as_float(words_of[5])};
  values += static_cast<size_t>(row) * held;
  ids += static_cast<size_t>(row) * held;
  unsigned word = UNDRAWN;
  if (draw.count != 0) {
    if (!isfinite(sums[2 * row])) {
      word = NOT_FINITE;
    } else if (draw.temperature == 0.0f) {
      word = ids[0];
    } else {
      const unsigned place = place_of(values, sums[2 * row + 1], draw, vocab);
      if (place != NOWHERE) word = ids[place];
    }
  }
  if (threadIdx.x == 0) words[row] = word;
}
