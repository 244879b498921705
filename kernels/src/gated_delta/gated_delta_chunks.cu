// `gated_delta` in chunks of 64 tokens, second kernel: what needs the state, chunk after chunk, by a
// block for 32 columns of a value head of a segment. See gated_delta_prepare.cu for the first.
//
// All is computed transposed: rows are columns of the state, so that a state, what is written and
// what is read are first operands of tensor cores, made of the sums that they come from in registers,
// and each second operand (keys, queries, scores, solution) is used by one warp only: a warp has 16
// tokens of the chunk, and every fourth 16 rows of keys of the state's update. The warps pass one
// another first operands through shared memory, in the order that registers have them: no bank
// conflicts, and three barriers in a chunk. Operands are in two bf16 parts, of products all but that of
// the lower parts is taken (gated_delta.cuh): the error is 2^-17 of the operands, against 2^-9 of
// plain bf16, at three times the operations. The state itself and all sums are f32.
//
// For a chunk and a head of 128 by 128: 100 KiB of operands and 16 KiB of values and outputs for each
// 32 columns, most of it from the second-level cache; 1.8 MFLOP three times over. At 32 heads there are
// 128 blocks, one on each multiprocessor: for 2048 tokens a floor of 40 us by tensor cores (at two
// thirds of 790 TFLOP/s), 50 us by the cache (5.5 TB/s).
#include "gated_delta.cuh"

namespace {

// Columns of a block, in tiles of 16.
constexpr unsigned COLUMNS = 32, TILES = COLUMNS / 16;
constexpr unsigned CHUNK_WARPS = CHUNK_BLOCKS;
// Words of a segment: first row, tokens, slot, first chunk, first stop, end of its stops.
constexpr unsigned CHUNK_SEGMENT = 6;

// A 16 by 16 block of a first operand: high and low parts of a lane.
struct Operand {
  unsigned high[4], low[4];
};

// First operands in shared memory: `[tiles, blocks, part, lanes]`.
struct Operands {
  uint4* blocks;
  unsigned depth;

