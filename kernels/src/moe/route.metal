// `Routing::route`: the experts of each row, then the pairs sorted by expert. Few rows take one
// launch of one threadgroup, many take two launches of a threadgroup for each 32 rows.
//
// Choosing: a simdgroup for each row. Its scores lie in threadgroup memory as keys, integers in the
// order in which experts are chosen; each thread keeps the best of its own, and a choice is two
// reductions over the simdgroup and one thread's look at its experts. Every logit is read once: 4
// bytes, some 10 operations and for each choice some 30 more. It is latency that counts, for 32
// rows or fewer a few microseconds.
//
// Sorting: which of a threadgroup's 32 rows chose an expert is one word, so that the place of a
// pair among those of its expert is a count of bits, in any order of threads. A threadgroup of many
// adds up the counts of all for itself, `rows / 32 * experts` words from a cache, which saves a
// launch.

constant constexpr uint ROUTE_TILE_ROWS = 32;
constant constexpr uint ROUTE_SIMDS_MAX = 8;
// Keeps a sum of weights from being zero, as the reference implementations do.
constant constexpr float ROUTE_LEAST_SUM = 1e-20f;

struct Router {
  uint experts, choices, groups, groups_per_token;
  bool sigmoid, renormalize;
  float scale;
};

// The larger key is chosen first. What is not a number has the largest, zeros have one, and 0 is
// that of no number: of an expert that cannot be chosen, or no more. Told by bits, which fast math
// leaves alone.
inline uint route_key_of(float value) {
  const uint bits = as_type<uint>(value), magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0xffffffffu;
  if (magnitude == 0) return 0x80000000u;
  return magnitude == bits ? bits | 0x80000000u : ~bits;
}

