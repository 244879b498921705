// `matmul`: the kernels of `gemv.cuh`, for each kind of weight and 1, 2 or 4 tiles of 8 planes of
// activations, and those of `gemm.cuh`, for 1 to 3 parts and blocks of 32 or 128 rows.
// Many rows are rounded once before; that moves 6 bytes for each element.
#include "gemm.cuh"
#include "gemv.cuh"

template <Kind K, int TILES>
__device__ __forceinline__ void few(const Product& product, float* partial) {
  const GemvJob job = {product.weight, product.outputs, product.inputs, product.rows, product.planes};
  const GemvColumns<TILES> columns(job, Gemv<K, TILES>::INPUTS);
  const unsigned split = blockDim.x / WARP, first = product.block * GEMV_OUTPUTS;
  Gemv<K, TILES> work(job, columns, first);
  work.run(threadIdx.x / WARP, split, [&](float(&values)[8], unsigned row, unsigned input, bool live) {
    load_octet(values, product.x + static_cast<size_t>(row) * product.x_stride, input,
               product.inputs, live);
  });
  work.finish(partial, split, [&](unsigned row, unsigned output, float sum) {
    if (first + output < product.outputs) put(product, row, first + output, sum);
  });
}

#define GEMV(NAME, KIND, TILES, BLOCKS)                                                     \
  extern "C" __global__ void __launch_bounds__(GEMV_WARPS* WARP, BLOCKS)                    \
      NAME(PRODUCT_PARAMETERS) {                                                            \
    __shared__ float partial[GEMV_WARPS * gemv_partial(TILES)];                             \
    few<Kind::KIND, TILES>(PRODUCT(GEMV_OUTPUTS, blockIdx.y), partial);                     \
  }
// For 1, 2 and 4 tiles, with so many blocks that a multiprocessor is to have room for.
#define GEMVS(NAME, KIND, ONE, TWO, FOUR)     \
  GEMV(matmul_gemv_##NAME##_1, KIND, 1, ONE) \
  GEMV(matmul_gemv_##NAME##_2, KIND, 2, TWO) \
  GEMV(matmul_gemv_##NAME##_4, KIND, 4, FOUR)

GEMVS(nibbles, NIBBLES, 3, 2, 2)
GEMVS(bytes, BYTES, 3, 2, 2)
GEMVS(e2m1, E2M1, 3, 2, 2)
GEMVS(iq4_nl, IQ4_NL, 3, 2, 2)
GEMVS(e4m3, E4M3, 3, 2, 2)
GEMVS(bf16, BF16, 4, 3, 2)
GEMVS(f16, F16, 4, 3, 2)
GEMVS(f32, F32, 3, 2, 2)

// What is one part was rounded before.
#define GEMM(NAME, PARTS, TILES)                                                        \
  extern "C" __global__ void __launch_bounds__(GEMM_THREADS) NAME(PRODUCT_PARAMETERS) { \
    gemm<PARTS, TILES, PARTS == 1>(PRODUCT(GEMM_OUTPUTS, blockIdx.z));                  \
  }

GEMM(matmul_gemm_rounded_32, 1, 1)
GEMM(matmul_gemm_2_32, 2, 1)
GEMM(matmul_gemm_3_32, 3, 1)
GEMM(matmul_gemm_rounded_128, 1, 4)
GEMM(matmul_gemm_2_128, 2, 4)
GEMM(matmul_gemm_3_128, 3, 4)

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
