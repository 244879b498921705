// A weight times a few rows of activations: reads the weight once, at the speed of memory.
//
// A block has 16 outputs; its warps share the columns, unit by unit. The 16 outputs times 16 columns
// of codes, as they were loaded, are one operand of a tensor core, activations as parts in bf16 the
// other: so a code costs two to three instructions, whatever the number of rows, where f32
// multiplications would take four and one more for each row - a GPU of 4.8 TB/s has about three in the
// time of reading half a byte. Row `r` takes `planes` of the 8 columns of an `mma`: 1 rounds it to
// bf16, 2 keep 16 bits, 3 all 24. Integer codes are exact, sums in f32, and a group's scale and bias
// multiply its sum of products and its sum of activations, which the tensor core adds up too.
// Floor: the bytes of the weight over the bandwidth; four units of two rows, 4 KiB, are in flight
// for each warp.
#pragma once

#include "product.cuh"

constexpr unsigned GEMV_OUTPUTS = 16, GEMV_WARPS = 8;
// Units that a warp loads before it computes with them.
constexpr int GEMV_DEPTH = 4;

// A unit of two rows, 8 apart, and the scales of its groups: lane `q` of four has those of groups `q`
// and `q + 4`.
template <Kind K> struct GemvUnit {
  Raw<K> raw[2];
  RawScale scales[2][2];
};

template <Kind K, int TILES> struct Gemv {
  static constexpr unsigned WINDOWS = windows_of(K), COLUMNS = 32 * WINDOWS;

  const Product& product;
  unsigned planes, lane, q;
  const unsigned* codes[2];
  const unsigned* scales[2];
  // Sums of outputs `lane / 4` and 8 more, planes `2 q` and `2 q + 1` of each tile.
  float sums[TILES][4];
  // The same of the group at hand, and of its activations.
  float products[TILES][4], inputs[TILES][4];

  __device__ __forceinline__ Gemv(const Product& product, unsigned planes)
      : product(product), planes(planes), lane(threadIdx.x % WARP), q(threadIdx.x % 4) {
    const Weight& weight = product.weight;
#pragma unroll
    for (unsigned i = 0; i < 2; ++i) {
      // Rows beyond the last are those of the last: their sums are not written.
      const unsigned row = min(blockIdx.x * GEMV_OUTPUTS + lane / 4 + 8 * i, product.outputs - 1);
      codes[i] = weight.codes + static_cast<size_t>(row) * weight.row_words;
      scales[i] = weight.scales + static_cast<size_t>(row) * weight.scale_words;
    }
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        sums[tile][i] = products[tile][i] = inputs[tile][i] = 0.0f;
  }

  __device__ __forceinline__ void load(GemvUnit<K>& unit, unsigned index) const {
    const WeightFormat format = product.weight.format;
#pragma unroll
    for (unsigned i = 0; i < 2; ++i) {
      unit.raw[i] = load_unit<K>(codes[i], index, q);
      if constexpr (!is_plain(K)) {
        const unsigned first = index * COLUMNS >> format.group_log2();
        const unsigned groups = product.inputs >> format.group_log2();
        const unsigned here = max(COLUMNS >> format.group_log2(), 1u);
#pragma unroll
        for (unsigned half = 0; half < 2; ++half) {
          const unsigned group = q + 4 * half;
          unit.scales[i][half] = RawScale{0, 0};
          if (group < here && first + group < groups)
            unit.scales[i][half] = load_scale(scales[i], first + group, format);
        }
      }
    }
  }

  // This lane's plane of activations, columns `column + 8 q` on, as pairs.
  __device__ __forceinline__ void activations(unsigned (&pairs)[4], int tile,
                                              unsigned column) const {
    const unsigned index = 8 * tile + lane / 4, row = index / planes, plane = index % planes;
    float values[8];
    load_octet(values, product.x + static_cast<size_t>(row) * product.x_stride, column + 8 * q,
               product.inputs, row < product.rows);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float low = values[2 * i], high = values[2 * i + 1];
      pairs[i] = round_pair(low, high);
      for (unsigned part = 1; part < planes; ++part) {
        low -= low_of(pairs[i]);
        high -= high_of(pairs[i]);
        const unsigned rest = round_pair(low, high);
        if (part > plane) break;
        pairs[i] = rest;
      }
    }
  }

  // Adds an octet of both rows times activations to `to`.
  __device__ __forceinline__ void multiply(float (&to)[4], const unsigned (&first)[4],
                                           const unsigned (&second)[4],
                                           const unsigned (&x)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      const unsigned a[4] = {first[i], second[i], first[i + 1], second[i + 1]};
      const unsigned b[2] = {x[i], x[i + 1]};
      mma_m16n8k16<__nv_bfloat16>(to, a, b);
    }
  }

  // Ends a group: `group` counts from the first of the unit.
  __device__ __forceinline__ void scale(const GemvUnit<K>& unit, unsigned group) {
    const WeightFormat format = product.weight.format;
    float2 scales[2];
#pragma unroll
    for (unsigned i = 0; i < 2; ++i) {
      const RawScale mine = group < 4 ? unit.scales[i][0] : unit.scales[i][1];
      RawScale raw;
      raw.scale = __shfl_sync(ALL_LANES, mine.scale, group % 4, 4);
      raw.bias = __shfl_sync(ALL_LANES, mine.bias, group % 4, 4);
      scales[i] = scale_of(raw, format);
    }
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sums[tile][i] += scales[i / 2].x * products[tile][i];
        if (format.biased()) sums[tile][i] += scales[i / 2].y * inputs[tile][i];
        products[tile][i] = inputs[tile][i] = 0.0f;
      }
  }

  // A window whose octets were decoded, in groups of at least a window.
  __device__ __forceinline__ void window(const unsigned (&rows)[2][4], const unsigned (&x)[TILES][4]) {
    const unsigned ones[4] = {0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
      multiply(products[tile], rows[0], rows[1], x[tile]);
      if (product.weight.format.biased()) multiply(inputs[tile], ones, ones, x[tile]);
    }
  }

  __device__ __forceinline__ void compute(const GemvUnit<K>& unit, unsigned index) {
    const WeightFormat format = product.weight.format;
    const unsigned log2 = format.group_log2();
#pragma unroll
    for (unsigned w = 0; w < WINDOWS; ++w) {
      const unsigned column = index * COLUMNS + 32 * w;
      if (column >= product.inputs) break;
      unsigned x[TILES][4];
#pragma unroll
      for (int tile = 0; tile < TILES; ++tile) activations(x[tile], tile, column);
      if constexpr (is_plain(K)) {
        unsigned parts[2][parts_of(K)][4];
        decode_parts<K>(parts[0], unit.raw[0], w, 0);
        decode_parts<K>(parts[1], unit.raw[1], w, 0);
#pragma unroll
        for (int part = 0; part < parts_of(K); ++part)
#pragma unroll
          for (int tile = 0; tile < TILES; ++tile)
            multiply(sums[tile], parts[0][part], parts[1][part], x[tile]);
      } else {
        unsigned rows[2][4];
        decode_octet<K>(rows[0], unit.raw[0], w, format.zero());
        decode_octet<K>(rows[1], unit.raw[1], w, format.zero());
        if (log2 == 4) {
          halves(unit, rows, x, w);
        } else {
          window(rows, x);
          const bool ends = (32 * (w + 1) & ((1u << log2) - 1)) == 0;
          if (ends || w + 1 == WINDOWS || column + 32 >= product.inputs)
            scale(unit, 32 * w >> log2);
        }
      }
    }
  }

  // A window in groups of half a window: first with the activations of two of the lanes, then with
  // those of the others.
  __device__ __forceinline__ void halves(const GemvUnit<K>& unit, const unsigned (&rows)[2][4],
                                         const unsigned (&x)[TILES][4], unsigned w) {
#pragma unroll
    for (unsigned half = 0; half < 2; ++half) {
      unsigned masked[TILES][4];
#pragma unroll
      for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
        for (int i = 0; i < 4; ++i) masked[tile][i] = q / 2 == half ? x[tile][i] : 0;
      window(rows, masked);
      scale(unit, 2 * w + half);
    }
  }
};