inline float route_value_of(uint key) {
  return as_type<float>((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

inline float route_logistic(float x) { return 1.0f / (1.0f + precise::exp(-x)); }

// A key and the first expert that has it.
struct Best {
  uint key, expert;
};

// The best of the experts of this thread: lane, lane + 32 and so on.
inline Best route_best_of(threadgroup const uint* keys, uint experts, uint lane) {
  Best best = {0, 0};
  for (uint expert = lane; expert < experts; expert += SIMD) {
    const uint key = keys[expert];
    if (key > best.key) {
      best.key = key;
      best.expert = expert;
    }
  }
  return best;
}

// Takes the keys of experts outside of the best groups; `sums` has room for a key of each group.
inline void route_keep_groups(Router router, threadgroup uint* keys, threadgroup uint* sums,
                              uint lane) {
  const uint size = router.experts / router.groups;
  for (uint group = lane; group < router.groups; group += SIMD) {
    uint first = 0, second = 0;
    // From another place in each group: threads read from other banks.
    uint at = group % size;
    for (uint i = 0; i < size; ++i) {
      const uint key = keys[group * size + at];
      at = at + 1 < size ? at + 1 : 0;
      second = max(second, min(first, key));
      first = max(first, key);
    }
    const float largest = route_value_of(first);
    sums[group] = route_key_of(size > 1 ? largest + route_value_of(second) : largest);
  }
  simdgroup_barrier(mem_flags::mem_threadgroup);
  for (uint expert = lane; expert < router.experts; expert += SIMD) {
    const uint group = expert / size, sum = sums[group];
    uint before = 0;
    for (uint other = 0; other < router.groups; ++other)
      before += uint(sums[other] > sum || (sums[other] == sum && other < group));
    if (before >= router.groups_per_token) keys[expert] = 0;
  }
  simdgroup_barrier(mem_flags::mem_threadgroup);
}

// Chooses for one row, of which bit `bit` stands in `mask`. `keys` has a word for each expert and
// group; `ids` and `weights` are those of the row.
inline void route_row(Router router, device const float* logits, device const float* correction,
                      threadgroup uint* keys, threadgroup atomic_uint* mask, uint bit,
                      device uint* ids, device float* weights, uint lane) {
  float largest = -INFINITY, sum = 0.0f;
  for (uint expert = lane; expert < router.experts; expert += SIMD) {
    const float logit = logits[expert];
    largest = max(largest, logit);
    keys[expert] =
        route_key_of(router.sigmoid ? route_logistic(logit) + correction[expert] : logit);
  }
  simdgroup_barrier(mem_flags::mem_threadgroup);
  if (router.sigmoid) {
    if (router.groups > 1) route_keep_groups(router, keys, keys + router.experts, lane);
  } else {
    largest = simd_max(largest);
    for (uint expert = lane; expert < router.experts; expert += SIMD)
      sum += precise::exp(route_value_of(keys[expert]) - largest);
    sum = simd_sum(sum);
  }
  Best best = route_best_of(keys, router.experts, lane);
  float total = 0.0f;
  // Weights wait in the thread of their choice: lane, lane + 32 and so on.
  for (uint choice = 0; choice < router.choices; ++choice) {
    const uint key = simd_max(best.key);
    const uint expert = simd_min(best.key == key ? best.expert : 0xffffffffu);
    if (best.key == key && best.expert == expert) {
      const float weight = router.sigmoid ? route_logistic(logits[expert])
                                          : precise::exp(route_value_of(key) - largest) / sum;
      ids[choice] = expert;
      weights[choice] = weight;
      total += weight;
      atomic_fetch_or_explicit(&mask[expert], bit, memory_order_relaxed);
      keys[expert] = 0;
      best = route_best_of(keys, router.experts, lane);
    }
    simdgroup_barrier(mem_flags::mem_device | mem_flags::mem_threadgroup);
  }
  const float whole = simd_sum(total) + ROUTE_LEAST_SUM;
  for (uint choice = lane; choice < router.choices; choice += SIMD)
    weights[choice] = weights[choice] / (router.renormalize ? whole : 1.0f) * router.scale;
}

// Where a thread is.
struct Place {
  uint group, groups, index, threads;
};

// Chooses for the rows of tile `at.group`. `shared` has a word for each expert, and for each
// simdgroup one for each expert and group.
inline void route_choose_tile(device uint* ids, device float* weights, device uint* masks,
                              device const float* logits, device const float* correction,
                              uint rows, Router router, threadgroup uint* shared, Place at) {
  const uint simd = at.index / SIMD, lane = at.index % SIMD;
  threadgroup uint* keys = shared + router.experts + simd * (router.experts + router.groups);
  threadgroup atomic_uint* mask = (threadgroup atomic_uint*)shared;
  for (uint expert = at.index; expert < router.experts; expert += at.threads) shared[expert] = 0;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = simd; i < ROUTE_TILE_ROWS; i += at.threads / SIMD) {
    const ulong row = ulong(at.group) * ROUTE_TILE_ROWS + i;
    if (row >= rows) break;
    route_row(router, logits + row * router.experts, correction, keys, mask, 1u << i,
              ids + row * router.choices, weights + row * router.choices, lane);
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  masks += ulong(at.group) * router.experts;
  for (uint expert = at.index; expert < router.experts; expert += at.threads)
    masks[expert] = shared[expert];
}

// Pairs and blocks of some experts.
struct Counts {
  uint pairs, blocks;
};

// The counts of the threads before this one, and of all of them; `partial` has one for each
// simdgroup.
inline Counts route_counts_before(Counts mine, threadgroup Counts* partial, thread Counts& all,
                                  Place at) {
  const uint lane = at.index % SIMD, simd = at.index / SIMD;
  Counts before = {simd_prefix_exclusive_sum(mine.pairs), simd_prefix_exclusive_sum(mine.blocks)};
  if (lane == SIMD - 1) {
    partial[simd].pairs = before.pairs + mine.pairs;
    partial[simd].blocks = before.blocks + mine.blocks;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  all.pairs = 0;
  all.blocks = 0;
  for (uint other = 0; other < at.threads / SIMD; ++other) {
    const uint pairs = partial[other].pairs, blocks = partial[other].blocks;
    before.pairs += other < simd ? pairs : 0;
    before.blocks += other < simd ? blocks : 0;
    all.pairs += pairs;
    all.blocks += blocks;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return before;
}

// What the sort reads and writes.
struct Sort {
  device const uint* ids;
  device const uint* masks;
  uint rows, experts, choices;
  device uint* pairs;
  device uint* pair_rows;
  device uint4* blocks;
  uint blocks_max, block_pairs;
};

// Lists the blocks of an expert's pairs.
inline void route_list_blocks(Sort sort, uint expert, uint block, uint first, uint count) {
  for (; count > 0; ++block) {
    const uint len = min(count, sort.block_pairs);
    sort.blocks[block] = uint4(expert, first, len, 0);
    first += len;
    count -= len;
  }
}

// Places the pairs of the rows of tile `at.group`; the first threadgroup lists all blocks of pairs.
// `next` has a word for each expert.
inline void route_place(Sort sort, threadgroup uint* next, threadgroup Counts* partial, Place at) {
  const uint tile = at.group, experts = sort.experts;
  Counts first = {0, 0};
  for (uint start = 0; start < experts; start += at.threads) {
    const uint expert = start + at.index;
    Counts mine = {0, 0};
    uint earlier = 0;
    for (uint other = 0; expert < experts && other < at.groups; ++other) {
      const uint rows = popcount(sort.masks[ulong(other) * experts + expert]);
      earlier += other < tile ? rows : 0;
      mine.pairs += rows;
    }
    mine.blocks = (mine.pairs + sort.block_pairs - 1) / sort.block_pairs;
    Counts all;
    const Counts before = route_counts_before(mine, partial, all, at);
    const uint pair = first.pairs + before.pairs;
    if (expert < experts) next[expert] = pair + earlier;
    if (tile == 0)
      route_list_blocks(sort, expert, first.blocks + before.blocks, pair, mine.pairs);
    first.pairs += all.pairs;
    first.blocks += all.blocks;
  }
  if (tile == 0)
    for (uint i = first.blocks + at.index; i < sort.blocks_max; i += at.threads)
      sort.blocks[i] = uint4(0);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const uint rows = min(ROUTE_TILE_ROWS, sort.rows - tile * ROUTE_TILE_ROWS);
  const ulong choices = ulong(tile) * ROUTE_TILE_ROWS * sort.choices;
  for (uint i = at.index; i < rows * sort.choices; i += at.threads) {
    const uint row = i / sort.choices, expert = sort.ids[choices + i];
    const uint mask = sort.masks[ulong(tile) * experts + expert];
    const uint pair = next[expert] + popcount(mask & ((1u << row) - 1));
    sort.pairs[choices + i] = pair;
    sort.pair_rows[pair] = tile * ROUTE_TILE_ROWS + row;
  }
}

kernel void route_choose(device uint* ids [[buffer(0)]],
                         device float* weights [[buffer(1)]],
                         device uint* masks [[buffer(2)]],
                         device const float* logits [[buffer(3)]],
                         device const float* correction [[buffer(4)]],
                         constant uint& rows [[buffer(5)]],
                         constant uint& experts [[buffer(6)]],
                         constant uint& choices [[buffer(7)]],
                         constant uint& groups [[buffer(8)]],
                         constant uint& groups_per_token [[buffer(9)]],
                         constant uint& sigmoid [[buffer(10)]],
                         constant uint& renormalize [[buffer(11)]],
                         constant float& scale [[buffer(12)]],
                         threadgroup uint* shared [[threadgroup(0)]],
                         uint3 group [[threadgroup_position_in_grid]],
                         uint3 grid [[threadgroups_per_grid]],
                         uint index [[thread_index_in_threadgroup]],
                         uint threads [[threads_per_threadgroup]]) {
  const Router router = {experts,      choices,          groups, groups_per_token,
                         sigmoid != 0, renormalize != 0, scale};
  const Place at = {group.x, grid.x, index, threads};
  route_choose_tile(ids, weights, masks, logits, correction, rows, router, shared, at);
}

kernel void route_sort(device const uint* ids [[buffer(0)]],
                       device const uint* masks [[buffer(1)]],
                       constant uint& rows [[buffer(2)]],
                       constant uint& experts [[buffer(3)]],
                       constant uint& choices [[buffer(4)]],
                       device uint* pairs [[buffer(5)]],
                       device uint* pair_rows [[buffer(6)]],
                       device uint4* blocks [[buffer(7)]],
                       constant uint& blocks_max [[buffer(8)]],
                       constant uint& block_pairs [[buffer(9)]],
                       threadgroup uint* shared [[threadgroup(0)]],
                       uint3 group [[threadgroup_position_in_grid]],
                       uint3 grid [[threadgroups_per_grid]],
                       uint index [[thread_index_in_threadgroup]],
                       uint threads [[threads_per_threadgroup]]) {
  threadgroup Counts partial[ROUTE_SIMDS_MAX];
  const Sort sort = {ids,   masks,     rows,   experts,    choices,
                     pairs, pair_rows, blocks, blocks_max, block_pairs};
  const Place at = {group.x, grid.x, index, threads};
  route_place(sort, shared, partial, at);
}

// One threadgroup; what it chose it sorts.
kernel void route_few(device uint* ids [[buffer(0)]],
                      device float* weights [[buffer(1)]],
                      device uint* masks [[buffer(2)]],
                      device const float* logits [[buffer(3)]],
                      device const float* correction [[buffer(4)]],
                      constant uint& rows [[buffer(5)]],
                      constant uint& experts [[buffer(6)]],
                      constant uint& choices [[buffer(7)]],
                      constant uint& groups [[buffer(8)]],
                      constant uint& groups_per_token [[buffer(9)]],
                      constant uint& sigmoid [[buffer(10)]],
                      constant uint& renormalize [[buffer(11)]],
                      constant float& scale [[buffer(12)]],
                      device uint* pairs [[buffer(13)]],
                      device uint* pair_rows [[buffer(14)]],
                      device uint4* blocks [[buffer(15)]],
                      constant uint& blocks_max [[buffer(16)]],
                      constant uint& block_pairs [[buffer(17)]],
                      threadgroup uint* shared [[threadgroup(0)]],
                      uint3 group [[threadgroup_position_in_grid]],
                      uint3 grid [[threadgroups_per_grid]],
                      uint index [[thread_index_in_threadgroup]],
                      uint threads [[threads_per_threadgroup]]) {
  threadgroup Counts partial[ROUTE_SIMDS_MAX];
  const Router router = {experts,      choices,          groups, groups_per_token,
                         sigmoid != 0, renormalize != 0, scale};
  const Place at = {group.x, grid.x, index, threads};
  route_choose_tile(ids, weights, masks, logits, correction, rows, router, shared, at);
  threadgroup_barrier(mem_flags::mem_device | mem_flags::mem_threadgroup);
  const Sort sort = {ids,   masks,     rows,   experts,    choices,
                     pairs, pair_rows, blocks, blocks_max, block_pairs};
  route_place(sort, shared, partial, at);
}
