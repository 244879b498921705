// The operands of a product of activations with a weight, and how activations are read.
#pragma once

#include "weights.cuh"

// `out[row, head, o] (+)= sum of x[row, head, i] * weight[o, i]`, for one head.
struct Product {
  float* out;      // [rows, heads, outputs], from the head on
  const float* x;  // [rows, heads, inputs], from the head on
  Weight weight;
  unsigned outputs, inputs, rows;
  unsigned x_stride, out_stride;  // elements between rows
  bool add;
  unsigned planes;
  unsigned block;  // which of its blocks of outputs
};

// One of the products of a launch; without outputs where there are fewer.
struct Target {
  float* out;
  const unsigned* codes;
  const unsigned* scales;
  unsigned scale_words, format, outputs;
};
constexpr int TARGETS = 4;
// What a launch gives a kernel: products of the same activations with weights of one kind. Head
// `first_head + head` has the weight that many after the first of the stack.
struct Launch {
  Target targets[TARGETS];
  const float* x;
  unsigned row_words, inputs, rows, heads, first_head;
  unsigned flags;  // 1 to add, and twice the planes
};

#define TARGET_PARAMETERS(I)                                                              \
  float *out##I, const unsigned *codes##I, const unsigned *scales##I,                     \
      unsigned scale_words##I, unsigned format##I, unsigned outputs##I
#define PRODUCT_PARAMETERS                                                                \
  TARGET_PARAMETERS(0), TARGET_PARAMETERS(1), TARGET_PARAMETERS(2), TARGET_PARAMETERS(3), \
      const float *x, unsigned row_words, unsigned inputs, unsigned rows, unsigned heads, \
      unsigned first_head, unsigned flags
#define TARGET(I) {out##I, codes##I, scales##I, scale_words##I, format##I, outputs##I}
// The product of this block of outputs, of one head.
#define PRODUCT(BLOCK_OUTPUTS, HEAD)                                                         \
  product_of({{TARGET(0), TARGET(1), TARGET(2), TARGET(3)},                                  \
              x, row_words, inputs, rows, heads, first_head, flags}, BLOCK_OUTPUTS, HEAD)

__device__ __forceinline__ Product product_of(const Launch& launch, unsigned block_outputs,
                                              unsigned head) {
  // Blocks of the products follow each other.
  unsigned block = blockIdx.x;
  Target target = launch.targets[0];
#pragma unroll
  for (int next = 1; next < TARGETS; ++next) {
    const unsigned blocks = (target.outputs + block_outputs - 1) / block_outputs;
    if (block < blocks) break;
    block -= blocks;
    target = launch.targets[next];
  }
  Product product;
  product.out = target.out + static_cast<size_t>(launch.first_head + head) * target.outputs;
  product.x = launch.x + static_cast<size_t>(launch.first_head + head) * launch.inputs;
  const size_t weight_rows = static_cast<size_t>(head) * target.outputs;
  product.weight.codes = target.codes + weight_rows * launch.row_words;
  product.weight.scales = target.scales + weight_rows * target.scale_words;
  product.weight.row_words = launch.row_words;
  product.weight.scale_words = target.scale_words;
  product.weight.format.word = target.format;
  product.outputs = target.outputs;
  product.inputs = launch.inputs;
  product.rows = launch.rows;
  product.x_stride = launch.heads * launch.inputs;
  product.out_stride = launch.heads * target.outputs;
  product.add = launch.flags & 1;
  product.planes = launch.flags >> 1;
  product.block = block;
  return product;
}

// Eight elements of a row of activations from `column` on; zeros beyond the row's end, and all of
// them where the row is not `live`.
__device__ __forceinline__ void load_octet(float (&values)[8], const float* row, unsigned column,
                                           unsigned inputs, bool live) {
  if (inputs % 4 == 0 && column + 8 <= inputs) {
    float4 low = make_float4(0.0f, 0.0f, 0.0f, 0.0f), high = low;
    if (live) {
      low = *reinterpret_cast<const float4*>(row + column);
      high = *reinterpret_cast<const float4*>(row + column + 4);
    }
    values[0] = low.x, values[1] = low.y, values[2] = low.z, values[3] = low.w;
    values[4] = high.x, values[5] = high.y, values[6] = high.z, values[7] = high.w;
  } else {
#pragma unroll
    for (unsigned i = 0; i < 8; ++i)
      values[i] = live && column + i < inputs ? row[column + i] : 0.0f;
  }
}

__device__ __forceinline__ void put(const Product& product, unsigned row, unsigned output,
                                    float value) {
  float* to = product.out + static_cast<size_t>(row) * product.out_stride + output;
  *to = product.add ? *to + value : value;
}