// `shared` has the sums of all warps, [GEMV_WARPS][GEMV_OUTPUTS][8 * TILES].
template <Kind K, int TILES>
__device__ __forceinline__ void gemv(const Product& product, unsigned planes, float* shared) {
  const unsigned warps = blockDim.x / WARP, warp = threadIdx.x / WARP;
  const unsigned units = (product.inputs + Gemv<K, TILES>::COLUMNS - 1) / Gemv<K, TILES>::COLUMNS;
  Gemv<K, TILES> work(product, planes);
  for (unsigned first = warp; first < units; first += warps * GEMV_DEPTH) {
    GemvUnit<K> unit[GEMV_DEPTH];
#pragma unroll
    for (int i = 0; i < GEMV_DEPTH; ++i)
      if (first + i * warps < units) work.load(unit[i], first + i * warps);
#pragma unroll
    for (int i = 0; i < GEMV_DEPTH; ++i)
      if (first + i * warps < units) work.compute(unit[i], first + i * warps);
  }
  constexpr unsigned COLUMNS = 8 * TILES;
#pragma unroll
  for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned output = work.lane / 4 + i / 2 * 8, column = 8 * tile + 2 * work.q + i % 2;
      shared[(warp * GEMV_OUTPUTS + output) * COLUMNS + column] = work.sums[tile][i];
    }
  __syncthreads();
  for (unsigned i = threadIdx.x; i < GEMV_OUTPUTS * product.rows; i += blockDim.x) {
    const unsigned row = i / GEMV_OUTPUTS, inside = i % GEMV_OUTPUTS;
    const unsigned output = blockIdx.x * GEMV_OUTPUTS + inside;
    float sum = 0.0f;
    for (unsigned plane = planes; plane-- > 0;)
      for (unsigned w = 0; w < warps; ++w)
        sum += shared[(w * GEMV_OUTPUTS + inside) * COLUMNS + row * planes + plane];
    if (output < product.outputs) put(product, row, output, sum);
  }
}
