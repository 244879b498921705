// `matmul`: the kernels of `gemv.cuh`, for each kind of weight and 1, 2 or 4 tiles of 8 planes of
// activations, and those of `gemm.cuh`, for 1 to 3 parts and blocks of 32 or 128 rows.
// Many rows are rounded once before; that moves 6 bytes for each element.
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
    gemm<PARTS, TILES, false>(PRODUCT(blockIdx.z), nullptr);                               \
  }
#define GEMM_ROUNDED(NAME, TILES)                                             \
  extern "C" __global__ void __launch_bounds__(GEMM_THREADS)                  \
      NAME(PRODUCT_PARAMETERS, const unsigned* rounded) {                     \
    gemm<1, TILES, true>(PRODUCT(blockIdx.z), rounded);                       \
  }

GEMM(matmul_gemm_1_32, 1, 1)
GEMM(matmul_gemm_2_32, 2, 1)
GEMM(matmul_gemm_3_32, 3, 1)
GEMM(matmul_gemm_1_128, 1, 4)
GEMM(matmul_gemm_2_128, 2, 4)
GEMM(matmul_gemm_3_128, 3, 4)
GEMM_ROUNDED(matmul_gemm_rounded_32, 1)
GEMM_ROUNDED(matmul_gemm_rounded_128, 4)

// Rounds rows of activations to bf16, filled up with zeros to windows of 32 columns: a thread an octet.
extern "C" __global__ void __launch_bounds__(256)
    matmul_round(unsigned* out, const float* x, unsigned octets, unsigned inputs) {
  const unsigned row_octets = (inputs + 31) / 32 * 4;
  for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < octets; i += gridDim.x * blockDim.x) {
    const size_t row = i / row_octets;
    const unsigned column = i % row_octets * 8;
    float values[8];
    load_octet(values, x + row * inputs, column, inputs, true);
    reinterpret_cast<uint4*>(out)[i] =
        make_uint4(round_pair(values[0], values[1]), round_pair(values[2], values[3]),
                   round_pair(values[4], values[5]), round_pair(values[6], values[7]));
  }
}
