// `rope`: four pairs of a head a thread, in loads and stores of 16 bytes. Bound by memory: 8 bytes
// move for each element that is turned; the angles of a row are read once from memory and for its
// other heads from a cache. Threadgroups [rows, parts of a row]: a decode step of few rows still
// spreads over some cores.

struct RopeShape {
  // Elements of a row, of a head, and angles of a row.
  uint width, head_dim, half_dim;
  // All three, and where the tensors start, are multiples of 16 bytes.
  bool wide;
};

// Half: element `i` is turned with `i + half_dim`.
inline void rope_turn_half(device float* x, float4 c, float4 s, uint first, RopeShape shape) {
  const uint half_dim = shape.half_dim;
  const float4 a = load_four(x, first, half_dim, shape.wide);
  const float4 b = load_four(x + half_dim, first, half_dim, shape.wide);
  store_four(x, first, half_dim, shape.wide, fma(a, c, -(b * s)));
  store_four(x + half_dim, first, half_dim, shape.wide, fma(b, c, a * s));
}

// Interleaved: element `2 i` is turned with `2 i + 1`.
inline void rope_turn_interleaved(device float* x, float4 c, float4 s, uint first,
                                  RopeShape shape) {
  const uint len = 2 * shape.half_dim;
  const float4 low = load_four(x, 2 * first, len, shape.wide);
  const float4 high = load_four(x, 2 * first + 4, len, shape.wide);
  const float4 a = float4(low.x, low.z, high.x, high.z);
  const float4 b = float4(low.y, low.w, high.y, high.w);
  const float4 p = fma(a, c, -(b * s)), q = fma(b, c, a * s);
  store_four(x, 2 * first, len, shape.wide, float4(p.x, q.x, p.y, q.y));
  store_four(x, 2 * first + 4, len, shape.wide, float4(p.z, q.z, p.w, q.w));
}

#define ROPE(NAME, TURN)                                                                 \
  kernel void NAME(device float* x [[buffer(0)]],                                        \
                   device const float* cosines [[buffer(1)]],                            \
                   device const float* sines [[buffer(2)]],                              \
                   constant uint& width [[buffer(3)]],                                   \
                   constant uint& head_dim [[buffer(4)]],                                \
                   constant uint& half_dim [[buffer(5)]],                                \
                   constant uint& wide [[buffer(6)]],                                    \
                   uint3 group [[threadgroup_position_in_grid]],                         \
                   uint index [[thread_index_in_threadgroup]],                           \
                   uint threads [[threads_per_threadgroup]]) {                           \
    const RopeShape shape = {width, head_dim, half_dim, wide != 0};                      \
    const uint fours = (half_dim + 3) / 4;                                               \
    const uint item = group.y * threads + index;                                         \
    const uint head = item / fours, first = item % fours * 4;                            \
    if (head >= width / head_dim) return;                                                \
    const ulong row = ulong(group.x) * half_dim;                                         \
    const float4 c = load_four(cosines + row, first, half_dim, shape.wide);              \
    const float4 s = load_four(sines + row, first, half_dim, shape.wide);                \
    TURN(x + ulong(group.x) * width + head * head_dim, c, s, first, shape);              \
  }
ROPE(rope_half, rope_turn_half)
ROPE(rope_interleaved, rope_turn_interleaved)
