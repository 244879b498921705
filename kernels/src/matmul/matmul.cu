// `matmul`: the kernels of `gemv.cuh`, for each kind of weight and 1, 2 or 4 tiles of 8 planes of
// activations, and those of `gemm.cuh`, for 1 to 3 parts and blocks of 32 or 128 rows.
#include "gemm.cuh"
#include "gemv.cuh"

#define GEMV(NAME, KIND, TILES)                                                                  \
  extern "C" __global__ void __launch_bounds__(GEMV_WARPS* WARP)                                 \
      NAME(PRODUCT_PARAMETERS, unsigned planes) {                                                \
    __shared__ float shared[GEMV_WARPS * GEMV_OUTPUTS * 8 * TILES];                              \
    gemv<Kind::KIND, TILES>(PRODUCT(blockIdx.y), planes, shared);                                \
  }
#define GEMVS(NAME, KIND)        \
  GEMV(matmul_gemv_##NAME##_1, KIND, 1) \
  GEMV(matmul_gemv_##NAME##_2, KIND, 2) \
  GEMV(matmul_gemv_##NAME##_4, KIND, 4)

GEMVS(nibbles, NIBBLES)
GEMVS(bytes, BYTES)
GEMVS(e2m1, E2M1)
GEMVS(iq4_nl, IQ4_NL)
GEMVS(e4m3, E4M3)
GEMVS(bf16, BF16)
GEMVS(f16, F16)
GEMVS(f32, F32)

#define GEMM(NAME, PARTS, TILES)                                                           \
  extern "C" __global__ void __launch_bounds__(GEMM_THREADS) NAME(PRODUCT_PARAMETERS) {    \
    gemm<PARTS, TILES>(PRODUCT(blockIdx.z));                                               \
  }

GEMM(matmul_gemm_1_32, 1, 1)
GEMM(matmul_gemm_2_32, 2, 1)
GEMM(matmul_gemm_3_32, 3, 1)
GEMM(matmul_gemm_1_128, 1, 4)
GEMM(matmul_gemm_2_128, 2, 4)
GEMM(matmul_gemm_3_128, 3, 4)
