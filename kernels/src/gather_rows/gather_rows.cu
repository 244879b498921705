// `gather_rows`: four elements a thread, in loads and stores of 16 bytes; blocks [rows, parts of a
// row]. Bound by memory: 8 bytes move for each element that is picked.
#include "../gpu/cuda.cuh"

extern "C" __global__ void __launch_bounds__(256)
    gather_rows(float* __restrict__ out, const float* __restrict__ x,
                const unsigned* __restrict__ indices, unsigned dim, unsigned wide) {
  const unsigned first = (blockIdx.y * blockDim.x + threadIdx.x) * 4;
  out += static_cast<size_t>(blockIdx.x) * dim;
  x += static_cast<size_t>(indices[blockIdx.x]) * dim;
  store_four(out, first, dim, wide, load_four(x, first, dim, wide));
}
