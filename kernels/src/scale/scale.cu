// `scale`: four elements a thread, in loads and stores of 16 bytes. Bound by memory: 8 bytes move
// for each element. Once a step, over the rows of the step.
#include "../gpu/cuda.cuh"

// Of all rows as one array of `len`, each block has four elements for each of its threads.
extern "C" __global__ void __launch_bounds__(256)
    scale(float* out, float factor, unsigned len, unsigned wide) {
  const size_t start = static_cast<size_t>(blockIdx.x) * blockDim.x * 4;
  const unsigned rest = static_cast<unsigned>(len - start), first = threadIdx.x * 4;
  const float4 four = load_four(out + start, first, rest, wide);
  const float4 factors = make_float4(factor, factor, factor, factor);
  const float4 scaled = map_four(four, factors, [](float a, float b) { return a * b; });
  store_four(out + start, first, rest, wide, scaled);
}
