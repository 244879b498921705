// `gated_delta` in chunks of 64 tokens, first kernel: all that does not need the state, by a block for
// each chunk and key head. It leaves, as operands of tensor cores in two bf16 parts (see
// gated_delta.cuh): queries and keys at their lengths; and for each value head the decayed scores of
// queries with keys, `P`, and `T = (I + A)^-1 diag(beta)`, where `A_ij = beta_i decay_ij (k_i k_j)`
// below the diagonal, so that writes are `T (v - decay S^T k)`.
//
// For a chunk, a key head of 128 and two value heads: 64 KiB are read, 2 MFLOP of products done three
// times over (for the two parts), 160 KiB written; bound by memory, at 32 key heads' worth of 2048
// tokens about 30 us at 4.8 TB/s. Products are done once for all value heads of a key head, in slabs
// of 64 elements so that shared memory does not grow with the heads. The inverse is made in f32: the
// four blocks of 16 on the diagonal by substitution, a column a thread, what is below them by
// products of blocks, in place.
//
// A key with an element that is no finite number is taken as zeros with a strength of NaN: all that
// comes after it is NaN, and nothing that came before.
#include "gated_delta.cuh"

namespace {

// Blocks of a slab.
constexpr unsigned SLAB_BLOCKS = 4;
// Distance of rows of the matrix that becomes the inverse.
constexpr unsigned STRIDE = CHUNK + 1;

struct PrepareOperands {
  const float* qkv;
  const float* a;
  const float* b;
  const float* rate;
  const float* dt_bias;
  size_t first_row;
  unsigned len;
};

// A part of a block as the first operand: 16 rows, 16 deep.
__device__ __forceinline__ void load_rows(unsigned (&d)[4], const unsigned* part) {
  const unsigned lane = threadIdx.x % WARP;
  unsigned quads[4];
  ldmatrix_x4(quads, part + lane * 4);
  d[0] = quads[0];
  d[1] = quads[2];
  d[2] = quads[1];
  d[3] = quads[3];
}

// What queries and keys are multiplied with.
struct Lengths {
  float query, key;
  bool finite;
};

// The eight tokens of a warp have four lanes each.
__device__ __forceinline__ Lengths lengths(const float* query, const float* key, bool inside,
                                           unsigned key_dim) {
  float squares = 0.0f, key_squares = 0.0f;
  int finite = 1;
  if (inside) {
    for (unsigned i = threadIdx.x % 4 * 2; i < key_dim; i += 8) {
      for (unsigned j = i; j < min(key_dim, i + 2); ++j) {
        squares = fmaf(query[j], query[j], squares);
        key_squares = fmaf(key[j], key[j], key_squares);
        finite &= isfinite(key[j]) ? 1 : 0;
      }
    }
  }
#pragma unroll
  for (int bits = 1; bits <= 2; bits *= 2) {
    squares += __shfl_xor_sync(ALL_LANES, squares, bits);
    key_squares += __shfl_xor_sync(ALL_LANES, key_squares, bits);
    finite &= __shfl_xor_sync(ALL_LANES, finite, bits);
  }
  const float scale = 1.0f / sqrtf(static_cast<float>(key_dim));
  return {scale / sqrtf(squares + DELTA_L2_EPS), 1.0f / sqrtf(key_squares + DELTA_L2_EPS),
          finite != 0};
}

// Two elements, scaled, in two parts.
__device__ __forceinline__ void load_pair(const float* from, bool inside, unsigned i,
                                          unsigned key_dim, float scale, unsigned& high,
                                          unsigned& low) {
  const float x = inside && i < key_dim ? from[i] * scale : 0.0f;
  const float y = inside && i + 1 < key_dim ? from[i + 1] * scale : 0.0f;
  split_pair(x, y, high, low);
}

// Sums of keys with keys (first four warps) or queries with keys (the others): 16 rows of each warp
// and the columns up to the diagonal. `slab` has the queries, then the keys.
__device__ __forceinline__ void add_products(float (&sums)[8][4], const unsigned* slab,
                                             unsigned blocks) {
  const unsigned lane = threadIdx.x % WARP, rows = threadIdx.x / WARP % CHUNK_BLOCKS;
  const unsigned keys = CHUNK_BLOCKS * SLAB_BLOCKS * BLOCK_WORDS;
  const unsigned* left = slab + (threadIdx.x / WARP < CHUNK_BLOCKS ? keys : 0);
  for (unsigned depth = 0; depth < blocks; ++depth) {
    unsigned high[4], low[4];
    const unsigned* block = left + (rows * SLAB_BLOCKS + depth) * BLOCK_WORDS;
    load_rows(high, block);
    load_rows(low, block + PART_WORDS);
#pragma unroll
    for (unsigned column = 0; column < CHUNK_BLOCKS; ++column) {
      if (column > rows) continue;
      unsigned b_high[4], b_low[4];
      const unsigned* right = slab + keys + (column * SLAB_BLOCKS + depth) * BLOCK_WORDS;
      ldmatrix_x4(b_high, right + lane * 4);
      ldmatrix_x4(b_low, right + PART_WORDS + lane * 4);
#pragma unroll
      for (unsigned half = 0; half < 2; ++half) {
        const unsigned of_high[2] = {b_high[2 * half], b_high[2 * half + 1]};
        const unsigned of_low[2] = {b_low[2 * half], b_low[2 * half + 1]};
        mma_split(sums[2 * column + half], high, low, of_high, of_low);
      }
    }
  }
}

// Takes the sums of keys to `A`, in shared memory, or those of queries to scores, where they belong.
__device__ __forceinline__ void take_products(const float (&sums)[8][4], float* matrix,
                                              unsigned* scores, const long long* logs,
                                              const float* strengths) {
  const unsigned lane = threadIdx.x % WARP, rows = threadIdx.x / WARP % CHUNK_BLOCKS;
  const bool of_keys = threadIdx.x / WARP < CHUNK_BLOCKS;
#pragma unroll
  for (unsigned tile = 0; tile < 8; ++tile) {
    if (tile / 2 > rows) continue;
    const unsigned column = 8 * tile + lane % 4 * 2;
#pragma unroll
    for (unsigned half = 0; half < 2; ++half) {
      const unsigned row = 16 * rows + 8 * half + lane / 4;
      float x[2];
#pragma unroll
      for (unsigned i = 0; i < 2; ++i) {
        const unsigned from = column + i;
        const bool seen = of_keys ? from < row : from <= row;
        x[i] = seen ? sums[tile][2 * half + i] * delta_decay(logs[from], logs[row]) : 0.0f;
        if (of_keys) matrix[row * STRIDE + from] = seen ? x[i] * strengths[row] : 0.0f;
      }
      if (of_keys) continue;
      unsigned* block = scores + (rows * CHUNK_BLOCKS + tile / 2) * BLOCK_WORDS;
      const unsigned word = (2 * half + tile % 2) * MATRIX_WORDS + lane;
      split_pair(x[0], x[1], block[word], block[PART_WORDS + word]);
    }
  }
}

// The inverse of a block of 16 on the diagonal of `I + A`: thread `16 * block + column`.
__device__ __forceinline__ void invert_diagonal(float* matrix) {
  const unsigned first = threadIdx.x / 16 * 16, column = threadIdx.x % 16;
  float x[16];
  const float* block = matrix + first * STRIDE + first;
#pragma unroll
  for (unsigned row = 0; row < 16; ++row) {
    float sum = row == column ? 1.0f : 0.0f;
#pragma unroll
    for (unsigned m = 0; m < row; ++m) sum = fmaf(-block[row * STRIDE + m], x[m], sum);
    x[row] = row < column ? 0.0f : sum;
  }
  // The other columns of the block are read by other lanes of this warp.
  __syncwarp();
#pragma unroll
  for (unsigned row = 0; row < 16; ++row) matrix[(first + row) * STRIDE + first + column] = x[row];
}

// Makes the lower triangle of `I + A` its inverse, by block rows: `T_bc = -T_bb sum A_bm T_mc`. The
// sums lie where the upper triangle would be.
__device__ __forceinline__ void invert(float* matrix) {
  if (threadIdx.x < CHUNK) invert_diagonal(matrix);
  const unsigned row = threadIdx.x / 16, column = threadIdx.x % 16;
  for (unsigned block = 1; block < CHUNK_BLOCKS; ++block) {
    const unsigned below = 16 * block;
    __syncthreads();
    for (unsigned left = 0; left < below; left += 16) {
      float sum = 0.0f;
      for (unsigned m = left; m < below; ++m)
        sum = fmaf(matrix[(below + row) * STRIDE + m], matrix[m * STRIDE + left + column], sum);
      matrix[(left + row) * STRIDE + below + column] = sum;
    }
    __syncthreads();
    for (unsigned left = 0; left < below; left += 16) {
      float sum = 0.0f;
      // To the diagonal only: what a later token makes NaN stays out of it.
      for (unsigned m = 0; m <= row; ++m)
        sum = fmaf(matrix[(below + row) * STRIDE + below + m],
                   matrix[(left + m) * STRIDE + below + column], sum);
      matrix[(below + row) * STRIDE + left + column] = -sum;
    }
  }
  __syncthreads();
}

// Stores the lower triangle of blocks of `T`.
__device__ __forceinline__ void store_solution(unsigned* solution, const float* matrix,
                                               const float* strengths) {
  const unsigned lane = threadIdx.x % WARP;
  constexpr unsigned LOWER = CHUNK_BLOCKS * (CHUNK_BLOCKS + 1) / 2;
  for (unsigned part = threadIdx.x / WARP; part < 4 * LOWER; part += blockDim.x / WARP) {
    const unsigned quad = part % 4;
    unsigned above = 0, left = part / 4;
    while (left > above) left -= ++above;
    const unsigned row = 16 * above + 8 * (quad / 2) + lane / 4;
    const unsigned column = 16 * left + 8 * (quad % 2) + lane % 4 * 2;
    const float* at = matrix + row * STRIDE + column;
    const float x = column <= row ? at[0] * strengths[column] : 0.0f;
    const float y = column + 1 <= row ? at[1] * strengths[column + 1] : 0.0f;
    unsigned* block = solution + (above * CHUNK_BLOCKS + left) * BLOCK_WORDS;
    const unsigned word = quad * MATRIX_WORDS + lane;
    split_pair(x, y, block[word], block[PART_WORDS + word]);
  }
}

// Shared memory of a block.
struct Prepared {
  // Slabs of queries and keys, later the matrix.
  unsigned* slab;
  long long* logs;
  long long* sums;
  float* strengths;
  const int* finite;
};

// Gates, scores and solution of one value head.
__device__ __forceinline__ void prepare_head(const float (&products)[8][4], const Prepared& shared,
                                             const PrepareOperands& x, const DeltaScratch& scratch,
                                             const DeltaSizes& sizes, unsigned head) {
  const unsigned chunk = blockIdx.y, token = threadIdx.x;
  float* matrix = reinterpret_cast<float*>(shared.slab);
  if (token < CHUNK) {
    // Tokens past the end neither write nor decay.
    const bool inside = token < x.len;
    const size_t gate = (x.first_row + token) * sizes.value_heads + head;
    const float g = inside ? delta_log_decay(x.a[gate], x.dt_bias[head], x.rate[head]) : 0.0f;
    shared.logs[token] = delta_fixed(g);
    const float strength = inside ? sigmoid(x.b[gate]) : 0.0f;
    shared.strengths[token] = shared.finite[token] ? strength : delta_not_a_number();
  }
  __syncthreads();
  if (token < CHUNK) {
    long long sum = 0;
    bool number = true;
    for (unsigned i = 0; i <= token; ++i) {
      number = number && shared.logs[i] != DELTA_LOG_NAN;
      sum += number ? shared.logs[i] : 0;
    }
    sum = number ? sum : DELTA_LOG_NAN;
    shared.sums[token] = sum;
    scratch.sums(chunk, head)[token] = sum;
  }
  __syncthreads();
  take_products(products, matrix, scratch.scores(chunk, head), shared.sums, shared.strengths);
  __syncthreads();
  invert(matrix);
  store_solution(scratch.solution(chunk, head), matrix, shared.strengths);
  __syncthreads();
}

}  // namespace

