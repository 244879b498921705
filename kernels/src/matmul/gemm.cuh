// A weight times many rows of activations, on tensor cores.
//
// A block has `32 * TILES` rows times 128 outputs, 8 warps of `16 * TILES` times 32, and goes over
// the columns in windows of 32. While it multiplies one window, the next one's codes, scales and
// activations are on their way into registers; then they are decoded and rounded into the other half
// of shared memory. With `PARTS` 1 weights and activations are rounded to bf16. With 2 or 3 each is
// the sum of as many bf16, and the products of the larger ones are added up: 3 of them are as
// accurate as f32, at a sixth of the speed. The sums of a window are then added in f32, as tensor
// cores do not round to nearest.
// Floor: 2 * rows * outputs * inputs operations, times 1, 3 or 6, over the rate of `mma.sync`; a
// block moves (rows + outputs) * 64 bytes of shared memory for rows * outputs * 64 operations.
#pragma once

#include "product.cuh"

constexpr unsigned GEMM_OUTPUTS = 128, GEMM_THREADS = 256;
// Elements between rows in shared memory: 8 rows of 16 bytes fall on different banks.
constexpr unsigned GEMM_STRIDE = 40;

// `ROUNDED`: activations were rounded to bf16 before, once for all blocks of outputs, which then
// read half the bytes: `matmul_round` writes whole windows.
template <int PARTS, int TILES, bool ROUNDED> struct Gemm {
  static_assert(!ROUNDED || PARTS == 1, "what was rounded is one part");
  static constexpr unsigned ROWS = 32 * TILES;
  static constexpr unsigned STAGES = PARTS == 3 ? 1 : 2;
  // Elements of a stage: parts of the activations, then of the weight.
  static constexpr unsigned X = ROWS * GEMM_STRIDE, W = GEMM_OUTPUTS * GEMM_STRIDE;
  static constexpr unsigned STAGE = PARTS * (X + W);
  // Octets of a window that a thread loads: `threadIdx.x + i * GEMM_THREADS` is octet `q` of a row.
  static constexpr int X_OCTETS = TILES * 128 > GEMM_THREADS ? TILES * 128 / GEMM_THREADS : 1;
  static constexpr int W_OCTETS = GEMM_OUTPUTS * 4 / GEMM_THREADS;

  const Product& product;
  const unsigned* rounded;
  const unsigned first_row, first_output, windows;
  AnyRaw raw[W_OCTETS];
  RawScale scales[W_OCTETS];
  // One of them is not used, and takes no registers.
  float x[X_OCTETS][8];
  uint4 pairs[X_OCTETS];

  __device__ __forceinline__ Gemm(const Product& product, const unsigned* rounded)
      : product(product), rounded(rounded), first_row(blockIdx.y * ROWS), first_output(blockIdx.x * GEMM_OUTPUTS),
        windows(windows_of(product.weight.format.kind())) {}

  // Loads a window.
  __device__ __forceinline__ void fetch(unsigned window) {
    const Weight& weight = product.weight;
    const Kind kind = weight.format.kind();
#pragma unroll
    for (int i = 0; i < W_OCTETS; ++i) {
      const unsigned index = threadIdx.x + i * GEMM_THREADS, q = index % 4;
      // Rows beyond the last are those of the last: their products are not written.
      const size_t row = min(first_output + index / 4, product.outputs - 1);
      if (window % windows == 0)
        raw[i] = load_any(weight.codes + row * weight.row_words, window / windows, q, kind);
      if (kind < Kind::BF16) {
        // The zeros beyond the last column are of the last group.
        const unsigned column = min(32 * window + 8 * q, product.inputs - 1);
        scales[i] = load_scale(weight.scales + row * weight.scale_words,
                               column >> weight.format.group_log2(), weight.format);
      }
    }
#pragma unroll
    for (int i = 0; i < X_OCTETS; ++i) {
      const unsigned index = threadIdx.x + i * GEMM_THREADS, row = first_row + index / 4;
      const bool live = index < 4 * ROWS && row < product.rows;
      if constexpr (ROUNDED) {
        const size_t at = row * static_cast<size_t>((product.inputs + 31) / 32) * 4;
        pairs[i] = make_uint4(0, 0, 0, 0);
        if (live) pairs[i] = reinterpret_cast<const uint4*>(rounded)[at + window * 4 + index % 4];
      } else {
        load_octet(x[i], product.x + static_cast<size_t>(row) * product.x_stride,
                   32 * window + 8 * (index % 4), product.inputs, live);
      }
    }
  }

  // Puts octet `index` in its place in every part, `size` elements apart.
  static __device__ __forceinline__ void place(unsigned short* to, unsigned size, unsigned index,
                                               const float (&values)[8]) {
    unsigned pairs[4][PARTS];
#pragma unroll
    for (int i = 0; i < 4; ++i) split_pair<PARTS>(values[2 * i], values[2 * i + 1], pairs[i]);
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
      unsigned short* at = to + part * size + index / 4 * GEMM_STRIDE + index % 4 * 8;
      *reinterpret_cast<uint4*>(at) =
          make_uint4(pairs[0][part], pairs[1][part], pairs[2][part], pairs[3][part]);
    }
  }

  // Decodes what was loaded into a stage.
  __device__ __forceinline__ void store(unsigned short* stage, unsigned window) const {
    const WeightFormat format = product.weight.format;
#pragma unroll
    for (int i = 0; i < X_OCTETS; ++i) {
      const unsigned index = threadIdx.x + i * GEMM_THREADS;
      if (index >= 4 * ROWS) continue;
      if constexpr (ROUNDED)
        *reinterpret_cast<uint4*>(stage + index / 4 * GEMM_STRIDE + index % 4 * 8) = pairs[i];
      else
        place(stage, X, index, x[i]);
    }
#pragma unroll
    for (int i = 0; i < W_OCTETS; ++i) {
      float values[8];
      decode_any(values, raw[i], window % windows, format);
      if (format.kind() < Kind::BF16) {
        const float2 scale = scale_of(scales[i], format);
#pragma unroll
        for (int j = 0; j < 8; ++j) values[j] = values[j] * scale.x + scale.y;
      }
      place(stage + PARTS * X, W, threadIdx.x + i * GEMM_THREADS, values);
    }
  }

  // Adds the products of a window to `sums`: rows `lane / 4` and 8 more of each tile, outputs
  // `2 * (lane % 4)` and one more of each of four.
  static __device__ __forceinline__ void multiply(float (&sums)[TILES][4][4],
                                                  const unsigned short* stage) {
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const unsigned short* left = stage + (warp % 2 * 16 * TILES + lane % 16) * GEMM_STRIDE + lane / 16 * 8;
    const unsigned short* right = stage + PARTS * X +
                                  (warp / 2 * 32 + lane / 16 * 8 + lane % 8) * GEMM_STRIDE +
                                  lane / 8 % 2 * 8;
#pragma unroll
    for (unsigned k = 0; k < 32; k += 16) {
      unsigned b[PARTS][2][4];
#pragma unroll
      for (int part = 0; part < PARTS; ++part)
#pragma unroll
        for (int two = 0; two < 2; ++two)
          ldmatrix_x4(b[part][two], right + part * W + two * 16 * GEMM_STRIDE + k);
#pragma unroll
      for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
        for (int part = PARTS; part-- > 0;) {
          unsigned a[4];
          ldmatrix_x4(a, left + part * X + tile * 16 * GEMM_STRIDE + k);
#pragma unroll
          for (int other = PARTS - 1 - part; other >= 0; --other)
#pragma unroll
            for (int eight = 0; eight < 4; ++eight) {
              const unsigned pair[2] = {b[other][eight / 2][eight % 2 * 2],
                                        b[other][eight / 2][eight % 2 * 2 + 1]};
              mma_m16n8k16<__nv_bfloat16>(sums[tile][eight], a, pair);
            }
        }
      }
    }
  }

  __device__ __forceinline__ void write(const float (&sums)[TILES][4][4]) const {
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
      for (int eight = 0; eight < 4; ++eight)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const unsigned row = first_row + (warp % 2 * TILES + tile) * 16 + lane / 4 + i / 2 * 8;
          const unsigned output = first_output + warp / 2 * 32 + eight * 8 + lane % 4 * 2 + i % 2;
          if (row < product.rows && output < product.outputs)
            put(product, row, output, sums[tile][eight][i]);
        }
  }
};

