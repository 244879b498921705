// `matmul` of many rows on GPUs of 9.0: the kernels of `wgmma.cuh` for each way of storing a weight
// that is one part of bf16, for blocks of 64 outputs times 32 rows and of 128 times 128; and how
// activations are rounded for them. Grids are those of `matmul.cu`.
#include "product.cuh"
#include "wgmma.cuh"

template <Store S, unsigned N, unsigned GROUPS>
__device__ __forceinline__ void wgmma_product(const Product& product) {
#ifdef SCONCE_WGMMA
  using Work = Wgmma<S, N, 1, GROUPS>;
  const unsigned first_row = blockIdx.y * N, octets = (product.inputs + 31) / 32 * 4;
  Work work(product.weight, product.outputs, product.inputs, product.block * Work::OUTPUTS,
            dynamic_shared<unsigned char>(), [&](unsigned row) -> const uint4* {
              if (first_row + row >= product.rows) return nullptr;
              const size_t words = static_cast<size_t>(first_row + row) * octets;
              return reinterpret_cast<const uint4*>(product.x) + words;
            });
  work.run([&](unsigned row, unsigned output, float sum) {
    if (first_row + row < product.rows && output < product.outputs)
      put(product, first_row + row, output, sum);
  });
#else
  __trap();
#endif
}

#define MATMUL_WGMMA(NAME, STORE, N, GROUPS, BLOCKS)                                          \
  extern "C" __global__ void __launch_bounds__(128 * GROUPS, BLOCKS) NAME(PRODUCT_PARAMETERS) { \
    wgmma_product<Store::STORE, N, GROUPS>(PRODUCT(64 * GROUPS, blockIdx.z));                 \
  }

// The last is how many blocks a multiprocessor is to have room for.
MATMUL_WGMMA(matmul_wgmma_nibbles_32, NIBBLES, 32, 1, 4)
MATMUL_WGMMA(matmul_wgmma_bytes_32, BYTES, 32, 1, 4)
MATMUL_WGMMA(matmul_wgmma_bf16_32, HALVES, 32, 1, 4)
MATMUL_WGMMA(matmul_wgmma_nibbles_128, NIBBLES, 128, 2, 2)
MATMUL_WGMMA(matmul_wgmma_bytes_128, BYTES, 128, 2, 2)
MATMUL_WGMMA(matmul_wgmma_bf16_128, HALVES, 128, 2, 2)

// Rounds rows of activations to bf16, filled up with zeros to windows of 32 columns. A thread makes
// 16 bytes of a window: pair `i % 4` of each of its four octets.
extern "C" __global__ void __launch_bounds__(256)
    matmul_round_wgmma(unsigned* out, const float* x, unsigned octets, unsigned inputs) {
  const unsigned row_octets = (inputs + 31) / 32 * 4;
  for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < octets; i += gridDim.x * blockDim.x) {
    const float* row = x + static_cast<size_t>(i / row_octets) * inputs;
    const unsigned first = i % row_octets / 4 * 32 + i % 4 * 2;
    unsigned pairs[4];
#pragma unroll
    for (unsigned q = 0; q < 4; ++q) {
      const unsigned column = first + 8 * q;
      float2 two = make_float2(0.0f, 0.0f);
      if (inputs % 4 == 0) {
        if (column < inputs) two = *reinterpret_cast<const float2*>(row + column);
      } else {
        if (column < inputs) two.x = row[column];
        if (column + 1 < inputs) two.y = row[column + 1];
      }
      pairs[q] = round_pair(two.x, two.y);
    }
    reinterpret_cast<uint4*>(out)[i] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
  }
}
