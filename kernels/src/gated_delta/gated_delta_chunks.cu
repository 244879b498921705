// `gated_delta` in chunks of 64 tokens, second kernel: what needs the state, chunk after chunk, by a
// block for 32 columns of a value head of a segment. See gated_delta_prepare.cu for the first.
//
// All is computed transposed: rows are columns of the state, so that a state, what is written and
// what is read are first operands of tensor cores, made of the sums that they come from in registers. A
// warp has 16 tokens of the chunk, and every fourth 16 rows of keys of the state's update: queries,
// scores and solution are read by one warp each, which has eight blocks of them on their way while it
// works; the keys are read twice, along tokens and along their elements, from shared memory, and arrive
// while the queries are worked on. The warps pass one another first operands through shared memory, in
// the order that registers have them, without bank conflicts. Operands are in two bf16 parts, of
// products all but that of the lower parts is taken (gated_delta.cuh): the error is 2^-17 of the
// operands, against 2^-9 of plain bf16, at three times the operations. The state and all sums are f32.
//
// For a chunk and a head of 128 by 128: 100 KiB of operands and 16 KiB of values and outputs for each
// 32 columns, most of it from the second-level cache; 1.8 MFLOP three times over. At 32 heads there are
// 128 blocks, one on each multiprocessor: for 2048 tokens a floor of 40 us by tensor cores (at two
// thirds of 790 TFLOP/s), 75 us by the cache (5.5 TB/s); both are estimates.
#include "gated_delta.cuh"

namespace {

// Columns of a block, in tiles of 16.
constexpr unsigned COLUMNS = 32, TILES = COLUMNS / 16;
constexpr unsigned CHUNK_WARPS = CHUNK_BLOCKS;
// Blocks of second operands that are on their way to a warp.
constexpr unsigned AHEAD = 8;
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
  // First operands. What is written takes the place of the state, and what is written with decays that
  // of the values: a barrier lies between.
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

// A part of a second operand, 16 deep, as two tiles of 8 columns, from shared memory.
__device__ __forceinline__ void load_part(unsigned (&d)[4], const unsigned* part) {
  ldmatrix_x4(d, part + threadIdx.x % WARP * 4);
}

// The same of a block whose rows lie along the depth.
__device__ __forceinline__ void load_part_trans(unsigned (&d)[4], const unsigned* part) {
  unsigned quads[4];
  ldmatrix_x4_trans(quads, part + threadIdx.x % WARP * 4);
  d[0] = quads[0];
  d[1] = quads[2];
  d[2] = quads[1];
  d[3] = quads[3];
}

// The second operands that a warp alone reads, in the order in which it reads them, on their way from
// memory while those before them are worked on: of each chunk the queries, the solution up to the
// diagonal, and the scores.
struct Ring {
  const DeltaScratch& scratch;
  unsigned* memory;
  unsigned head, key_head, chunks_end;
  // What is asked for next, and where it goes.
  unsigned chunk, index, slot;

  __device__ __forceinline__ void push() {
    const unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, row = warp + 1;
    if (chunk < chunks_end) {
      const unsigned* from = scratch.queries(chunk, key_head) +
                             (warp * scratch.dim_blocks + index) * BLOCK_WORDS;
      if (index >= scratch.dim_blocks) {
        const unsigned at = index - scratch.dim_blocks;
        const unsigned depth = at < row ? at : at - row;
        from = at < row ? scratch.solution(chunk, head) : scratch.scores(chunk, head);
        from += (warp * CHUNK_BLOCKS + depth) * BLOCK_WORDS;
      }
      unsigned* to = memory + slot * BLOCK_WORDS + lane * 4;
      copy_async_16(to, from + lane * 4, true);
      copy_async_16(to + PART_WORDS, from + PART_WORDS + lane * 4, true);
      if (++index == scratch.dim_blocks + 2 * row) {
        index = 0;
        ++chunk;
      }
    }
    // Each push is a group, also where nothing is left to be asked for.
    copy_commit();
    slot = (slot + 1) % AHEAD;
  }