template <int PARTS, int TILES, bool ROUNDED>
__device__ __forceinline__ void gemm(const Product& product, const unsigned* rounded) {
  using Work = Gemm<PARTS, TILES, ROUNDED>;
  unsigned short* shared = dynamic_shared<unsigned short>();
  Work work(product, rounded);
  float sums[TILES][4][4] = {};
  const unsigned windows = (product.inputs + 31) / 32;
  if (windows > 0) {
    work.fetch(0);
    work.store(shared, 0);
  }
  for (unsigned window = 0; window < windows; ++window) {
    __syncthreads();
    if (window + 1 < windows) work.fetch(window + 1);
    const unsigned short* stage = shared + window % Work::STAGES * Work::STAGE;
    if constexpr (PARTS == 3) {
      float here[TILES][4][4] = {};
      Work::multiply(here, stage);
#pragma unroll
      for (int i = 0; i < TILES * 16; ++i) sums[i / 16][i / 4 % 4][i % 4] += here[i / 16][i / 4 % 4][i % 4];
    } else {
      Work::multiply(sums, stage);
    }
    if (Work::STAGES == 1) __syncthreads();
    if (window + 1 < windows)
      work.store(shared + (window + 1) % Work::STAGES * Work::STAGE, window + 1);
  }
  work.write(sums);
}
