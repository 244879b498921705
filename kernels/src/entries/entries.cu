// Operators on entries of a pool: four words a thread, in loads and stores of 16 bytes where all of
// them start at such places; blocks [entries, parts of an entry]. Words are moved as they are. Bound
// by memory: 8 bytes move for each word, 4 where it is cleared. A batch of pages, 16 MB, has blocks
// for all multiprocessors many times over, each thread with one load under way.
#include "../gpu/cuda.cuh"

// Copies the four words from `first` on of an entry of `len` words.
__device__ __forceinline__ void entries_move(unsigned* to, const unsigned* from, unsigned first,
                                             unsigned len, bool wide) {
  if (wide) {
    if (first < len)
      *reinterpret_cast<uint4*>(to + first) = *reinterpret_cast<const uint4*>(from + first);
    return;
  }
  for (unsigned i = first; i < first + 4 && i < len; ++i) to[i] = from[i];
}

extern "C" __global__ void __launch_bounds__(256)
    entries_gather(unsigned* __restrict__ packed, const unsigned* __restrict__ pool,
                   const unsigned* __restrict__ entries, unsigned len, unsigned stride,
                   unsigned offset, unsigned wide) {
  const unsigned first = (blockIdx.y * blockDim.x + threadIdx.x) * 4;
  packed += static_cast<size_t>(blockIdx.x) * stride + offset;
  pool += static_cast<size_t>(entries[blockIdx.x]) * len;
  entries_move(packed, pool, first, len, wide);
}

extern "C" __global__ void __launch_bounds__(256)
    entries_scatter(unsigned* __restrict__ pool, const unsigned* __restrict__ packed,
                    const unsigned* __restrict__ entries, unsigned len, unsigned stride,
                    unsigned offset, unsigned wide) {
  const unsigned first = (blockIdx.y * blockDim.x + threadIdx.x) * 4;
  packed += static_cast<size_t>(blockIdx.x) * stride + offset;
  pool += static_cast<size_t>(entries[blockIdx.x]) * len;
  entries_move(pool, packed, first, len, wide);
}

extern "C" __global__ void __launch_bounds__(256)
    entries_copy(unsigned* pool, const unsigned* from_to, unsigned len, unsigned wide) {
  const unsigned first = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
  const unsigned* from = pool + static_cast<size_t>(from_to[0]) * len;
  entries_move(pool + static_cast<size_t>(from_to[1]) * len, from, first, len, wide);
}

extern "C" __global__ void __launch_bounds__(256)
    entries_clear(unsigned* pool, const unsigned* entry, unsigned len, unsigned wide) {
  const unsigned first = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
  pool += static_cast<size_t>(entry[0]) * len;
  if (wide) {
    if (first < len) *reinterpret_cast<uint4*>(pool + first) = make_uint4(0, 0, 0, 0);
    return;
  }
  for (unsigned i = first; i < first + 4 && i < len; ++i) pool[i] = 0;
}
