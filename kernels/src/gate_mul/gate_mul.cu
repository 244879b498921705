// `gate_mul`: four elements a thread, in loads and stores of 16 bytes. Bound by memory: 12 bytes
// move for each element. At the bandwidth of an H200 a multiprocessor has some 70 instructions for
// each: exact exponentials and divisions, some 30, cost no time.
#include "../gpu/cuda.cuh"

// g / 2 * (1 + tanh(u)) = g / (1 + exp(-2 u)), which loses nothing where tanh nears -1, with
// u = sqrt(2 / pi) * (g + 0.044715 g^3).
__device__ __forceinline__ float gate_mul_gelu(float gate) {
  const float cube = gate * gate * (gate * -0.044715f);
  return gate / (1.0f + expf((cube - gate) * 1.5957691216f));
}

// Of all rows as one array of `len`, each block has four elements for each of its threads.
template <class F>
__device__ __forceinline__ void gate_mul_four(float* out, const float* gate, const float* x,
                                              unsigned len, bool wide, F activation) {
  const size_t start = static_cast<size_t>(blockIdx.x) * blockDim.x * 4;
  const unsigned rest = static_cast<unsigned>(len - start), first = threadIdx.x * 4;
  const float4 gates = load_four(gate + start, first, rest, wide);
  const float4 four = load_four(x + start, first, rest, wide);
  const auto gated = [=](float gate, float x) { return activation(gate) * x; };
  store_four(out + start, first, rest, wide, map_four(gates, four, gated));
}

#define GATE_MUL(NAME, ACTIVATION)                                                              \
  extern "C" __global__ void __launch_bounds__(256)                                             \
      NAME(float* __restrict__ out, const float* __restrict__ gate, const float* __restrict__ x, \
           unsigned len, unsigned wide) {                                                       \
    gate_mul_four(out, gate, x, len, wide, [](float gate) { return ACTIVATION(gate); });        \
  }
GATE_MUL(gate_mul_silu, silu)
GATE_MUL(gate_mul_gelu_tanh, gate_mul_gelu)
GATE_MUL(gate_mul_sigmoid, sigmoid)
