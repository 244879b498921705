// `random_words`: a word a thread, 4 bytes written for each; a warp writes a whole line. Some
// 20 operations on integers for a word take somewhat longer than its bytes on an H200; run once when
// weights are made.
#include "../gpu/cuda.cuh"

__device__ __forceinline__ unsigned random_words_mixed(unsigned word) {
  word = (word ^ word >> 16) * 0x7feb352du;
  word = (word ^ word >> 15) * 0x846ca68bu;
  return word ^ word >> 16;
}

extern "C" __global__ void __launch_bounds__(256)
    random_words(unsigned* out, unsigned low, unsigned high, unsigned len) {
  const unsigned index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index < len) out[index] = random_words_mixed(random_words_mixed(index + low) ^ high);
}
