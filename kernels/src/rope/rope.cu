// `rope`: four pairs of a head a thread, in loads and stores of 16 bytes. Bound by memory: 8 bytes
// move for each element that is turned; the angles of a row are read once from memory and for its
// other heads from a cache. Blocks [rows, parts of a row]: a decode step of few rows still spreads
// over some multiprocessors.
#include "../gpu/cuda.cuh"

// The pair (a, b) becomes (a cos - b sin, b cos + a sin), rounded alike wherever it lies.
__device__ __forceinline__ void rope_turn(float& a, float& b, float cos, float sin) {
  const float turned = fmaf(a, cos, -(b * sin));
  b = fmaf(b, cos, a * sin);
  a = turned;
}

struct RopeShape {
  // Elements of a row, of a head, and angles of a row.
  unsigned width, head_dim, half_dim;
  // All three, and where the tensors start, are multiples of 16 bytes.
  bool wide;
};

template <bool INTERLEAVED>
__device__ __forceinline__ void rope_four(float* x, const float* cos, const float* sin,
                                          RopeShape shape) {
  const unsigned half_dim = shape.half_dim, fours = (half_dim + 3) / 4;
  const unsigned item = blockIdx.y * blockDim.x + threadIdx.x;
  const unsigned head = item / fours, first = item % fours * 4;
  if (head >= shape.width / shape.head_dim) return;
  x += static_cast<size_t>(blockIdx.x) * shape.width + head * shape.head_dim;
  const size_t row = static_cast<size_t>(blockIdx.x) * half_dim;
  const float4 c = load_four(cos + row, first, half_dim, shape.wide);
  const float4 s = load_four(sin + row, first, half_dim, shape.wide);
  if (INTERLEAVED) {
    float4 low = load_four(x, 2 * first, 2 * half_dim, shape.wide);
    float4 high = load_four(x, 2 * first + 4, 2 * half_dim, shape.wide);
    rope_turn(low.x, low.y, c.x, s.x);
    rope_turn(low.z, low.w, c.y, s.y);
    rope_turn(high.x, high.y, c.z, s.z);
    rope_turn(high.z, high.w, c.w, s.w);
    store_four(x, 2 * first, 2 * half_dim, shape.wide, low);
    store_four(x, 2 * first + 4, 2 * half_dim, shape.wide, high);
  } else {
    float4 a = load_four(x, first, half_dim, shape.wide);
    float4 b = load_four(x + half_dim, first, half_dim, shape.wide);
    rope_turn(a.x, b.x, c.x, s.x);
    rope_turn(a.y, b.y, c.y, s.y);
    rope_turn(a.z, b.z, c.z, s.z);
    rope_turn(a.w, b.w, c.w, s.w);
    store_four(x, first, half_dim, shape.wide, a);
    store_four(x + half_dim, first, half_dim, shape.wide, b);
  }
}

extern "C" __global__ void __launch_bounds__(128)
    rope_half(float* __restrict__ x, const float* __restrict__ cos, const float* __restrict__ sin,
              unsigned width, unsigned head_dim, unsigned half_dim, unsigned wide) {
  rope_four<false>(x, cos, sin, RopeShape{width, head_dim, half_dim, wide != 0});
}

extern "C" __global__ void __launch_bounds__(128)
    rope_interleaved(float* __restrict__ x, const float* __restrict__ cos,
                     const float* __restrict__ sin, unsigned width, unsigned head_dim,
                     unsigned half_dim, unsigned wide) {
  rope_four<true>(x, cos, sin, RopeShape{width, head_dim, half_dim, wide != 0});
}
