// `add`, `add_bias`, `add_gated`: four elements a thread, in loads and stores of 16 bytes. Bound by
// memory: 12 bytes move for each element of `add` and `add_gated`, 8 for one of `add_bias`, whose
// bias stays in a cache; the floor is their time at the bandwidth of memory. 2048 threads of a
// multiprocessor have 64 KiB on the way, more than its share of bandwidth times latency.
#include "../gpu/cuda.cuh"

// Of all rows as one array of `len`, each block has four elements for each of its threads.
extern "C" __global__ void __launch_bounds__(256)
    add(float* __restrict__ out, const float* __restrict__ x, unsigned len, unsigned wide) {
  const size_t start = static_cast<size_t>(blockIdx.x) * blockDim.x * 4;
  const unsigned rest = static_cast<unsigned>(len - start), first = threadIdx.x * 4;
  const float4 before = load_four(out + start, first, rest, wide);
  const float4 four = load_four(x + start, first, rest, wide);
  const float4 sum = map_four(before, four, [](float a, float b) { return a + b; });
  store_four(out + start, first, rest, wide, sum);
}

// Blocks [rows, parts of a row].
extern "C" __global__ void __launch_bounds__(256)
    add_bias(float* __restrict__ out, const float* __restrict__ bias, unsigned dim, unsigned wide) {
  const unsigned first = (blockIdx.y * blockDim.x + threadIdx.x) * 4;
  out += static_cast<size_t>(blockIdx.x) * dim;
  const float4 before = load_four(out, first, dim, wide);
  const float4 four = load_four(bias, first, dim, wide);
  const float4 sum = map_four(before, four, [](float a, float b) { return a + b; });
  store_four(out, first, dim, wide, sum);
}

// Blocks [rows, parts of a row].
extern "C" __global__ void __launch_bounds__(256)
    add_gated(float* __restrict__ out, const float* __restrict__ x, const float* __restrict__ gate,
              unsigned dim, unsigned wide) {
  const unsigned first = (blockIdx.y * blockDim.x + threadIdx.x) * 4;
  out += static_cast<size_t>(blockIdx.x) * dim;
  x += static_cast<size_t>(blockIdx.x) * dim;
  const float4 before = load_four(out, first, dim, wide);
  const float4 four = load_four(x, first, dim, wide);
  const float weight = sigmoid(gate[blockIdx.x]);
  const float4 sum = map_four(before, four, [=](float a, float b) { return fmaf(weight, b, a); });
  store_four(out, first, dim, wide, sum);
}
