// A weight times a few columns of activations: reads the weight once, at the speed of memory.
//
// `split` warps share 16 outputs and take turns in the units of their inputs. 16 outputs times 16
// inputs of codes, as they were loaded, are one operand of a tensor core, eight columns of activations
// the other: so a code costs two to three instructions, whatever the number of columns, where f32
// multiplications would take four and one more for each column - a GPU of 4.8 TB/s has about three in
// the time of reading half a byte. A column is one part of one row, of `planes` for each row: 1 rounds
// it to bf16, 2 keep 16 bits, 3 all 24. A block makes them once, in shared memory, while its first
// codes are on their way, and the sums of activations over a group with them, which biases multiply.
// Codes are exact and sums f32.
//
// Floor: the bytes of the weight over the bandwidth. An H200 takes 4.8 TB/s * 0.8 us = 3.8 MB on
// their way to reach it, 29 KB for each of 132 multiprocessors. A warp has two units of 16 rows,
// 2 KB, on their way, and asks for the next one when it has computed with one. 80 registers let three
// blocks of 8 warps into a multiprocessor: 3 * 8 * 2 KB = 48 KB; the 128 of four tiles two, 32 KB.
// Matrices are small: 2048 inputs in nibbles are 16 units, two for each of 8 warps, so that all a
// warp will ever load is asked for at once. 4096 outputs are 256 blocks, 31 KB for each
// multiprocessor in one wave, 16384 are 1024, nearly three, whose ends overlap: blocks of 16 outputs
// are as small as tensor cores allow, and leave the least behind at the end.
#pragma once

#include "fragments.cuh"

constexpr unsigned GEMV_OUTPUTS = 16, GEMV_WARPS = 8;
// Units that a warp has on their way.
constexpr int GEMV_DEPTH = 2;
// Elements that columns lie apart beyond their length: two of them fall on different banks.
constexpr unsigned GEMV_PAD = 32;
// Inputs whose activations are in shared memory at a time, by tiles of eight columns.
__host__ __device__ constexpr unsigned gemv_inputs(int tiles) { return tiles == 1 ? 2048 : 1024; }
// Floats between the sums of two warps: those of several fall on different banks.
__host__ __device__ constexpr unsigned gemv_partial(int tiles) {
  return GEMV_OUTPUTS * 8 * tiles + 1;
}

// What is multiplied: rows of a weight with `rows * planes` columns.
struct GemvJob {
  Weight weight;
  unsigned outputs, inputs, rows, planes;
};

// Activations in shared memory: parts in bf16, [columns, stride], and their sums over spans of
// inputs, [spans, 8 * TILES].
template <int TILES> struct GemvColumns {
  static constexpr unsigned INPUTS = gemv_inputs(TILES);

  const GemvJob& job;
  unsigned stride, span_log2;
  unsigned short* parts;
  float* sums;

  // Spans are groups, or the part of one that a unit of `unit` inputs has.
  __device__ __forceinline__ GemvColumns(const GemvJob& job, unsigned unit)
      : job(job), stride((min(INPUTS, job.inputs) + 63) / 64 * 64 + GEMV_PAD),
        span_log2(min(job.weight.format.group_log2(), 31 - __clz(unit))),
        parts(dynamic_shared<unsigned short>()),
        sums(reinterpret_cast<float*>(parts + job.rows * job.planes * stride)) {}

  // Parts the activations from input `first` on. `load(values, row, input, live)` loads an octet.
  template <class Load> __device__ __forceinline__ void fill(unsigned first, Load load) const {
    const unsigned octets = (min(INPUTS, job.inputs - first) + 31) / 32 * 4;
    const unsigned all = job.rows * octets, span = 1u << span_log2;
    // Whole warps: they add up what their lanes have.
    for (unsigned i = threadIdx.x; i < (all + WARP - 1) / WARP * WARP; i += blockDim.x) {
      const unsigned row = i / octets, octet = i % octets;
      float values[8];
      load(values, row, first + 8 * octet, i < all);
#pragma unroll 1
      for (unsigned plane = 0; plane < job.planes; ++plane) {
        const unsigned column = row * job.planes + plane;
        const uint4 part = next_part(values);
        if (i < all) *reinterpret_cast<uint4*>(parts + column * stride + 8 * octet) = part;
        if (!job.weight.format.biased()) continue;
        float sum = sum_of_part(part);
#pragma unroll 1
        for (unsigned lanes = 1; 8 * lanes < span; lanes *= 2)
          sum += __shfl_xor_sync(ALL_LANES, sum, lanes);
        if (i < all && 8 * octet % span == 0)
          sums[(8 * octet >> span_log2) * 8 * TILES + column] = sum;
      }
    }
  }
};

