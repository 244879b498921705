// `top_logits`: a block for each slice of 4096 logits of a row, which threads keep in registers and
// give up one by one, the largest of the block first; then a block for each row does the same with
// what the slices gave. 4 bytes are read for each logit, once; a row of 150k takes a microsecond of
// memory's time, so that what counts is the rounds of a block, some 100 ns each: one where the row's
// token is drawn greedily, and so an argmax, as many as `top` where it may be any.
#include "../gpu/cuda.cuh"

namespace {

constexpr unsigned THREADS = 256;
constexpr unsigned EACH = 16;
constexpr unsigned NONE = 0xffffffffu;

// A number whose order is that of logits: NaN largest, then from the largest to the least, where
// both zeros are one.
__device__ __forceinline__ unsigned order_of(float value) {
  const unsigned bits = value == 0.0f ? 0u : __float_as_uint(value);
  if (value != value) return 0xffffffffu;
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// A logit's order and, of equal ones, the lower id first.
__device__ __forceinline__ unsigned long long key_of(float value, unsigned id) {
  return static_cast<unsigned long long>(order_of(value)) << 32 | (NONE - id);
}

__device__ __forceinline__ unsigned long long later(unsigned long long a, unsigned long long b) {
  return a > b ? a : b;
}

// The logits of a block, taken out in order. A key of zero is no logit.
struct Held {
  float values[EACH];
  unsigned ids[EACH];
  unsigned long long best;

  __device__ __forceinline__ void look() {
    best = 0;
#pragma unroll
    for (unsigned i = 0; i < EACH; ++i)
      if (ids[i] != NONE) best = later(best, key_of(values[i], ids[i]));
  }

  // The largest of the block, which is gone afterwards; `shared` is one for each warp.
  __device__ __forceinline__ unsigned long long take(unsigned long long* shared) {
    unsigned long long key = best;
#pragma unroll
    for (int bits = 16; bits > 0; bits /= 2) key = later(key, __shfl_xor_sync(ALL_LANES, key, bits));
    __syncthreads();
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = key;
    __syncthreads();
    key = shared[0];
#pragma unroll
    for (unsigned warp = 1; warp < THREADS / WARP; ++warp) key = later(key, shared[warp]);
    if (key != 0 && key == best) {
      const unsigned id = NONE - static_cast<unsigned>(key);
#pragma unroll
      for (unsigned i = 0; i < EACH; ++i)
        if (ids[i] == id) ids[i] = NONE;
      look();
    }
    return key;
  }
};

__device__ __forceinline__ unsigned id_of(unsigned long long key) {
  return NONE - static_cast<unsigned>(key);
}

// The number that an order was made of.
__device__ __forceinline__ float value_of(unsigned long long key) {
  const unsigned order = static_cast<unsigned>(key >> 32);
  return __uint_as_float(order >> 31 ? order & 0x7fffffffu : ~order);
}

// What is looked for in a row.
struct Wanted {
  unsigned count;
  float temperature;
};

__device__ __forceinline__ Wanted wanted_of(const unsigned* wanted, unsigned row) {
  const float temperature = __uint_as_float(wanted[2 * row + 1]);
  return {wanted[2 * row], temperature > 0.0f ? temperature : 1.0f};
}

}  // namespace

// parts[row, slice]: room for `top` values and `top` ids, of which as many are written as are wanted;
// the sums of exp(logit - largest of the slice) and of the same by temperature, and whether all logits
// are finite.
extern "C" __global__ void __launch_bounds__(THREADS)
    top_logits_parts(float* parts, const float* logits, const unsigned* wanted, unsigned vocab,
                     unsigned top) {
  __shared__ unsigned long long shared[THREADS / WARP];
  __shared__ float partial[WARP];
  const Wanted sought = wanted_of(wanted, blockIdx.y);
  const unsigned slice = blockIdx.x, row = blockIdx.y, first = slice * THREADS * EACH;
  logits += static_cast<size_t>(row) * vocab;
  parts += (static_cast<size_t>(row) * gridDim.x + slice) * (2 * top + 3);
  Held held;
  float infinite = 0.0f;
#pragma unroll
  for (unsigned i = 0; i < EACH; ++i) {
    const unsigned id = first + i * THREADS + threadIdx.x;
    const bool inside = id < vocab;
    held.values[i] = inside ? logits[id] : 0.0f;
    held.ids[i] = inside ? id : NONE;
    if (!isfinite(held.values[i])) infinite = 1.0f;
  }
  held.look();
  // Before they are taken out. Sums need the largest, which is found twice.
  float largest = -INFINITY;
#pragma unroll
  for (unsigned i = 0; i < EACH; ++i)
    if (held.ids[i] != NONE) largest = fmaxf(largest, held.values[i]);
  largest = warp_max(largest);
  if (threadIdx.x % WARP == 0) partial[threadIdx.x / WARP] = largest;
  __syncthreads();
  largest = warp_max(threadIdx.x % WARP < THREADS / WARP ? partial[threadIdx.x % WARP] : -INFINITY);
  __syncthreads();
  float plain = 0.0f, tempered = 0.0f;
#pragma unroll
  for (unsigned i = 0; i < EACH; ++i) {
    if (held.ids[i] == NONE) continue;
    plain += expf(held.values[i] - largest);
    tempered += expf((held.values[i] - largest) / sought.temperature);
  }
  plain = block_sum(plain, partial);
  __syncthreads();
  tempered = block_sum(tempered, partial);
  __syncthreads();
  infinite = block_sum(infinite, partial);
  for (unsigned rank = 0; rank < sought.count; ++rank) {
    const unsigned long long key = held.take(shared);
    if (threadIdx.x == 0) {
      parts[rank] = key != 0 ? value_of(key) : 0.0f;
      parts[top + rank] = __uint_as_float(key != 0 ? id_of(key) : NONE);
    }
  }
  if (threadIdx.x == 0) {
    parts[2 * top] = plain;
    parts[2 * top + 1] = tempered;
    parts[2 * top + 2] = infinite;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    top_logits_merge(float* values, unsigned* ids, float* sums, const float* parts,
                     const unsigned* wanted, unsigned slices, unsigned top) {
  __shared__ unsigned long long shared[THREADS / WARP];
  __shared__ float partial[WARP];
  const Wanted sought = wanted_of(wanted, blockIdx.x);
  const unsigned row = blockIdx.x, stride = 2 * top + 3;
  parts += static_cast<size_t>(row) * slices * stride;
  Held held;
#pragma unroll
  for (unsigned i = 0; i < EACH; ++i) {
    const unsigned index = i * THREADS + threadIdx.x;
    const bool inside = index < slices * sought.count;
    const unsigned slice = inside ? index / sought.count : 0, rank = index % sought.count;
    const float* part = parts + static_cast<size_t>(slice) * stride;
    held.values[i] = inside ? part[rank] : 0.0f;
    held.ids[i] = inside ? __float_as_uint(part[top + rank]) : NONE;
  }
  held.look();
  float largest = 0.0f;
  for (unsigned rank = 0; rank < sought.count; ++rank) {
    const unsigned long long key = held.take(shared);
    if (rank == 0) largest = value_of(key);
    if (threadIdx.x == 0) {
      values[static_cast<size_t>(row) * top + rank] = value_of(key);
      ids[static_cast<size_t>(row) * top + rank] = id_of(key);
    }
  }
  float plain = 0.0f, tempered = 0.0f, infinite = 0.0f;
  for (unsigned slice = threadIdx.x; slice < slices; slice += THREADS) {
    const float* part = parts + static_cast<size_t>(slice) * stride;
    plain += part[2 * top] * expf(part[0] - largest);
    tempered += part[2 * top + 1] * expf((part[0] - largest) / sought.temperature);
    infinite += part[2 * top + 2];
  }
  plain = block_sum(plain, partial);
  __syncthreads();
  tempered = block_sum(tempered, partial);
  __syncthreads();
  infinite = block_sum(infinite, partial);
  if (threadIdx.x == 0) {
    const float none = __uint_as_float(0x7fc00000u);
    sums[2 * row] = infinite > 0.0f ? none : plain;
    sums[2 * row + 1] = infinite > 0.0f ? none : tempered;
  }
}
