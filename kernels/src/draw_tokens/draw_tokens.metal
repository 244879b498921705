// `draw_tokens`: a simdgroup a row, two of its 64 largest logits a lane, whose weights a scan adds up.
// Sums are in f32; `DRAW_MARGIN` says where they do not tell.

constant constexpr uint DRAW_UNDRAWN = 0xffffffffu;
constant constexpr uint DRAW_NOT_FINITE = 0xfffffffeu;
constant constexpr uint DRAW_NOWHERE = 0xffffffffu;
constant constexpr float DRAW_MARGIN = 1e-5f;
// Numbers of a row's draw.
constant constexpr uint DRAW_WORDS = 6;

struct Draw {
  uint count;
  float temperature;
  uint top_k;
  float top_p;
  float min_p;
  float uniform;
};

// The place of the token among the `draw.count` largest `values` of a row of `vocab` logits, of which
// `whole` is the sum of all weights; DRAW_NOWHERE where these do not tell. In every lane.
inline uint draw_place(device const float* values, float whole, thread const Draw& draw, uint vocab,
                       uint lane) {
  const bool limited = draw.top_k > 0 && draw.top_k < vocab;
  const uint survivors = limited ? draw.top_k : vocab;
  if (limited && survivors > draw.count) return DRAW_NOWHERE;
  const uint known = min(survivors, draw.count);
  float weights[2];
  for (uint i = 0; i < 2; ++i) {
    const uint place = 2 * lane + i;
    weights[i] = place < known ? precise::exp((values[place] - values[0]) / draw.temperature) : 0.0f;
  }
  // Of the weights before each of the lane's two, and before the next lane's.
  float sums[3];
  sums[0] = simd_prefix_exclusive_sum(weights[0] + weights[1]);
  sums[1] = sums[0] + weights[0];
  sums[2] = sums[1] + weights[1];
  const float all = simd_broadcast(sums[2], ushort(SIMD - 1));
  const float total = limited ? all : whole;
  uint kept = survivors;
  float mass = total;
  if (draw.top_p < 1.0f || draw.min_p > 0.0f) {
    const float nucleus = draw.top_p * total;
    uint cut = DRAW_NOWHERE, near = DRAW_NOWHERE;
    for (uint i = 0; i < 2; ++i) {
      const uint place = 2 * lane + i;
      if (place == 0 || place >= known) continue;
      bool out = false, close = false;
      if (draw.top_p < 1.0f) {
        out = sums[i] >= nucleus;
        close = abs(sums[i] - nucleus) <= DRAW_MARGIN * total;
      }
      if (draw.min_p > 0.0f) {
        out = out || weights[i] < draw.min_p;
        close = close || abs(weights[i] - draw.min_p) <= DRAW_MARGIN * draw.min_p;
      }
      if (out) cut = min(cut, place);
      if (close) near = min(near, place);
    }
    kept = min(simd_min(cut), survivors);
    near = simd_min(near);
    if (near <= kept || kept > known) return DRAW_NOWHERE;
    const float before = simd_shuffle(kept % 2 == 0 ? sums[0] : sums[1], ushort(kept / 2 % SIMD));
    mass = kept < known ? before : all;
  }
  const float target = draw.uniform * mass;
  uint chosen = DRAW_NOWHERE, near = DRAW_NOWHERE;
  for (uint i = 0; i < 2; ++i) {
    const uint place = 2 * lane + i;
    if (place >= known || place >= kept) continue;
    const bool last = place + 1 == kept;
    if (last || sums[i + 1] > target) chosen = min(chosen, place);
    if (!last && abs(sums[i + 1] - target) <= DRAW_MARGIN * mass) near = min(near, place);
  }
  chosen = simd_min(chosen);
  near = simd_min(near);
  return near <= chosen ? DRAW_NOWHERE : chosen;
}

// words[row]: a token, or why there is none. `values` and `ids` are [rows, held].
kernel void draw_tokens(device uint* words [[buffer(0)]],
                        device const float* values [[buffer(1)]],
                        device const uint* ids [[buffer(2)]],
                        device const float* sums [[buffer(3)]],
                        device const uint* draws [[buffer(4)]],
                        constant uint& vocab [[buffer(5)]],
                        constant uint& held [[buffer(6)]],
                        uint3 group [[threadgroup_position_in_grid]],
                        uint lane [[thread_index_in_threadgroup]]) {
  const uint row = group.x;
  device const uint* numbers = draws + row * DRAW_WORDS;
  Draw draw;
  draw.count = numbers[0];
  draw.temperature = as_type<float>(numbers[1]);
  draw.top_k = numbers[2];
  draw.top_p = as_type<float>(numbers[3]);
  draw.min_p = as_type<float>(numbers[4]);
  draw.uniform = as_type<float>(numbers[5]);
  values += ulong(row) * held;
  ids += ulong(row) * held;
  uint word = DRAW_UNDRAWN;
  if (draw.count != 0) {
    if (!isfinite(sums[2 * row])) {
      word = DRAW_NOT_FINITE;
    } else if (draw.temperature == 0.0f) {
      word = ids[0];
    } else {
      const uint place = draw_place(values, sums[2 * row + 1], draw, vocab, lane);
      if (place != DRAW_NOWHERE) word = ids[place];
    }
  }
  if (lane == 0) words[row] = word;
}
