// `Routing::route`: the experts of each row, then the pairs sorted by expert. Few rows take one
// launch of one block, many take two launches of a block for each 32 rows.
//
// Choosing: a warp for each row. Its scores lie in shared memory as keys, integers in the order in
// which experts are chosen; each lane keeps the best of its own, and a choice is two reductions
// over the warp and one lane's look at its experts. Every logit is read once: 4 bytes, some 10
// operations and for each choice some 30 more. It is latency that counts, for 32 rows or fewer a
// few microseconds.
//
// Sorting: which of a block's 32 rows chose an expert is one word, so that the place of a pair
// among those of its expert is a count of bits, in any order of threads. A block of many adds up
// the counts of all blocks for itself, `rows / 32 * experts` words from the second-level cache,
// which saves a launch.
#include "../gpu/cuda.cuh"

constexpr unsigned TILE_ROWS = 32;
constexpr unsigned THREADS_MAX = 256;
// Keeps a sum of weights from being zero, as the reference implementations do.
constexpr float LEAST_SUM = 1e-20f;

struct Router {
  unsigned experts, choices, groups, groups_per_token;
  bool sigmoid, renormalize;
  float scale;
};

// The larger key is chosen first. What is not a number has the largest, zeros have one, and 0 is
// that of no number: of an expert that cannot be chosen, or no more.
__device__ __forceinline__ unsigned route_key_of(float value) {
  const unsigned bits = __float_as_uint(value), magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0xffffffffu;
  if (magnitude == 0) return 0x80000000u;
  return magnitude == bits ? bits | 0x80000000u : ~bits;
}

