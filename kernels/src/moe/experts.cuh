// What the kernels of `expert_matmul` work on: pairs of one expert times some outputs of it.
#pragma once

#include "../matmul/fragments.cuh"

// A stack of experts, one after another, and where its results go.
struct ExpertStack {
  float* out;  // [pairs, outputs]
  const unsigned* codes;
  const unsigned* scales;
  unsigned row_words, scale_words, format, outputs;
};

// Two stacks with the same input, as gate and up; the second may have no outputs.
#define EXPERT_PARAMETERS                                                                       \
  float *out_0, const unsigned *codes_0, const unsigned *scales_0, unsigned row_words_0,        \
      unsigned scale_words_0, unsigned format_0, unsigned outputs_0, float *out_1,              \
      const unsigned *codes_1, const unsigned *scales_1, unsigned row_words_1,                  \
      unsigned scale_words_1, unsigned format_1, unsigned outputs_1, const float *x,            \
      const unsigned *pair_rows, const uint4 *blocks, unsigned inputs, unsigned gather,         \
      unsigned reading
// `reading` is 1 if four activations begin at a multiple of 16 bytes, 2 if they are rounded.
// The work of block (x, y): the pairs of block x of the list, `OUTPUTS` outputs from tile y on.
#define EXPERT_JOB(OUTPUTS)                                                                     \
  expert_job({out_0, codes_0, scales_0, row_words_0, scale_words_0, format_0, outputs_0},       \
             {out_1, codes_1, scales_1, row_words_1, scale_words_1, format_1, outputs_1}, x,    \
             pair_rows, blocks[blockIdx.x], inputs, gather != 0, reading, OUTPUTS)

struct ExpertJob {
  float* out;              // of the first pair
  const float* x;          // of the first pair, or of the first row where pairs read rows
  const unsigned* rows;    // rows that the pairs read; null where each reads its own
  Weight weight;           // of the expert
  unsigned outputs, inputs, first_output, pairs;
  bool vectors;            // four activations begin at a multiple of 16 bytes
  bool rounded;            // `x` has rows in bf16, filled up to windows of 32 inputs

  // The activations of a pair.
  __device__ __forceinline__ const float* input(unsigned pair) const {
    return x + static_cast<size_t>(rows ? rows[pair] : pair) * inputs;
  }
  // The octet from `column` on of those of a pair that were rounded before.
  __device__ __forceinline__ const uint4* part(unsigned pair, unsigned column) const {
    const size_t row = rows ? rows[pair] : pair;
    return reinterpret_cast<const uint4*>(x) + (row * ((inputs + 31) / 32 * 4) + column / 8);
  }
};

__device__ __forceinline__ ExpertJob expert_job(ExpertStack stack, ExpertStack second,
                                                const float* x, const unsigned* pair_rows,
                                                uint4 block, unsigned inputs, bool gather,
                                                unsigned reading, unsigned outputs_of_tile) {
  unsigned tile = blockIdx.y;
  const unsigned tiles = (stack.outputs + outputs_of_tile - 1) / outputs_of_tile;
  if (tile >= tiles) {
    tile -= tiles;
    stack = second;
  }
  const size_t expert = block.x;
  ExpertJob job;
  job.out = stack.out + static_cast<size_t>(block.y) * stack.outputs;
  // Words of a row; those of rounded ones are pairs.
  const size_t row_words = reading & 2 ? (inputs + 31) / 32 * 16 : inputs;
  job.x = gather ? x : x + block.y * row_words;
  job.rows = gather ? pair_rows + block.y : nullptr;
  job.weight.codes = stack.codes + expert * stack.outputs * stack.row_words;
  job.weight.scales = stack.scales + expert * stack.outputs * stack.scale_words;
  job.weight.row_words = stack.row_words;
  job.weight.scale_words = stack.scale_words;
  job.weight.format.word = stack.format;
  job.outputs = stack.outputs;
  job.inputs = inputs;
  job.first_output = tile * outputs_of_tile;
  job.pairs = block.z;
  job.vectors = reading & 1;
  job.rounded = reading & 2;
  return job;
}

// Eight activations of `row` from `column` on, zeros beyond the end; all of them where there is
// none.
__device__ __forceinline__ void expert_octet(float (&values)[8], const ExpertJob& job,
                                             const float* row, unsigned column) {
  if (row && job.vectors && column + 8 <= job.inputs) {
    const float4 low = *reinterpret_cast<const float4*>(row + column);
    const float4 high = *reinterpret_cast<const float4*>(row + column + 4);
    values[0] = low.x, values[1] = low.y, values[2] = low.z, values[3] = low.w;
    values[4] = high.x, values[5] = high.y, values[6] = high.z, values[7] = high.w;
  } else {
#pragma unroll
    for (unsigned i = 0; i < 8; ++i)
      values[i] = row && column + i < job.inputs ? row[column + i] : 0.0f;
  }
}