  // The block that was pushed `AHEAD` pushes ago; pushes another one.
  __device__ __forceinline__ void pop(unsigned (&high)[4], unsigned (&low)[4]) {
    copy_wait<AHEAD - 1>();
    __syncwarp();
    load_part(high, memory + slot * BLOCK_WORDS);
    load_part(low, memory + slot * BLOCK_WORDS + PART_WORDS);
    __syncwarp();
    push();
  }
};

// A head's part of a segment.
template <unsigned SLICES> struct ChunkHead {
  const ChunkOperands& x;
  const DeltaSizes& sizes;
  const DeltaScratch& scratch;
  const ChunkShared& shared;
  Ring ring;
  unsigned head, first_column;
  // The state: rows of keys `16 * (warp + 4 * slice)` on.
  float state[SLICES][TILES][2][4];
  // What the warp's tokens write.
  float writes[TILES][2][4];

  __device__ __forceinline__ unsigned warp() const { return threadIdx.x / WARP; }
  __device__ __forceinline__ unsigned key_block(unsigned slice) const {
    return warp() + CHUNK_WARPS * slice;
  }

  // Calls `f(element, address)` for each element of a state, without an address past its end.
  template <class F>
  __device__ __forceinline__ void for_state(float (&of)[SLICES][TILES][2][4], unsigned slot, F f) {
    float* start = x.state + sizes.state(slot, head);
#pragma unroll
    for (unsigned slice = 0; slice < SLICES; ++slice) {
      FOR_SUMS(tile, half, i) {
        const unsigned key = 16 * key_block(slice) + place_of(half, i);
        const unsigned column = first_column + column_of(tile, i);
        const bool inside = key < sizes.key_dim && column < sizes.value_dim;
        float* at = start + size_t(key) * sizes.value_dim + column;
        f(of[slice][tile][half][i], inside ? at : nullptr);
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

  // Asks for a chunk's keys, and makes the state an operand.
  __device__ __forceinline__ void begin(unsigned chunk) {
    const unsigned* keys = scratch.keys(chunk, sizes.key_head(head));
    for (unsigned i = 4 * threadIdx.x; i < scratch.rows_words(); i += 4 * blockDim.x)
      copy_async_16(shared.keys + i, keys + i, true);
    copy_commit();
#pragma unroll
    for (unsigned slice = 0; slice < SLICES; ++slice) {
      if (key_block(slice) >= scratch.dim_blocks) continue;
#pragma unroll
      for (unsigned tile = 0; tile < TILES; ++tile)
        shared.state.store(tile, key_block(slice), state[slice][tile]);
    }
    if (threadIdx.x < CHUNK) {
      const long long sum = scratch.sums(chunk, head)[threadIdx.x];
      shared.sums[threadIdx.x] = sum;
      shared.decays[threadIdx.x] = delta_decay(0, sum);
    }
    if (threadIdx.x < COLUMNS) shared.first_bad_value[threadIdx.x] = CHUNK;
    if (threadIdx.x < COLUMNS) shared.first_bad_write[threadIdx.x] = CHUNK;
    __syncthreads();
  }

  // sums += products of the state with the queries of the warp's tokens.
  __device__ __forceinline__ void add_queries(float (&sums)[TILES][2][4]) {
#pragma unroll 2
    for (unsigned depth = 0; depth < scratch.dim_blocks; ++depth) {
      unsigned high[4], low[4];
      ring.pop(high, low);
      Operand a[TILES];
#pragma unroll
      for (unsigned tile = 0; tile < TILES; ++tile) a[tile] = shared.state.load(tile, depth);
      add_block(sums, a, high, low);
    }
  }

  // sums += products of the state with the keys of the warp's tokens.
  __device__ __forceinline__ void add_keys(float (&sums)[TILES][2][4]) {
    const unsigned* keys = shared.keys + warp() * scratch.dim_blocks * BLOCK_WORDS;
#pragma unroll 2
    for (unsigned depth = 0; depth < scratch.dim_blocks; ++depth) {
      unsigned high[4], low[4];
      load_part(high, keys + depth * BLOCK_WORDS);
      load_part(low, keys + depth * BLOCK_WORDS + PART_WORDS);
      Operand a[TILES];
#pragma unroll
      for (unsigned tile = 0; tile < TILES; ++tile) a[tile] = shared.state.load(tile, depth);
      add_block(sums, a, high, low);
    }
  }

  // sums += operands * triangle^T, for the rows of the triangle that are the warp's tokens.
  __device__ __forceinline__ void add_triangle(float (&sums)[TILES][2][4],
                                               const Operands& operands) {
    for (unsigned depth = 0; depth <= warp(); ++depth) {
      unsigned high[4], low[4];
      ring.pop(high, low);
      Operand a[TILES];
#pragma unroll
      for (unsigned tile = 0; tile < TILES; ++tile) a[tile] = operands.load(tile, depth);
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

  // Values of the warp's tokens. `row` is that of the chunk's first token.
  __device__ __forceinline__ void load_values(float (&values)[TILES][2][4], size_t row,
                                              unsigned len) {
    FOR_SUMS(tile, half, i) {
      const unsigned token = 16 * warp() + place_of(half, i);
      const unsigned column = first_column + column_of(tile, i);
      const bool inside = token < len && column < sizes.value_dim;
      values[tile][half][i] = inside ? x.qkv[sizes.value(row + token, head) + column] : 0.0f;
    }
  }

  __device__ __forceinline__ void store_outputs(const float (&read)[TILES][2][4], size_t row,
                                                unsigned len) {
    FOR_SUMS(tile, half, i) {
      const unsigned token = 16 * warp() + place_of(half, i);
      const unsigned column = first_column + column_of(tile, i);
      if (token >= len || column >= sizes.value_dim) continue;
      const bool bad = int(token) >= shared.first_bad_write[column_of(tile, i)];
      const float out = bad ? delta_not_a_number() : read[tile][half][i];
      x.out[sizes.output(row + token, head) + column] = out;
    }
  }

  // What the warp's tokens write, and outputs of all of them.
  __device__ __forceinline__ void tokens(size_t row, unsigned len) {
    float values[TILES][2][4], held[TILES][2][4] = {}, read[TILES][2][4] = {};
    load_values(values, row, len);
    add_queries(read);
    copy_wait<KEYS_PENDING>();
    __syncthreads();
    add_keys(held);
    FOR_SUMS(tile, half, i) {
      const float decay = shared.decays[16 * warp() + place_of(half, i)];
      values[tile][half][i] -= decay * held[tile][half][i];
      read[tile][half][i] *= decay;
      writes[tile][half][i] = 0.0f;
    }
    store_finite(shared.values, values, shared.first_bad_value);
    __syncthreads();
    add_triangle(writes, shared.values);
    FOR_SUMS(tile, half, i) {
      const int token = 16 * warp() + place_of(half, i);
      const bool bad = token >= shared.first_bad_value[column_of(tile, i)];
      if (bad) writes[tile][half][i] = delta_not_a_number();
    }
    store_finite(shared.writes, writes, shared.first_bad_write);
    __syncthreads();
    add_triangle(read, shared.writes);
    store_outputs(read, row, len);
  }

  // The state after the chunk's first `count` tokens, at least one, which it may replace.
  __device__ __forceinline__ void state_after(float (&after)[SLICES][TILES][2][4], unsigned count) {
    const long long end = shared.sums[count - 1];
    float decayed[TILES][2][4];
    FOR_SUMS(tile, half, i) {
      const unsigned token = 16 * warp() + place_of(half, i);
      float& element = decayed[tile][half][i];
      element = 0.0f;
      if (token < count) element = writes[tile][half][i] * delta_decay(shared.sums[token], end);
      // What a NaN among the sums spoils is NaN by the state's own decay.
      if (!isfinite(element)) element = 0.0f;
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
      if (key_block(slice) < scratch.dim_blocks) add_writes(after[slice], key_block(slice));
    }
    __syncthreads();
  }

  // sums += decayed writes * keys, for 16 rows of keys.
  __device__ __forceinline__ void add_writes(float (&sums)[TILES][2][4], unsigned block) {
#pragma unroll
    for (unsigned depth = 0; depth < CHUNK_BLOCKS; ++depth) {
      Operand a[TILES];
#pragma unroll
      for (unsigned tile = 0; tile < TILES; ++tile) a[tile] = shared.decayed.load(tile, depth);
      const unsigned* keys = shared.keys + (depth * scratch.dim_blocks + block) * BLOCK_WORDS;
      unsigned high[4], low[4];
      load_part_trans(high, keys);
      load_part_trans(low, keys + PART_WORDS);
      add_block(sums, a, high, low);
    }
  }

  // Groups of copies that are younger than a chunk's keys when all queries have been taken: at least
  // as many as a key head of this variant has blocks.
  static constexpr int KEYS_PENDING = SLICES == 1 ? 1 : SLICES == 2 ? 5 : AHEAD - 1;

  __device__ __forceinline__ void run(const unsigned* segment) {
    const unsigned len = segment[1], slot = segment[2], stops_end = segment[5];
    unsigned stop = segment[4];
    for (unsigned i = 0; i < AHEAD; ++i) ring.push();
    load_state(slot);
    for (unsigned start = 0; start < len; start += CHUNK) {
      const unsigned end = min(len, start + CHUNK);
      begin(segment[3] + start / CHUNK);
      tokens(size_t(segment[0]) + start, end - start);
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

// Blocks `[columns / 32, value_heads, segments]`; dynamic shared memory for operands, keys and rings.
template <unsigned SLICES>
__device__ __forceinline__ void delta_chunks(const ChunkOperands& x, const DeltaSizes& sizes,
                                             const DeltaScratch& scratch,
                                             const unsigned* segments) {
  __shared__ long long sums[CHUNK];
  __shared__ float decays[CHUNK];
  __shared__ int first_bad_value[COLUMNS];
  __shared__ int first_bad_write[COLUMNS];
  const unsigned* segment = segments + blockIdx.z * CHUNK_SEGMENT;
  const unsigned depth = scratch.dim_blocks, head = blockIdx.y, warp = threadIdx.x / WARP;
  // 16 bytes of each lane for each part of a block.
  uint4* first = dynamic_shared<uint4>();
  uint4* second = first + TILES * max(depth, CHUNK_BLOCKS) * 2 * WARP;
  unsigned* keys = reinterpret_cast<unsigned*>(second + TILES * CHUNK_BLOCKS * 2 * WARP);
  unsigned* ring = keys + scratch.rows_words() + warp * AHEAD * BLOCK_WORDS;
  const Operands writes = {first, CHUNK_BLOCKS}, values = {second, CHUNK_BLOCKS};
  const ChunkShared shared = {{first, depth}, values, writes,          values,         keys,
                              sums,           decays, first_bad_value, first_bad_write};
  const unsigned chunks_end = segment[3] + (segment[1] + CHUNK - 1) / CHUNK;
  const Ring own = {scratch, ring, head, sizes.key_head(head), chunks_end, segment[3], 0, 0};
  ChunkHead<SLICES> of = {x, sizes, scratch, shared, own, head, blockIdx.x * COLUMNS};
  of.run(segment);
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
