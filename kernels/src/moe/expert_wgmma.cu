// `expert_matmul` of many pairs on GPUs of 9.0: the kernels of `wgmma.cuh` for each way of storing a
// weight that is one part of bf16. A block has up to 64 pairs of one expert and 256 outputs, as in
// `expert_gemm.cuh`; its products have as many columns as its pairs need, by sixteens from 32 on.
#include "../matmul/wgmma.cuh"
#include "experts.cuh"

template <Store S, unsigned N>
__device__ __forceinline__ void wgmma_pairs(const ExpertJob& job) {
#ifdef SCONCE_WGMMA
  Wgmma<S, N, 2, 2> work(job.weight, job.outputs, job.inputs, job.first_output,
                         dynamic_shared<unsigned char>(), [&](unsigned pair) {
                           return pair < job.pairs ? job.part(pair, 0) : nullptr;
                         });
  work.run([&](unsigned pair, unsigned output, float sum) {
    if (pair < job.pairs && output < job.outputs)
      job.out[static_cast<size_t>(pair) * job.outputs + output] = sum;
  });
#else
  __trap();
#endif
}

template <Store S> __device__ __forceinline__ void wgmma_expert(const ExpertJob& job) {
  // A surplus block has no pairs.
  if (job.pairs == 0) return;
  if (job.pairs <= 32)
    wgmma_pairs<S, 32>(job);
  else if (job.pairs <= 48)
    wgmma_pairs<S, 48>(job);
  else
    wgmma_pairs<S, 64>(job);
}

#define EXPERT_WGMMA(NAME, STORE)                                                              \
  extern "C" __global__ void __launch_bounds__(256) expert_wgmma_##NAME(EXPERT_PARAMETERS) {   \
    const ExpertJob job = EXPERT_JOB(256);                                                     \
    wgmma_expert<Store::STORE>(job);                                                           \
  }

EXPERT_WGMMA(nibbles, NIBBLES)
EXPERT_WGMMA(bytes, BYTES)
EXPERT_WGMMA(bf16, HALVES)
