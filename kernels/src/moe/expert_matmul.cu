// `expert_matmul`: the kernels of `expert_gemv.cuh`, for each kind of weight, and those of
// `expert_gemm.cuh`, for each way of storing one and 1 or 3 parts. Grids have a block for as many
// blocks of pairs as any choice may make, surplus ones are without pairs, times tiles of outputs.
#include "expert_gemm.cuh"
#include "expert_gemv.cuh"

#define EXPERT_GEMV(NAME, KIND, BLOCKS)                                                          \
  extern "C" __global__ void __launch_bounds__(GEMV_WARPS* WARP, BLOCKS)                         \
      expert_gemv_##NAME(EXPERT_PARAMETERS, unsigned planes, unsigned split) {                   \
    __shared__ float partial[GEMV_WARPS * gemv_partial(1)];                                      \
    const ExpertJob job = EXPERT_JOB(GEMV_WARPS / split * GEMV_OUTPUTS);                         \
    __shared__ ExpertJob kept;                                                                   \
    expert_gemv<Kind::KIND>(job, kept, planes, split, partial);                                  \
  }

// The last is how many blocks a multiprocessor is to have room for.
EXPERT_GEMV(nibbles, NIBBLES, 3)
EXPERT_GEMV(bytes, BYTES, 3)
EXPERT_GEMV(e2m1, E2M1, 3)
EXPERT_GEMV(iq4_nl, IQ4_NL, 3)
EXPERT_GEMV(e4m3, E4M3, 3)
EXPERT_GEMV(bf16, BF16, 3)
EXPERT_GEMV(f16, F16, 3)
EXPERT_GEMV(f32, F32, 2)

#define EXPERT_GEMM(NAME, STORE, WP, XP)                                                          \
  extern "C" __global__ void __launch_bounds__(EXPERT_GEMM_THREADS)                               \
      expert_gemm_##NAME(EXPERT_PARAMETERS) {                                                     \
    using Shared = typename ExpertGemm<Store::STORE, WP, XP>::Shared;                             \
    __shared__ Shared shared;                                                                     \
    const ExpertJob job = EXPERT_JOB(EXPERT_GEMM_OUTPUTS);                                        \
    expert_gemm<Store::STORE, WP, XP>(job, shared);                                               \
  }

EXPERT_GEMM(nibbles_1, NIBBLES, 1, 1)
EXPERT_GEMM(nibbles_3, NIBBLES, 1, 3)
EXPERT_GEMM(bytes_1, BYTES, 1, 1)
EXPERT_GEMM(bytes_3, BYTES, 1, 3)
EXPERT_GEMM(bf16_1, HALVES, 1, 1)
EXPERT_GEMM(bf16_3, HALVES, 1, 3)
// Plain f16 and f32 are not rounded to fewer parts than they have.
EXPERT_GEMM(f16_3, HALVES, 2, 3)
EXPERT_GEMM(f32_3, WORDS, 3, 3)
