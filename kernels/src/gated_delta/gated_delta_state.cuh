// A head's state in registers: a warp has 16 of its columns, in pieces of 64 bytes. Eight groups of
// four lanes share the rows; sums over keys are added up over the groups. For kernels that take one
// token after another.
#pragma once

#include "gated_delta.cuh"

// Columns of a warp.
constexpr unsigned SCAN_COLUMNS = 16;

// Up to `count` elements; with `wide` all four are one load.
__device__ __forceinline__ float4 load_columns(const float* from, unsigned count, bool wide) {
  float4 four = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  if (wide) {
    if (count > 0) four = *reinterpret_cast<const float4*>(from);
    return four;
  }
  if (count > 0) four.x = from[0];
  if (count > 1) four.y = from[1];
  if (count > 2) four.z = from[2];
  if (count > 3) four.w = from[3];
  return four;
}

__device__ __forceinline__ void store_columns(float* to, unsigned count, bool wide,
                                              const float4& four) {
  if (wide) {
    if (count > 0) *reinterpret_cast<float4*>(to) = four;
    return;
  }
  if (count > 0) to[0] = four.x;
  if (count > 1) to[1] = four.y;
  if (count > 2) to[2] = four.z;
  if (count > 3) to[3] = four.w;
}

// The sum over the groups of four lanes, in every one.
__device__ __forceinline__ float sum_of_groups(float value) {
#pragma unroll
  for (int bits = 16; bits >= 4; bits /= 2) value += __shfl_xor_sync(ALL_LANES, value, bits);
  return value;
}

__device__ __forceinline__ float4 sum_of_groups(const float4& four) {
  return make_float4(sum_of_groups(four.x), sum_of_groups(four.y), sum_of_groups(four.z),
                     sum_of_groups(four.w));
}

__device__ __forceinline__ void add_scaled(float4& sum, const float4& x, float factor) {
  sum.x = fmaf(x.x, factor, sum.x);
  sum.y = fmaf(x.y, factor, sum.y);
  sum.z = fmaf(x.z, factor, sum.z);
  sum.w = fmaf(x.w, factor, sum.w);
}

// Key and query of a token at their lengths, in pairs, zeros up to `ROWS * 8`; returns the product of
// both. By one warp.
template <unsigned ROWS>
__device__ __forceinline__ float scan_pairs(float2* pairs, const float* query, const float* key,
                                            unsigned key_dim) {
  const unsigned lane = threadIdx.x % WARP;
  float q[ROWS / 4], k[ROWS / 4], squares = 0.0f, key_squares = 0.0f;
#pragma unroll
  for (unsigned m = 0; m < ROWS / 4; ++m) {
    const unsigned i = lane + WARP * m;
    q[m] = i < key_dim ? query[i] : 0.0f;
    k[m] = i < key_dim ? key[i] : 0.0f;
    squares = fmaf(q[m], q[m], squares);
    key_squares = fmaf(k[m], k[m], key_squares);
  }
  const float scale = 1.0f / sqrtf(static_cast<float>(key_dim));
  const float q_scale = scale / sqrtf(warp_sum(squares) + DELTA_L2_EPS);
  const float k_scale = 1.0f / sqrtf(warp_sum(key_squares) + DELTA_L2_EPS);
  float product = 0.0f;
#pragma unroll
  for (unsigned m = 0; m < ROWS / 4; ++m) {
    const float2 pair = make_float2(k[m] * k_scale, q[m] * q_scale);
    pairs[lane + WARP * m] = pair;
    product = fmaf(pair.x, pair.y, product);
  }
  return warp_sum(product);
}

// What a lane has of a state: rows `group + 8 * m`, four columns.
template <unsigned ROWS> struct ScanState {
  float4 rows[ROWS];

  __device__ __forceinline__ void load(const float* from, const DeltaSizes& sizes,
                                       unsigned columns, bool wide) {
    const unsigned group = threadIdx.x % WARP / 4;
#pragma unroll
    for (unsigned m = 0; m < ROWS; ++m) {
      const unsigned i = group + 8 * m;
      const unsigned count = i < sizes.key_dim ? columns : 0;
      rows[m] = load_columns(from + size_t(i) * sizes.value_dim, count, wide);
    }
  }

  __device__ __forceinline__ void store(float* to, const DeltaSizes& sizes, unsigned columns,
                                        bool wide) const {
    const unsigned group = threadIdx.x % WARP / 4;
#pragma unroll
    for (unsigned m = 0; m < ROWS; ++m) {
      const unsigned i = group + 8 * m;
      const unsigned count = i < sizes.key_dim ? columns : 0;
      store_columns(to + size_t(i) * sizes.value_dim, count, wide, rows[m]);
    }
  }

  // Takes a token in; returns its output.
  __device__ __forceinline__ float4 advance(const float2* pairs, const float4& gates,
                                            const float4& value) {
    const unsigned group = threadIdx.x % WARP / 4;
    const float decay = gates.x, strength = gates.y;
    float4 held = make_float4(0.0f, 0.0f, 0.0f, 0.0f), read = held;
#pragma unroll
    for (unsigned m = 0; m < ROWS; ++m) {
      const float2 pair = pairs[group + 8 * m];
      add_scaled(held, rows[m], pair.x);
      add_scaled(read, rows[m], pair.y);
    }
    held = sum_of_groups(held);
    read = sum_of_groups(read);
    const float4 write = make_float4(
        strength * (value.x - decay * held.x), strength * (value.y - decay * held.y),
        strength * (value.z - decay * held.z), strength * (value.w - decay * held.w));
    float4 out = make_float4(decay * read.x, decay * read.y, decay * read.z, decay * read.w);
    add_scaled(out, write, gates.z);
    // Keys are read again rather than kept: registers are what the state needs.
    __syncwarp();
#pragma unroll
    for (unsigned m = 0; m < ROWS; ++m) {
      const float key = pairs[group + 8 * m].x;
      float4& row = rows[m];
      row = make_float4(decay * row.x, decay * row.y, decay * row.z, decay * row.w);
      add_scaled(row, write, key);
    }
    return out;
  }
};
