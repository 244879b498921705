// Experts times a few pairs each: reads the weights of the chosen experts once, at the speed of
// memory, as `gemv.cuh` does for one weight.
//
// A block has the pairs of one expert and 16 outputs for each group of `split` warps, which share
// the inputs, unit by unit. Pairs that have no room among eight columns pass the weights again, which
// are then in the second-level cache.
//
// Floor: the bytes of the chosen experts over the bandwidth. Ten experts of 512 x 2048 in nibbles,
// gate and up, are 640 blocks of 8 warps with two units each, 4.8 blocks for each of 132
// multiprocessors, of which three are at work at once with all they read on its way, 48 KB; down,
// with 4 units in a row, is 320 blocks with 64 outputs each, 2.4 for each, all at once.
#pragma once

#include "../matmul/gemv.cuh"
#include "experts.cuh"

constexpr unsigned EXPERT_GEMV_COLUMNS = 8;

// `partial` has the sums of all warps; dynamic shared memory has eight columns of activations. What
// the way over the inputs does not need waits in `kept`, and takes no registers meanwhile.
template <Kind K>
__device__ __forceinline__ void expert_gemv(const ExpertJob& job, ExpertJob& kept, unsigned planes,
                                            unsigned split, float* partial) {
  if (threadIdx.x == 0) kept = job;
  __syncthreads();
  const unsigned warp = threadIdx.x / WARP, at_once = EXPERT_GEMV_COLUMNS / planes;
  for (unsigned first_pair = 0; first_pair < kept.pairs; first_pair += at_once) {
    const GemvJob part = {job.weight, job.outputs, job.inputs,
                          min(at_once, kept.pairs - first_pair), planes};
    const GemvColumns<1> columns(part, Gemv<K, 1>::INPUTS);
    Gemv<K, 1> work(part, columns, kept.first_output + warp / split * GEMV_OUTPUTS);
    work.run(warp % split, split, [&](float(&values)[8], unsigned pair, unsigned input, bool live) {
      expert_octet(values, kept, live ? kept.input(first_pair + pair) : nullptr, input);
    });
    work.finish(partial, split, [&](unsigned pair, unsigned output, float sum) {
      const unsigned to = kept.first_output + output;
      if (to < kept.outputs)
        kept.out[static_cast<size_t>(first_pair + pair) * kept.outputs + to] = sum;
    });
  }
}
