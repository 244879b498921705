// Experts times a few pairs each: reads the weights of the chosen experts once, at the speed of
// memory.
//
// A block has the pairs of one expert and 16 outputs for each group of `split` warps, which share
// the inputs, unit by unit. Activations are parted into bf16 once for the block and wait in shared
// memory; a column there is one part of one pair, of `planes` for each pair: 1 rounds it to bf16, 3
// keep all its bits. 16 outputs times 16 inputs of codes, as they were loaded, are one operand of a
// tensor core, eight columns the other, so that a word of eight codes costs some ten instructions
// whatever the number of pairs. Codes are exact, sums are f32, and a group's scale and bias
// multiply its sum of products and its sum of activations, which the tensor core adds up too. Pairs
// that have no room among eight columns pass the weights again, which are then in the second-level
// cache. Floor: the bytes of the chosen experts over the bandwidth. 2 KiB are on their way for each
// warp before the activations are looked at, 64 KiB for a multiprocessor with 32 of them.
#pragma once

#include "experts.cuh"

constexpr unsigned EXPERT_GEMV_OUTPUTS = 16, EXPERT_GEMV_WARPS = 8, EXPERT_GEMV_COLUMNS = 8;
// Blocks that a multiprocessor is to have room for.
constexpr unsigned EXPERT_GEMV_BLOCKS = 3;
// Units that a warp loads before it computes with them.
constexpr int EXPERT_GEMV_DEPTH = 2;
// Inputs whose activations are in shared memory at a time.
constexpr unsigned EXPERT_GEMV_INPUTS = 2048;
// Elements that columns lie apart beyond their length: two of them fall on different banks.
constexpr unsigned EXPERT_GEMV_PAD = 32;

// A unit of rows `g` and `g + 8`, and the scales of its first four groups: lane `4 g + q` has those
// of group `q`.
template <Kind K> struct ExpertUnit {
  Raw<K> raw[2];
  RawScale scales[2];
};

