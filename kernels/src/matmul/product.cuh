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
};

// What a launch gives a kernel, in the order of its parameters; head `first_head + head` has the
// weight that many after the first of the stack.
__device__ __forceinline__ Product product_of(float* out, const float* x, const unsigned* codes,
                                              const unsigned* scales, unsigned row_words,
                                              unsigned scale_words, unsigned format,
                                              unsigned outputs, unsigned inputs, unsigned rows,
                                              unsigned add, unsigned heads, unsigned first_head,
                                              unsigned head) {
  Product product;
  product.out = out + static_cast<size_t>(first_head + head) * outputs;
  product.x = x + static_cast<size_t>(first_head + head) * inputs;
  product.weight.codes = codes + static_cast<size_t>(head) * outputs * row_words;
  product.weight.scales = scales + static_cast<size_t>(head) * outputs * scale_words;
  product.weight.row_words = row_words;
  product.weight.scale_words = scale_words;
  product.weight.format.word = format;
  product.outputs = outputs;
  product.inputs = inputs;
  product.rows = rows;
  product.x_stride = heads * inputs;
  product.out_stride = heads * outputs;
  product.add = add != 0;
  return product;
}
#define PRODUCT_PARAMETERS                                                                      \
  float *out, const float *x, const unsigned *codes, const unsigned *scales, unsigned row_words, \
      unsigned scale_words, unsigned format, unsigned outputs, unsigned inputs, unsigned rows,  \
      unsigned add, unsigned heads, unsigned first_head
#define PRODUCT(HEAD)                                                                        \
  product_of(out, x, codes, scales, row_words, scale_words, format, outputs, inputs, rows,   \
             add, heads, first_head, HEAD)

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