  __device__ __forceinline__ uint4* at(unsigned tile, unsigned block) const {
    return blocks + ((tile * depth + block) * 2) * WARP + threadIdx.x % WARP;
  }
  __device__ __forceinline__ Operand load(unsigned tile, unsigned block) const {
    const uint4 high = at(tile, block)[0], low = at(tile, block)[WARP];
    return {{high.x, high.y, high.z, high.w}, {low.x, low.y, low.z, low.w}};
  }
  // Stores two neighbouring tiles of sums.
  __device__ __forceinline__ void store(unsigned tile, unsigned block,
                                        const float (&sums)[2][4]) const {
    uint4 high, low;
    split_pair(sums[0][0], sums[0][1], high.x, low.x);
    split_pair(sums[0][2], sums[0][3], high.y, low.y);
    split_pair(sums[1][0], sums[1][1], high.z, low.z);
    split_pair(sums[1][2], sums[1][3], high.w, low.w);
    at(tile, block)[0] = high;
    at(tile, block)[WARP] = low;
  }
};

// A part of a second operand, 16 deep, as two tiles of 8 columns, from anywhere.
__device__ __forceinline__ void load_columns_of(unsigned (&d)[4], const unsigned* part) {
#pragma unroll
  for (unsigned quad = 0; quad < 4; ++quad) d[quad] = part[quad * MATRIX_WORDS + threadIdx.x % WARP];
}

// sums += a * b for each tile of rows.
__device__ __forceinline__ void add_block(float (&sums)[TILES][2][4], const Operand (&a)[TILES],
                                          const unsigned (&high)[4], const unsigned (&low)[4]) {
#pragma unroll
  for (unsigned tile = 0; tile < TILES; ++tile) {
#pragma unroll
    for (unsigned half = 0; half < 2; ++half) {
      const unsigned b_high[2] = {high[2 * half], high[2 * half + 1]};
      const unsigned b_low[2] = {low[2 * half], low[2 * half + 1]};
      mma_split(sums[tile][half], a[tile].high, a[tile].low, b_high, b_low);
    }
  }
}

// Where an element of a lane's sums is: its column among those of the block, its token or key among
// 16.
__device__ __forceinline__ unsigned column_of(unsigned tile, unsigned i) {
  return 16 * tile + 8 * (i / 2) + threadIdx.x % WARP / 4;
}
__device__ __forceinline__ unsigned place_of(unsigned half, unsigned i) {
  return 8 * half + threadIdx.x % 4 * 2 + i % 2;
}

// For each element of sums `[TILES][2][4]`.
#define FOR_SUMS(TILE, HALF, I)                                                                    \
  _Pragma("unroll") for (unsigned TILE = 0; TILE < TILES; ++TILE)                                  \
      _Pragma("unroll") for (unsigned HALF = 0; HALF < 2; ++HALF)                                  \
          _Pragma("unroll") for (unsigned I = 0; I < 4; ++I)

// Shared memory of a block.
struct ChunkShared {
  Operands state, values, writes, decayed;
  // Keys of the chunk, `[token blocks, dim_blocks]`.
  unsigned* keys;
  long long* sums;
  float* decays;
  // The first token whose value, or write, is no finite number, for each column.
  int* first_bad_value;
  int* first_bad_write;
};

struct ChunkOperands {
  float* out;
  float* state;
  const float* qkv;
  const unsigned* stops;
};

// A head's part of a segment.
template <unsigned SLICES> struct ChunkHead {
  const ChunkOperands& x;
  const DeltaSizes& sizes;
  const DeltaScratch& scratch;
  const ChunkShared& shared;
  unsigned head, first_column;
  // The state: rows of keys `16 * (warp + 4 * slice)` on.
  float state[SLICES][TILES][2][4];
  // What the warp's tokens write.
  float writes[TILES][2][4];

  __device__ __forceinline__ unsigned warp() const { return threadIdx.x / WARP; }
  __device__ __forceinline__ unsigned key_block(unsigned slice) const {
    return warp() + CHUNK_WARPS * slice;
  }

  // Calls `f(element, address)` for each element of a state that exists.
  template <class F>
  __device__ __forceinline__ void for_state(float (&of)[SLICES][TILES][2][4], unsigned slot, F f) {
    float* start = x.state + sizes.state(slot, head);
#pragma unroll
    for (unsigned slice = 0; slice < SLICES; ++slice) {
      FOR_SUMS(tile, half, i) {
        const unsigned key = 16 * key_block(slice) + place_of(half, i);
        const unsigned column = first_column + column_of(tile, i);
        const bool inside = key < sizes.key_dim && column < sizes.value_dim;
        f(of[slice][tile][half][i], inside ? start + size_t(key) * sizes.value_dim + column : nullptr);
      }
    }
  }

  __device__ __forceinline__ void load_state(unsigned slot) {
    for_state(state, slot, [](float& s, const float* from) { s = from ? *from : 0.0f; });
  }

  __device__ __forceinline__ void store_state(float (&of)[SLICES][TILES][2][4], unsigned slot) {
    for_state(of, slot, [](float& s, float* to) {
      if (to) *to = s;
    });
  }

  // Makes the state an operand, keys and sums those of a chunk.
  __device__ __forceinline__ void begin(unsigned chunk) {
#pragma unroll
    for (unsigned slice = 0; slice < SLICES; ++slice) {
      if (key_block(slice) >= scratch.dim_blocks) continue;
#pragma unroll
      for (unsigned tile = 0; tile < TILES; ++tile)
        shared.state.store(tile, key_block(slice), state[slice][tile]);
    }
    const uint4* keys = reinterpret_cast<const uint4*>(scratch.keys(chunk, sizes.key_head(head)));
    for (unsigned i = threadIdx.x; i < scratch.rows_words() / 4; i += blockDim.x)
      reinterpret_cast<uint4*>(shared.keys)[i] = keys[i];
    if (threadIdx.x < CHUNK) {
      const long long sum = scratch.sums(chunk, head)[threadIdx.x];
      shared.sums[threadIdx.x] = sum;
      shared.decays[threadIdx.x] = delta_decay(0, sum);
    }
    if (threadIdx.x < COLUMNS) shared.first_bad_value[threadIdx.x] = CHUNK;
    if (threadIdx.x < COLUMNS) shared.first_bad_write[threadIdx.x] = CHUNK;
    __syncthreads();
  }

  // Products of the state with the keys and queries of the warp's tokens.
  __device__ __forceinline__ void read_state(float (&held)[TILES][2][4], float (&read)[TILES][2][4],
                                             unsigned chunk) {
    const unsigned offset = warp() * scratch.dim_blocks * BLOCK_WORDS;
    const unsigned* queries = scratch.queries(chunk, sizes.key_head(head)) + offset;
    const unsigned* keys = shared.keys + offset;
#pragma unroll 4
    for (unsigned depth = 0; depth < scratch.dim_blocks; ++depth) {
      Operand of_state[TILES];
#pragma unroll
      for (unsigned tile = 0; tile < TILES; ++tile) of_state[tile] = shared.state.load(tile, depth);
      unsigned high[4], low[4];
      load_columns_of(high, queries + depth * BLOCK_WORDS);
      load_columns_of(low, queries + depth * BLOCK_WORDS + PART_WORDS);
      add_block(read, of_state, high, low);
      load_columns_of(high, keys + depth * BLOCK_WORDS);
      load_columns_of(low, keys + depth * BLOCK_WORDS + PART_WORDS);
      add_block(held, of_state, high, low);
    }
  }

  // sums += operands * triangle^T, for the rows of the triangle that are the warp's tokens.
  __device__ __forceinline__ void add_triangle(float (&sums)[TILES][2][4], const Operands& operands,
                                               const unsigned* triangle) {
#pragma unroll
    for (unsigned depth = 0; depth < CHUNK_BLOCKS; ++depth) {
      if (depth > warp()) continue;
      Operand a[TILES];
#pragma unroll
      for (unsigned tile = 0; tile < TILES; ++tile) a[tile] = operands.load(tile, depth);
      const unsigned* block = triangle + (warp() * CHUNK_BLOCKS + depth) * BLOCK_WORDS;
      unsigned high[4], low[4];
      load_columns_of(high, block);
      load_columns_of(low, block + PART_WORDS);
      add_block(sums, a, high, low);
    }
  }

  // Keeps what is no finite number out of an operand, where it would spread to all tokens, and notes
  // where it was.
  __device__ __forceinline__ void store_finite(const Operands& to, float (&from)[TILES][2][4],
                                               int* first_bad) {
    FOR_SUMS(tile, half, i) {
      float& element = from[tile][half][i];
      if (isfinite(element)) continue;
      element = 0.0f;
      atomicMin(&first_bad[column_of(tile, i)], int(16 * warp() + place_of(half, i)));
    }
#pragma unroll
    for (unsigned tile = 0; tile < TILES; ++tile) to.store(tile, warp(), from[tile]);
  }

  // What the warp's tokens write, and outputs of all of them. `row` is that of the chunk's first token.
  __device__ __forceinline__ void tokens(unsigned chunk, size_t row, unsigned len) {
    float held[TILES][2][4] = {}, read[TILES][2][4] = {};
    read_state(held, read, chunk);
    FOR_SUMS(tile, half, i) {
      const unsigned token = 16 * warp() + place_of(half, i);
      const unsigned column = first_column + column_of(tile, i);
      const bool inside = token < len && column < sizes.value_dim;
      const float value = inside ? x.qkv[sizes.value(row + token, head) + column] : 0.0f;
      held[tile][half][i] = value - shared.decays[token] * held[tile][half][i];
    }
    store_finite(shared.values, held, shared.first_bad_value);
    __syncthreads();
    FOR_SUMS(tile, half, i) writes[tile][half][i] = 0.0f;
    add_triangle(writes, shared.values, scratch.solution(chunk, head));
    FOR_SUMS(tile, half, i) {
      const int token = 16 * warp() + place_of(half, i);
      const bool bad = token >= shared.first_bad_value[column_of(tile, i)];
      if (bad) writes[tile][half][i] = delta_not_a_number();
    }
    store_finite(shared.writes, writes, shared.first_bad_write);
    __syncthreads();
    FOR_SUMS(tile, half, i) read[tile][half][i] *= shared.decays[16 * warp() + place_of(half, i)];
    add_triangle(read, shared.writes, scratch.scores(chunk, head));
    FOR_SUMS(tile, half, i) {
      const unsigned token = 16 * warp() + place_of(half, i);
      const unsigned column = first_column + column_of(tile, i);
      if (token >= len || column >= sizes.value_dim) continue;
      const bool bad = int(token) >= shared.first_bad_write[column_of(tile, i)];
      const float out = bad ? delta_not_a_number() : read[tile][half][i];
      x.out[sizes.output(row + token, head) + column] = out;
    }
  }

  // The state after the chunk's first `count` tokens, at least one, which it may replace.
  __device__ __forceinline__ void state_after(float (&after)[SLICES][TILES][2][4], unsigned count) {
    const long long end = shared.sums[count - 1];
    float decayed[TILES][2][4];
    FOR_SUMS(tile, half, i) {
      const unsigned token = 16 * warp() + place_of(half, i);
      const float decay = token < count ? delta_decay(shared.sums[token], end) : 0.0f;
      decayed[tile][half][i] = token < count ? writes[tile][half][i] * decay : 0.0f;
    }
    // What a NaN among the sums spoils is marked below.
    FOR_SUMS(tile, half, i) {
      if (!isfinite(decayed[tile][half][i])) decayed[tile][half][i] = 0.0f;
    }
#pragma unroll
    for (unsigned tile = 0; tile < TILES; ++tile)
      shared.decayed.store(tile, warp(), decayed[tile]);
    __syncthreads();
    const float decay = delta_decay(0, end);
#pragma unroll
    for (unsigned slice = 0; slice < SLICES; ++slice) {
      FOR_SUMS(tile, half, i) {
        const bool bad = shared.first_bad_write[column_of(tile, i)] < int(count);
        after[slice][tile][half][i] =
            bad ? delta_not_a_number() : state[slice][tile][half][i] * decay;
      }
      if (key_block(slice) < scratch.dim_blocks) add_keys(after[slice], key_block(slice));
    }
    __syncthreads();
  }

  // sums += decayed writes * keys, for 16 rows of keys.
  __device__ __forceinline__ void add_keys(float (&sums)[TILES][2][4], unsigned block) {
#pragma unroll
    for (unsigned depth = 0; depth < CHUNK_BLOCKS; ++depth) {
      Operand a[TILES];
#pragma unroll
      for (unsigned tile = 0; tile < TILES; ++tile) a[tile] = shared.decayed.load(tile, depth);
      const unsigned* keys = shared.keys + (depth * scratch.dim_blocks + block) * BLOCK_WORDS +
                             threadIdx.x % WARP * 4;
      unsigned quads[4], high[4], low[4];
      ldmatrix_x4_trans(quads, keys);
      reorder(high, quads);
      ldmatrix_x4_trans(quads, keys + PART_WORDS);
      reorder(low, quads);
      add_block(sums, a, high, low);
    }
  }

  // Tokens lie along the depth here: the upper and the lower matrix of each eight columns.
  static __device__ __forceinline__ void reorder(unsigned (&d)[4], const unsigned (&quads)[4]) {
    d[0] = quads[0];
    d[1] = quads[2];
    d[2] = quads[1];
    d[3] = quads[3];
  }

  __device__ __forceinline__ void run(const unsigned* segment) {
    const unsigned len = segment[1], slot = segment[2], stops_end = segment[5];
    unsigned stop = segment[4];
    load_state(slot);
    for (unsigned start = 0; start < len; start += CHUNK) {
      const unsigned chunk = segment[3] + start / CHUNK, end = min(len, start + CHUNK);
      begin(chunk);
      tokens(chunk, size_t(segment[0]) + start, end - start);
      for (; stop < stops_end && x.stops[2 * stop] < end; ++stop) {
        float after[SLICES][TILES][2][4];
        state_after(after, x.stops[2 * stop] - start);
        store_state(after, x.stops[2 * stop + 1]);
      }
      state_after(state, end - start);
      for (; stop < stops_end && x.stops[2 * stop] == end; ++stop)
        store_state(state, x.stops[2 * stop + 1]);
    }
    store_state(state, slot);
  }
};

// Blocks `[columns / 32, value_heads, segments]`; dynamic shared memory for operands and keys.
template <unsigned SLICES>
__device__ __forceinline__ void delta_chunks(const ChunkOperands& x, const DeltaSizes& sizes,
                                             const DeltaScratch& scratch,
                                             const unsigned* segments) {
  __shared__ long long sums[CHUNK];
  __shared__ float decays[CHUNK];
  __shared__ int first_bad_value[COLUMNS];
  __shared__ int first_bad_write[COLUMNS];
  constexpr unsigned BLOCK = 2 * WARP;
  uint4* memory = dynamic_shared<uint4>();
  const unsigned depth = scratch.dim_blocks, square = TILES * CHUNK_BLOCKS * BLOCK;
  const Operands state = {memory, depth};
  const Operands values = {memory + TILES * depth * BLOCK, CHUNK_BLOCKS};
  const Operands writes = {values.blocks + square, CHUNK_BLOCKS};
  const Operands decayed = {writes.blocks + square, CHUNK_BLOCKS};
  unsigned* keys = reinterpret_cast<unsigned*>(decayed.blocks + square);
  const ChunkShared shared = {state, values,          writes,         decayed, keys, sums,
                              decays, first_bad_value, first_bad_write};
  ChunkHead<SLICES> head = {x, sizes, scratch, shared, blockIdx.y, blockIdx.x * COLUMNS};
  head.run(segments + blockIdx.z * CHUNK_SEGMENT);
}

}  // namespace

// For key heads of up to 64, 128 and 256 elements.
#define GATED_DELTA_CHUNKS(NAME, SLICES)                                                           \
  extern "C" __global__ void __launch_bounds__(128)                                                \
      NAME(float* out, float* state, unsigned* words, const float* qkv, const unsigned* segments,  \
           const unsigned* stops, unsigned chunk_count, unsigned key_heads, unsigned value_heads,  \
           unsigned key_dim, unsigned value_dim, unsigned tiled) {                                 \
    const ChunkOperands x = {out, state, qkv, stops};                                              \
    const DeltaSizes sizes = {key_heads, value_heads, key_dim, value_dim, tiled != 0};             \
    const DeltaScratch scratch = {words, chunk_count, key_heads, value_heads, (key_dim + 15) / 16}; \
    delta_chunks<SLICES>(x, sizes, scratch, segments);                                             \
  }
GATED_DELTA_CHUNKS(gated_delta_chunks_64, 1)
GATED_DELTA_CHUNKS(gated_delta_chunks_128, 2)
GATED_DELTA_CHUNKS(gated_delta_chunks_256, 4)