template <Kind K> struct ExpertGemv {
  static constexpr unsigned WINDOWS = windows_of(K), INPUTS = 32 * WINDOWS;

  const ExpertJob& job;
  const unsigned lane, q;
  // Rows beyond the last are those of the last: their sums are not written.
  const unsigned rows[2];
  // Outputs `g` and `g + 8`, columns `2 q` and `2 q + 1`; then the same of the group at hand, and
  // of its activations.
  float sums[4] = {}, products[4] = {}, inputs[4] = {};

  __device__ __forceinline__ ExpertGemv(const ExpertJob& job, unsigned first_output)
      : job(job), lane(threadIdx.x % WARP), q(threadIdx.x % 4),
        rows{min(first_output + lane / 4, job.outputs - 1),
             min(first_output + lane / 4 + 8, job.outputs - 1)} {}

  // The scale of group `group` of a unit in row `i`; zero beyond the last group.
  __device__ __forceinline__ RawScale load_group(unsigned i, unsigned index, unsigned group) const {
    const Weight& weight = job.weight;
    const WeightFormat format = weight.format;
    const unsigned at = (index * INPUTS >> format.group_log2()) + group;
    if (at >= job.inputs >> format.group_log2()) return RawScale{0, 0};
    const size_t row = rows[i];
    return load_scale(weight.scales + row * weight.scale_words, at, format);
  }

  __device__ __forceinline__ void load(ExpertUnit<K>& unit, unsigned index) const {
    const Weight& weight = job.weight;
    const unsigned here = max(INPUTS >> weight.format.group_log2(), 1u);
#pragma unroll
    for (unsigned i = 0; i < 2; ++i) {
      const unsigned* row = weight.codes + static_cast<size_t>(rows[i]) * weight.row_words;
      unit.raw[i] = load_unit<K>(row, index, q);
      unit.scales[i] = RawScale{0, 0};
      if (!is_plain(K) && q < here) unit.scales[i] = load_group(i, index, q);
    }
  }

  // Ends a group, which counts from the first of unit `index`.
  __device__ __forceinline__ void scale(const ExpertUnit<K>& unit, unsigned index, unsigned group) {
    const WeightFormat format = job.weight.format;
    float2 scales[2];
#pragma unroll
    for (unsigned i = 0; i < 2; ++i) {
      RawScale raw;
      if (group < 4) {
        raw.scale = __shfl_sync(ALL_LANES, unit.scales[i].scale, group, 4);
        raw.bias = __shfl_sync(ALL_LANES, unit.scales[i].bias, group, 4);
      } else {
        // Of nibbles in groups of 16 there are eight.
        raw = load_group(i, index, group);
      }
      scales[i] = scale_of(raw, format);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sums[i] += scales[i / 2].x * products[i];
      if (format.biased()) sums[i] += scales[i / 2].y * inputs[i];
      products[i] = inputs[i] = 0.0f;
    }
  }

  __device__ __forceinline__ void multiply(const unsigned (&octets)[2][4], const uint4& x) {
    const unsigned ones[4] = {0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};
    expert_window(products, octets[0], octets[1], x);
    if (job.weight.format.biased()) expert_window(inputs, ones, ones, x);
  }

  // Window `w` of unit `index` with codes; `last` if no other of the unit follows.
  __device__ __forceinline__ void groups(const ExpertUnit<K>& unit, unsigned index, unsigned w,
                                         bool last, const uint4& x) {
    const WeightFormat format = job.weight.format;
    unsigned octets[2][4];
    decode_octet<K>(octets[0], unit.raw[0], w, format.zero());
    decode_octet<K>(octets[1], unit.raw[1], w, format.zero());
    const unsigned log2 = format.group_log2();
    if (log2 == 4) {
      // Two groups: first the activations of two of four lanes, then those of the others.
#pragma unroll
      for (unsigned half = 0; half < 2; ++half) {
        const bool mine = q / 2 == half;
        multiply(octets, mine ? x : make_uint4(0, 0, 0, 0));
        scale(unit, index, 2 * w + half);
      }
    } else {
      multiply(octets, x);
      if (last || (32 * (w + 1) & ((1u << log2) - 1)) == 0) scale(unit, index, 32 * w >> log2);
    }
  }

  // Adds a unit; its first input is at `x` of the lane's column, if that is `live`.
  __device__ __forceinline__ void compute(const ExpertUnit<K>& unit, unsigned index, unsigned x,
                                          bool live) {
#pragma unroll
    for (unsigned w = 0; w < WINDOWS; ++w) {
      const unsigned column = index * INPUTS + 32 * w;
      if (column >= job.inputs) break;
      uint4 octet = make_uint4(0, 0, 0, 0);
      if (live)
        octet = *reinterpret_cast<const uint4*>(dynamic_shared<unsigned short>() + x + 32 * w);
      if constexpr (is_plain(K)) {
        unsigned parts[2][parts_of(K)][4];
        decode_parts<K>(parts[0], unit.raw[0], w, 0);
        decode_parts<K>(parts[1], unit.raw[1], w, 0);
#pragma unroll
        for (int part = parts_of(K); part-- > 0;)
          expert_window(sums, parts[0][part], parts[1][part], octet);
      } else {
        groups(unit, index, w, w + 1 == WINDOWS || column + 32 >= job.inputs, octet);
      }
    }
  }
};

// Parts the activations of `count` pairs, from input `first` on, into columns `stride` apart.
__device__ __forceinline__ void expert_stage(unsigned short* columns, unsigned stride,
                                             const ExpertJob& job, unsigned first_pair,
                                             unsigned count, unsigned planes, unsigned first) {
  const unsigned octets = (min(EXPERT_GEMV_INPUTS, job.inputs - first) + 31) / 32 * 4;
  for (unsigned i = threadIdx.x; i < count * octets; i += blockDim.x) {
    const unsigned pair = i / octets, octet = i % octets;
    float values[8];
    expert_octet(values, job, job.input(first_pair + pair), first + 8 * octet);
    for (unsigned plane = 0; plane < planes; ++plane) {
      unsigned short* column = columns + (pair * planes + plane) * stride;
      *reinterpret_cast<uint4*>(column + 8 * octet) = expert_part(values);
    }
  }
}