// Blocks `[key_heads, chunks]`; `chunks` has the first row and the tokens of each.
extern "C" __global__ void __launch_bounds__(256, 2)
    gated_delta_prepare(unsigned* words, const float* qkv, const float* a, const float* b,
                        const float* rate, const float* dt_bias, const unsigned* chunks,
                        unsigned chunk_count, unsigned key_heads, unsigned value_heads,
                        unsigned key_dim, unsigned value_dim, unsigned tiled) {
  __shared__ __align__(16) unsigned slab[2 * CHUNK_BLOCKS * SLAB_BLOCKS * BLOCK_WORDS];
  __shared__ long long logs[CHUNK];
  __shared__ long long sums[CHUNK];
  __shared__ float strengths[CHUNK];
  __shared__ int finite[CHUNK];
  const DeltaSizes sizes = {key_heads, value_heads, key_dim, value_dim, tiled != 0};
  const unsigned key_head = blockIdx.x, chunk = blockIdx.y;
  const PrepareOperands x = {qkv, a, b, rate, dt_bias, chunks[2 * chunk], chunks[2 * chunk + 1]};
  const unsigned dim_blocks = (key_dim + 15) / 16;
  const DeltaScratch scratch = {words, chunk_count, key_heads, value_heads, dim_blocks};

  const unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, token = 8 * warp + lane / 4;
  const bool inside = token < x.len;
  const float* query = qkv + sizes.query(x.first_row + token, key_head);
  const float* key = qkv + sizes.key(x.first_row + token, key_head);
  const Lengths scale = lengths(query, key, inside, key_dim);
  if (lane % 4 == 0) finite[token] = scale.finite;
  float products[8][4] = {};
  for (unsigned start = 0; start < dim_blocks; start += SLAB_BLOCKS) {
    const unsigned blocks = min(SLAB_BLOCKS, dim_blocks - start);
    if (start > 0) __syncthreads();
    for (unsigned tile = 0; tile < 2 * blocks; ++tile) {
      const unsigned i = 16 * start + 8 * tile + lane % 4 * 2;
      const unsigned word = (warp % 2 * 2 + tile % 2) * MATRIX_WORDS + lane;
      const unsigned global = (warp / 2 * dim_blocks + start + tile / 2) * BLOCK_WORDS + word;
      unsigned* local = slab + (warp / 2 * SLAB_BLOCKS + tile / 2) * BLOCK_WORDS + word;
      unsigned high, low;
      load_pair(query, inside, i, key_dim, scale.query, high, low);
      local[0] = scratch.queries(chunk, key_head)[global] = high;
      local[PART_WORDS] = scratch.queries(chunk, key_head)[global + PART_WORDS] = low;
      local += CHUNK_BLOCKS * SLAB_BLOCKS * BLOCK_WORDS;
      load_pair(key, inside && scale.finite, i, key_dim, scale.key, high, low);
      local[0] = scratch.keys(chunk, key_head)[global] = high;
      local[PART_WORDS] = scratch.keys(chunk, key_head)[global + PART_WORDS] = low;
    }
    __syncthreads();
    add_products(products, slab, blocks);
  }
  __syncthreads();
  const Prepared shared = {slab, logs, sums, strengths, finite};
  for (unsigned i = 0; i < sizes.ratio(); ++i)
    prepare_head(products, shared, x, scratch, sizes, sizes.value_head(key_head, i));
}