__device__ __forceinline__ float route_value_of(unsigned key) {
  return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

__device__ __forceinline__ float route_logistic(float x) { return 1.0f / (1.0f + expf(-x)); }

// A key and the first expert that has it.
struct Best {
  unsigned key, expert;
};

// The best of the experts of this lane: lane, lane + 32 and so on.
__device__ __forceinline__ Best route_best_of(const unsigned* keys, unsigned experts) {
  Best best = {0, 0};
  for (unsigned expert = threadIdx.x % WARP; expert < experts; expert += WARP)
    if (keys[expert] > best.key) best = {keys[expert], expert};
  return best;
}

// Takes the keys of experts outside of the best groups; `sums` has room for a key of each group.
__device__ void route_keep_groups(const Router& router, unsigned* keys, unsigned* sums) {
  const unsigned lane = threadIdx.x % WARP, size = router.experts / router.groups;
  for (unsigned group = lane; group < router.groups; group += WARP) {
    unsigned first = 0, second = 0;
    // From another place in each group: lanes read from other banks.
    unsigned at = group % size;
    for (unsigned i = 0; i < size; ++i) {
      const unsigned key = keys[group * size + at];
      at = at + 1 < size ? at + 1 : 0;
      second = max(second, min(first, key));
      first = max(first, key);
    }
    const float largest = route_value_of(first);
    sums[group] = route_key_of(size > 1 ? largest + route_value_of(second) : largest);
  }
  __syncwarp();
  for (unsigned expert = lane; expert < router.experts; expert += WARP) {
    const unsigned group = expert / size, sum = sums[group];
    unsigned before = 0;
    for (unsigned other = 0; other < router.groups; ++other)
      before += sums[other] > sum || (sums[other] == sum && other < group);
    if (before >= router.groups_per_token) keys[expert] = 0;
  }
  __syncwarp();
}

// Chooses for one row, of which bit `bit` stands in `mask`. `keys` has a word for each expert and
// group; `ids` and `weights` are those of the row.
__device__ void route_row(const Router& router, const float* logits, const float* correction,
                           unsigned* keys, unsigned* mask, unsigned bit, unsigned* ids,
                           float* weights) {
  const unsigned lane = threadIdx.x % WARP;
  float largest = -INFINITY, sum = 0.0f;
  for (unsigned expert = lane; expert < router.experts; expert += WARP) {
    const float logit = logits[expert];
    largest = fmaxf(largest, logit);
    keys[expert] =
        route_key_of(router.sigmoid ? route_logistic(logit) + correction[expert] : logit);
  }
  __syncwarp();
  if (router.sigmoid) {
    if (router.groups > 1) route_keep_groups(router, keys, keys + router.experts);
  } else {
    largest = warp_max(largest);
    for (unsigned expert = lane; expert < router.experts; expert += WARP)
      sum += expf(route_value_of(keys[expert]) - largest);
    sum = warp_sum(sum);
  }
  Best best = route_best_of(keys, router.experts);
  float total = 0.0f;
  for (unsigned choice = 0; choice < router.choices; ++choice) {
    const unsigned key = __reduce_max_sync(ALL_LANES, best.key);
    const unsigned expert = __reduce_min_sync(ALL_LANES, best.key == key ? best.expert : ~0u);
    if (best.key == key && best.expert == expert) {
      const float weight = router.sigmoid ? route_logistic(logits[expert])
                                          : expf(route_value_of(key) - largest) / sum;
      ids[choice] = expert;
      weights[choice] = weight;
      total += weight;
      atomicOr(&mask[expert], bit);
      keys[expert] = 0;
      best = route_best_of(keys, router.experts);
    }
    __syncwarp();
  }
  total = router.renormalize ? warp_sum(total) + LEAST_SUM : 1.0f;
  for (unsigned choice = lane; choice < router.choices; choice += WARP)
    weights[choice] = weights[choice] / total * router.scale;
}

// Chooses for the rows of tile `blockIdx.x`. Dynamic shared memory: a word for each expert, and for
// each warp one for each expert and group.
__device__ __forceinline__ void route_choose_tile(unsigned* ids, float* weights, unsigned* masks,
                                       const float* logits, const float* correction, unsigned rows,
                                       const Router& router) {
  unsigned* mask = dynamic_shared<unsigned>();
  const unsigned warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  unsigned* keys = mask + router.experts + warp * (router.experts + router.groups);
  for (unsigned expert = threadIdx.x; expert < router.experts; expert += blockDim.x)
    mask[expert] = 0;
  __syncthreads();
  for (unsigned i = warp; i < TILE_ROWS; i += warps) {
    const size_t row = static_cast<size_t>(blockIdx.x) * TILE_ROWS + i;
    if (row >= rows) break;
    route_row(router, logits + row * router.experts, correction, keys, mask, 1u << i,
               ids + row * router.choices, weights + row * router.choices);
    __syncwarp();
  }
  __syncthreads();
  masks += static_cast<size_t>(blockIdx.x) * router.experts;
  for (unsigned expert = threadIdx.x; expert < router.experts; expert += blockDim.x)
    masks[expert] = mask[expert];
}

// Pairs and blocks of some experts.
struct Counts {
  unsigned pairs, blocks;
};

// The counts of the threads before this one, and of all of them; `partial` has one for each warp.
__device__ __forceinline__ Counts route_counts_before(Counts mine, Counts* partial, Counts& all) {
  const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  Counts sum = mine;
#pragma unroll
  for (unsigned by = 1; by < WARP; by *= 2) {
    const unsigned pairs = __shfl_up_sync(ALL_LANES, sum.pairs, by);
    const unsigned blocks = __shfl_up_sync(ALL_LANES, sum.blocks, by);
    if (lane >= by) sum = {sum.pairs + pairs, sum.blocks + blocks};
  }
  if (lane == WARP - 1) partial[warp] = sum;
  __syncthreads();
  Counts before = {sum.pairs - mine.pairs, sum.blocks - mine.blocks};
  all = {0, 0};
  for (unsigned other = 0; other < blockDim.x / WARP; ++other) {
    const Counts of = partial[other];
    if (other < warp) before = {before.pairs + of.pairs, before.blocks + of.blocks};
    all = {all.pairs + of.pairs, all.blocks + of.blocks};
  }
  __syncthreads();
  return before;
}

// What the sort reads and writes.
struct Sort {
  const unsigned* ids;
  const unsigned* masks;
  unsigned rows, experts, choices;
  unsigned* pairs;
  unsigned* pair_rows;
  uint4* blocks;
  unsigned blocks_max, block_pairs;
};

// Lists the blocks of an expert's pairs.
__device__ __forceinline__ void route_list_blocks(const Sort& sort, unsigned expert, unsigned block,
                                            unsigned first, unsigned count) {
  for (; count > 0; ++block) {
    const unsigned len = min(count, sort.block_pairs);
    sort.blocks[block] = make_uint4(expert, first, len, 0);
    first += len;
    count -= len;
  }
}

// Places the pairs of the rows of tile `blockIdx.x`; the first block lists all blocks of pairs.
// Dynamic shared memory: a word for each expert.
__device__ __forceinline__ void route_place(const Sort& sort, Counts* partial) {
  unsigned* next = dynamic_shared<unsigned>();
  const unsigned tile = blockIdx.x, tiles = gridDim.x, experts = sort.experts;
  Counts first = {0, 0};
  for (unsigned start = 0; start < experts; start += blockDim.x) {
    const unsigned expert = start + threadIdx.x;
    unsigned count = 0, earlier = 0;
    for (unsigned other = 0; expert < experts && other < tiles; ++other) {
      const unsigned rows = __popc(sort.masks[static_cast<size_t>(other) * experts + expert]);
      if (other < tile) earlier += rows;
      count += rows;
    }
    Counts all;
    const unsigned blocks = (count + sort.block_pairs - 1) / sort.block_pairs;
    const Counts before = route_counts_before({count, blocks}, partial, all);
    const unsigned pair = first.pairs + before.pairs;
    if (expert < experts) next[expert] = pair + earlier;
    if (tile == 0) route_list_blocks(sort, expert, first.blocks + before.blocks, pair, count);
    first = {first.pairs + all.pairs, first.blocks + all.blocks};
  }
  if (tile == 0)
    for (unsigned i = first.blocks + threadIdx.x; i < sort.blocks_max; i += blockDim.x)
      sort.blocks[i] = make_uint4(0, 0, 0, 0);
  __syncthreads();
  const unsigned rows = min(TILE_ROWS, sort.rows - tile * TILE_ROWS);
  const size_t choices = static_cast<size_t>(tile) * TILE_ROWS * sort.choices;
  for (unsigned i = threadIdx.x; i < rows * sort.choices; i += blockDim.x) {
    const unsigned row = i / sort.choices, expert = sort.ids[choices + i];
    const unsigned mask = sort.masks[static_cast<size_t>(tile) * experts + expert];
    const unsigned pair = next[expert] + __popc(mask & ((1u << row) - 1));
    sort.pairs[choices + i] = pair;
    sort.pair_rows[pair] = tile * TILE_ROWS + row;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS_MAX)
    route_choose(unsigned* ids, float* weights, unsigned* masks, const float* logits,
                 const float* correction, unsigned rows, unsigned experts, unsigned choices,
                 unsigned groups, unsigned groups_per_token, unsigned sigmoid,
                 unsigned renormalize, float scale) {
  const Router router = {experts,      choices,          groups, groups_per_token,
                         sigmoid != 0, renormalize != 0, scale};
  route_choose_tile(ids, weights, masks, logits, correction, rows, router);
}

extern "C" __global__ void __launch_bounds__(THREADS_MAX)
    route_sort(const unsigned* ids, const unsigned* masks, unsigned rows, unsigned experts,
               unsigned choices, unsigned* pairs, unsigned* pair_rows, uint4* blocks,
               unsigned blocks_max, unsigned block_pairs) {
  __shared__ Counts partial[THREADS_MAX / WARP];
  const Sort sort = {ids,   masks,     rows,   experts,    choices,
                     pairs, pair_rows, blocks, blocks_max, block_pairs};
  route_place(sort, partial);
}

// One block; what it chose it sorts.
extern "C" __global__ void __launch_bounds__(THREADS_MAX)
    route_few(unsigned* ids, float* weights, unsigned* masks, const float* logits,
              const float* correction, unsigned rows, unsigned experts, unsigned choices,
              unsigned groups, unsigned groups_per_token, unsigned sigmoid, unsigned renormalize,
              float scale, unsigned* pairs, unsigned* pair_rows, uint4* blocks,
              unsigned blocks_max, unsigned block_pairs) {
  __shared__ Counts partial[THREADS_MAX / WARP];
  const Router router = {experts,      choices,          groups, groups_per_token,
                         sigmoid != 0, renormalize != 0, scale};
  route_choose_tile(ids, weights, masks, logits, correction, rows, router);
  __syncthreads();
  const Sort sort = {ids,   masks,     rows,   experts,    choices,
                     pairs, pair_rows, blocks, blocks_max, block_pairs};
  route_place(sort, partial);
}
