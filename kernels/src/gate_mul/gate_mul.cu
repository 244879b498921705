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

// All rows as one array of `len`.
struct GateProduct {
  float* out;
  const float* gate;
  const float* x;
  unsigned len;
  bool wide;
};

// Each block has four elements for each of its threads, of the first product or of the second.
template <class F>
__device__ __forceinline__ void gate_mul_four(const GateProduct& one, const GateProduct& two,
                                              F activation) {
  const unsigned of_block = blockDim.x * 4, blocks = (one.len + of_block - 1) / of_block;
  const bool second = blockIdx.x >= blocks;
  const GateProduct product = second ? two : one;
  const size_t start = static_cast<size_t>(second ? blockIdx.x - blocks : blockIdx.x) * of_block;
  const unsigned rest = static_cast<unsigned>(product.len - start), first = threadIdx.x * 4;
  const float4 gates = load_four(product.gate + start, first, rest, product.wide);
  const float4 four = load_four(product.x + start, first, rest, product.wide);
  const auto gated = [=](float gate, float x) { return activation(gate) * x; };
  store_four(product.out + start, first, rest, product.wide, map_four(gates, four, gated));
}

#define GATE_MUL(NAME, ACTIVATION)                                                                \
  extern "C" __global__ void __launch_bounds__(256)                                               \
      NAME(float* out, const float* gate, const float* x, unsigned len, unsigned wide,            \
           float* second_out, const float* second_gate, const float* second_x,                    \
           unsigned second_len, unsigned second_wide) {                                           \
    gate_mul_four({out, gate, x, len, wide != 0},                                                 \
                  {second_out, second_gate, second_x, second_len, second_wide != 0},              \
                  [](float gate) { return ACTIVATION(gate); });                                   \
  }
GATE_MUL(gate_mul_silu, silu)
GATE_MUL(gate_mul_gelu_tanh, gate_mul_gelu)
GATE_MUL(gate_mul_sigmoid, sigmoid)