// Adds up what the warps of each group of `split` have, the smallest parts first, and writes it.
__device__ __forceinline__ void expert_finish(const float* partial, const ExpertJob& job,
                                              unsigned first_pair, unsigned count, unsigned planes,
                                              unsigned split) {
  const unsigned outputs = EXPERT_GEMV_WARPS / split * EXPERT_GEMV_OUTPUTS;
  for (unsigned i = threadIdx.x; i < outputs * count; i += blockDim.x) {
    const unsigned pair = i / outputs, inside = i % outputs, output = job.first_output + inside;
    const unsigned warp = inside / EXPERT_GEMV_OUTPUTS * split, row = inside % EXPERT_GEMV_OUTPUTS;
    float sum = 0.0f;
    for (unsigned plane = planes; plane-- > 0;)
      for (unsigned w = warp; w < warp + split; ++w) {
        const unsigned at = (w * EXPERT_GEMV_OUTPUTS + row) * EXPERT_GEMV_COLUMNS;
        sum += partial[at + pair * planes + plane];
      }
    if (output < job.outputs)
      job.out[static_cast<size_t>(first_pair + pair) * job.outputs + output] = sum;
  }
}

// `partial` has the sums of all warps, [warps, outputs, columns]; dynamic shared memory has eight
// columns of activations.
template <Kind K>
__device__ __forceinline__ void expert_gemv(const ExpertJob& job, unsigned planes, unsigned split,
                                            float* partial) {
  using Work = ExpertGemv<K>;
  const unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, part = warp % split;
  const unsigned units = (job.inputs + Work::INPUTS - 1) / Work::INPUTS;
  const unsigned stride = min(EXPERT_GEMV_INPUTS, (job.inputs + 31) / 32 * 32) + EXPERT_GEMV_PAD;
  const unsigned at_once = EXPERT_GEMV_COLUMNS / planes, step = split * EXPERT_GEMV_DEPTH;
  unsigned short* columns = dynamic_shared<unsigned short>();
  for (unsigned first_pair = 0; first_pair < job.pairs; first_pair += at_once) {
    const unsigned count = min(at_once, job.pairs - first_pair);
    const bool live = lane / 4 < count * planes;
    Work work(job, job.first_output + warp / split * EXPERT_GEMV_OUTPUTS);
    for (unsigned start = 0; start < units; start += EXPERT_GEMV_INPUTS / Work::INPUTS) {
      const unsigned end = min(start + EXPERT_GEMV_INPUTS / Work::INPUTS, units);
      for (unsigned first = start + part; first < end || first == start + part; first += step) {
        ExpertUnit<K> unit[EXPERT_GEMV_DEPTH];
#pragma unroll
        for (int i = 0; i < EXPERT_GEMV_DEPTH; ++i)
          if (first + i * split < end) work.load(unit[i], first + i * split);
        if (first == start + part) {
          __syncthreads();
          expert_stage(columns, stride, job, first_pair, count, planes, start * Work::INPUTS);
          __syncthreads();
        }
#pragma unroll
        for (int i = 0; i < EXPERT_GEMV_DEPTH; ++i) {
          const unsigned index = first + i * split;
          const unsigned x = lane / 4 * stride + (index - start) * Work::INPUTS + 8 * work.q;
          if (index < end) work.compute(unit[i], index, x, live);
        }
      }
    }
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned row = lane / 4 + i / 2 * 8, column = 2 * work.q + i % 2;
      partial[(warp * EXPERT_GEMV_OUTPUTS + row) * EXPERT_GEMV_COLUMNS + column] = work.sums[i];
    }
    __syncthreads();
    expert_finish(partial, job, first_pair, count, planes, split);
  }
}