// A unit of rows `g` and `g + 8`, and the scales of its first four groups: lane `4 g + q` has those
// of group `q`.
template <Kind K> struct GemvUnit {
  Raw<K> raw[2];
  // In 32 bits with biases the scale alone.
  unsigned scales[2];
};

template <Kind K, int TILES> struct Gemv {
  static constexpr unsigned WINDOWS = windows_of(K), INPUTS = 32 * WINDOWS;

  const GemvJob& job;
  const GemvColumns<TILES>& columns;
  const unsigned lane, q;
  // The lane's codes of row `g` and the scales of that row, and how many words further those of row
  // `g + 8` are. Rows beyond the last are those of the last: their sums are not written.
  const unsigned* codes;
  const unsigned* scales;
  unsigned codes_step, scales_step;
  // Outputs `g` and `g + 8`, columns `2 q` and `2 q + 1` of each tile; then of the group at hand.
  float sums[TILES][4] = {}, products[TILES][4] = {};

  __device__ __forceinline__ Gemv(const GemvJob& job, const GemvColumns<TILES>& columns,
                                  unsigned first_output)
      : job(job), columns(columns), lane(threadIdx.x % WARP), q(threadIdx.x % 4) {
    const Weight& weight = job.weight;
    const unsigned row = min(first_output + lane / 4, job.outputs - 1);
    const unsigned step = min(first_output + lane / 4 + 8, job.outputs - 1) - row;
    codes = weight.codes + static_cast<size_t>(row) * weight.row_words + q * (unit_words_of(K) / 4);
    scales = weight.scales + static_cast<size_t>(row) * weight.scale_words;
    codes_step = step * weight.row_words, scales_step = step * weight.scale_words;
  }

  // The scale of group `group` of a unit in row `i`; zero beyond the last group.
  __device__ __forceinline__ RawScale load_group(unsigned i, unsigned index, unsigned group) const {
    const WeightFormat format = job.weight.format;
    const unsigned at = (index * INPUTS >> format.group_log2()) + group;
    if (at >= job.inputs >> format.group_log2()) return RawScale{0, 0};
    return load_scale(scales + i * scales_step, at, format);
  }

  __device__ __forceinline__ void load(GemvUnit<K>& unit, unsigned index) const {
    const unsigned here = max(INPUTS >> job.weight.format.group_log2(), 1u);
#pragma unroll
    for (unsigned i = 0; i < 2; ++i) {
      unit.raw[i] = load_unit<K>(codes + i * codes_step, index, 0);
      unit.scales[i] = 0;
      if (!is_plain(K) && q < here) unit.scales[i] = load_group(i, index, q).scale;
    }
  }

  // The scales and biases of the lane's group of a unit.
  __device__ __forceinline__ void convert(float2 (&mine)[2], const GemvUnit<K>& unit,
                                          unsigned index) const {
    const WeightFormat format = job.weight.format;
    const bool apart = format.scale_type() == ScaleType::F32 && format.biased();
    const unsigned here = max(INPUTS >> format.group_log2(), 1u);
#pragma unroll
    for (unsigned i = 0; i < 2; ++i) {
      RawScale raw = {unit.scales[i], 0};
      if (apart && q < here) raw = load_group(i, index, q);
      mine[i] = scale_of(raw, format);
    }
  }

  // Ends a group whose span of inputs begins at `first` of the shared ones.
  __device__ __forceinline__ void scale(const float2 (&scales)[2], unsigned first) {
    const bool biased = job.weight.format.biased();
    const float* inputs = columns.sums + (first >> columns.span_log2) * 8 * TILES + 2 * q;
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
      float2 input = make_float2(0.0f, 0.0f);
      if (biased) input = *reinterpret_cast<const float2*>(inputs + 8 * tile);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sums[tile][i] += scales[i / 2].x * products[tile][i];
        if (biased) sums[tile][i] += scales[i / 2].y * (i % 2 ? input.y : input.x);
        products[tile][i] = 0.0f;
      }
    }
  }

  // The scales of a group of a unit, from the lane that has them.
  __device__ __forceinline__ void take(float2 (&scales)[2], const float2 (&mine)[2],
                                       unsigned group) const {
#pragma unroll
    for (unsigned i = 0; i < 2; ++i) {
      scales[i].x = __shfl_sync(ALL_LANES, mine[i].x, group, 4);
      scales[i].y = 0.0f;
      if (job.weight.format.biased()) scales[i].y = __shfl_sync(ALL_LANES, mine[i].y, group, 4);
    }
  }

  // Window `w` of unit `index` in two groups of 16: first the activations of two of four lanes, then
  // those of the others.
  __device__ __forceinline__ void halves(const unsigned (&octets)[2][4], const uint4 (&x)[TILES],
                                         const float2 (&mine)[2], unsigned index, unsigned w,
                                         unsigned first) {
#pragma unroll 1
    for (unsigned half = 0; half < 2; ++half) {
#pragma unroll
      for (int tile = 0; tile < TILES; ++tile)
        multiply_window(products[tile], octets[0], octets[1],
                        q / 2 == half ? x[tile] : make_uint4(0, 0, 0, 0));
      float2 scales[2];
      if (w < 2) {
        take(scales, mine, 2 * w + half);
      } else {
        // Of nibbles there are eight.
#pragma unroll
        for (unsigned i = 0; i < 2; ++i)
          scales[i] = scale_of(load_group(i, index, 2 * w + half), job.weight.format);
      }
      scale(scales, first + 16 * half);
    }
  }

  // Window `w` of unit `index` with codes, whose first input is at `first` of the shared ones; `last`
  // if no other of the unit follows.
  __device__ __forceinline__ void groups(const GemvUnit<K>& unit, const uint4 (&x)[TILES],
                                         const float2 (&mine)[2], unsigned index, unsigned w,
                                         unsigned first, bool last) {
    const WeightFormat format = job.weight.format;
    const unsigned log2 = format.group_log2();
    unsigned octets[2][4];
    decode_octet<K>(octets[0], unit.raw[0], w, format.zero());
    decode_octet<K>(octets[1], unit.raw[1], w, format.zero());
    if (log2 == 4) {
      halves(octets, x, mine, index, w, first);
      return;
    }
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile)
      multiply_window(products[tile], octets[0], octets[1], x[tile]);
    if (last || (32 * (w + 1) & ((1u << log2) - 1)) == 0) {
      float2 scales[2];
      take(scales, mine, 32 * w >> log2);
      scale(scales, first);
    }
  }

  // Adds unit `index`.
  __device__ __forceinline__ void compute(const GemvUnit<K>& unit, unsigned index) {
    float2 mine[2] = {};
    if constexpr (!is_plain(K)) convert(mine, unit, index);
    const unsigned live = job.rows * job.planes;
#pragma unroll
    for (unsigned w = 0; w < WINDOWS; ++w) {
      const unsigned input = index * INPUTS + 32 * w, first = input % gemv_inputs(TILES);
      if (input >= job.inputs) break;
      uint4 x[TILES];
#pragma unroll
      for (int tile = 0; tile < TILES; ++tile) {
        // Columns beyond the last are the last: their sums are not read.
        const unsigned column = min(8 * tile + lane / 4, live - 1);
        x[tile] = *reinterpret_cast<const uint4*>(columns.parts + column * columns.stride + first +
                                                  8 * q);
      }
      if constexpr (is_plain(K)) {
        unsigned parts[2][parts_of(K)][4];
        decode_parts<K>(parts[0], unit.raw[0], w, 0);
        decode_parts<K>(parts[1], unit.raw[1], w, 0);
#pragma unroll
        for (int part = parts_of(K); part-- > 0;)
#pragma unroll
          for (int tile = 0; tile < TILES; ++tile)
            multiply_window(sums[tile], parts[0][part], parts[1][part], x[tile]);
      } else {
        groups(unit, x, mine, index, w, first, w + 1 == WINDOWS || input + 32 >= job.inputs);
      }
    }
  }

  // Goes over all inputs with the other warps of `split`, of which this one is `part`.
  template <class Load>
  __device__ __forceinline__ void run(unsigned part, unsigned split, Load load_x) {
    const unsigned units = (job.inputs + INPUTS - 1) / INPUTS, turns = (units + split - 1) / split;
    // Turns that find their activations in shared memory.
    const unsigned held = gemv_inputs(TILES) / INPUTS / split;
    GemvUnit<K> unit[GEMV_DEPTH];
#pragma unroll
    for (unsigned i = 0; i < GEMV_DEPTH; ++i)
      if (i * split + part < units) load(unit[i], i * split + part);
#pragma unroll 1
    for (unsigned first = 0; first < turns; first += GEMV_DEPTH)
#pragma unroll
      for (unsigned i = 0; i < GEMV_DEPTH; ++i) {
        // All warps of a block wait for one another.
        const unsigned turn = first + i, index = turn * split + part;
        if (turn >= turns) break;
        if (turn % held == 0) {
          __syncthreads();
          columns.fill(turn / held * gemv_inputs(TILES), load_x);
          __syncthreads();
        }
        if (index < units) compute(unit[i], index);
        if (index + GEMV_DEPTH * split < units) load(unit[i], index + GEMV_DEPTH * split);
      }
  }

  // Adds up what the `split` warps of each group have, the smallest parts first, in `partial`,
  // [warps, gemv_partial(TILES)], and gives `put(row, output, sum)` the results; outputs count from
  // the block's first.
  template <class Put>
  __device__ __forceinline__ void finish(float* partial, unsigned split, Put put) const {
    const unsigned warp = threadIdx.x / WARP;
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
      for (unsigned i = 0; i < 4; ++i) {
        const unsigned output = lane / 4 + i / 2 * 8, column = 8 * tile + 2 * q + i % 2;
        partial[warp * gemv_partial(TILES) + output * 8 * TILES + column] = sums[tile][i];
      }
    __syncthreads();
    // `split` neighbours add up a result.
    const unsigned outputs = blockDim.x / WARP / split * GEMV_OUTPUTS;
    const unsigned all = outputs * job.rows * split;
    for (unsigned i = threadIdx.x; i < (all + WARP - 1) / WARP * WARP; i += blockDim.x) {
      const unsigned row = i / split / outputs, output = i / split % outputs;
      const unsigned from = output / GEMV_OUTPUTS * split + i % split;
      const float* at = partial + from * gemv_partial(TILES) + output % GEMV_OUTPUTS * 8 * TILES;
      float sum = 0.0f;
      if (i < all)
        for (unsigned plane = job.planes; plane-- > 0;) sum += at[row * job.planes + plane];
      for (unsigned lanes = 1; lanes < split; lanes *= 2)
        sum += __shfl_xor_sync(ALL_LANES, sum, lanes);
      if (i < all && i % split == 0) put(row, output, sum);
    }
  }
};
