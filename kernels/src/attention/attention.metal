// `paged_attention` and `latent_attention`, with the shapes and the order of sums that attention.cu
// explains: a threadgroup has up to 8 or 32 lines of one segment (query heads of consecutive rows
// that share a key head) and goes over their tokens in tiles of 32, of which 64 elements of each key,
// then of each value, are in threadgroup memory at a time. Products are those of simdgroup matrices
// in f32. Parts of 256 tokens are merged in order, by the threadgroup or by a second kernel.
//
// A token of a key head moves (key_dim + value_dim) * 4 bytes (in 8 bits about 1.1) for
// 2 * lines * (key_dim + value_dim) operations: with 8 lines memory is the floor, with 32 the
// matrices are.

constant constexpr uint TILE = SIMD;
constant constexpr uint CHUNK = 64;
// From row to row of a tile and of weights, in elements: rows begin in different banks.
constant constexpr uint STRIDE = CHUNK + 4;
constant constexpr uint WEIGHT_STRIDE = TILE + 4;
constant constexpr uint NOWHERE = 0xffffffffu;
constant constexpr uint KEY_GROUP = 32;
constant constexpr uint VALUE_GROUP = 64;
// Below all scores. Infinities and what is no number are told by their bits: a compiler may take
// for granted that there are none.
constant constexpr float LOWEST = -3.0e38f;
constant constexpr uint NO_NUMBER = 0x7fc00000u;

// How pages hold keys and values. Of latents, keys are the rope keys with the latents after them.
enum Kind { KIND_F32, KIND_INT8, KIND_LATENT };

inline bool is_number(float x) { return (as_type<uint>(x) & 0x7f800000u) != 0x7f800000u; }
inline float no_number() { return as_type<float>(NO_NUMBER); }

// Threads of a threadgroup, by its lines and the chunks of its values.
constexpr uint threads_of(uint lines, uint chunks) {
  return (lines == 8 ? 64 : 128) * (chunks > 2 ? 2 : 1);
}

struct Operands {
  device float* out;
  device const float* q;
  device const float* q_rope;
  device const uint* keys;
  device const uint* values;
  device const uint* pages;
  device float* scratch;
  uint heads, kv_heads, page_tokens, key_dim, value_dim;
  float scale;
  uint window, split_tokens, splits;
};

// Which threadgroup this is, and its run of lines of one segment, as the host lists them.
struct Item {
  uint first_row, first_position, first_page, first_line, lines;
  uint index, items, head, layer, layers;
};
inline Item item_of(device const uint* items, uint3 group, uint3 groups) {
  device const uint* words = items + group.x * 5;
  Item item;
  item.first_row = words[0];
  item.first_position = words[1];
  item.first_page = words[2];
  item.first_line = words[3];
  item.lines = words[4];
  item.index = group.x;
  item.items = groups.x;
  item.head = group.y;
  item.layer = group.z;
  item.layers = groups.z;
  return item;
}

// The first token that one at `position` sees.
inline uint first_seen(thread const Operands& o, uint position) {
  return position >= o.window ? position - o.window + 1 : 0;
}
inline uint position_of(thread const Operands& o, thread const Item& item, uint line) {
  return item.first_position + (item.first_line + line) / (o.heads / o.kv_heads);
}
// The row of a line among all heads of all rows of the step.
inline ulong head_row(thread const Operands& o, thread const Item& item, uint line) {
  const uint group = o.heads / o.kv_heads, index = item.first_line + line;
  return ulong(item.first_row + index / group) * o.heads + item.head * group + index % group;
}
// The split in which the first token lies that the lines of an item see.
inline uint first_split(thread const Operands& o, thread const Item& item) {
  return first_seen(o, position_of(o, item, 0)) / o.split_tokens;
}
// Where the parts of a line lie in scratch: `splits` times `value_dim` sums each, and after those of
// all lines two numbers for each part. Splits count from the item's first one.
inline ulong part_of(thread const Operands& o, thread const Item& item, uint lines, uint line,
                     uint split) {
  return ((ulong(item.index) * o.kv_heads + item.head) * lines + line) * o.splits + split;
}
inline device float* part_ends(thread const Operands& o, thread const Item& item, uint lines) {
  return o.scratch + ulong(item.items) * o.kv_heads * lines * o.splits * o.value_dim;
}

// What a maximum counts against another one that is at least as large.
inline float counts(float maximum, float largest) {
  return maximum <= LOWEST ? 0.0f : precise::exp(maximum - largest);
}
// A sum with another one added, always rounded in this order.
inline float mixed(float sum, float keep, float other, float add) {
  return keep == 0.0f ? other * add : fma(sum, keep, other * add);
}

// Maximum and sum of the weights of a line, over what it has seen so far.
struct Softmax {
  float top, sum;
};
inline Softmax empty_softmax() {
  Softmax softmax;
  softmax.top = LOWEST;
  softmax.sum = 0.0f;
  return softmax;
}
// Adds a part to the ones before it; returns what the sums of values count.
inline float2 merge(thread Softmax& whole, thread const Softmax& part) {
  const float top = max(whole.top, part.top);
  const float keep = counts(whole.top, top), add = counts(part.top, top);
  // What is no number stays so, whatever it counts.
  whole.sum = fma(whole.sum, keep, part.sum * add);
  whole.top = top;
  return float2(keep, add);
}

// Four elements of a row of `dim`, of which those outside are zeros.
inline float4 quad(device const float* row, uint dim, uint at) {
  if (dim % 4 == 0) return at < dim ? *(device const float4*)(row + at) : float4(0.0f);
  return float4(at < dim ? row[at] : 0.0f, at + 1 < dim ? row[at + 1] : 0.0f,
                at + 2 < dim ? row[at + 2] : 0.0f, at + 3 < dim ? row[at + 3] : 0.0f);
}
inline float element(uint codes, uint i, float scale) {
  return scale * float(int(codes >> (8 * i) & 0xffu) - 128);
}
// Four elements of 8 bits; `block` is a page's of one head.
inline float4 coded_quad(device const uint* block, uint page_tokens, uint offset, uint dim, uint at,
                         uint group) {
  if (at >= dim) return float4(0.0f);
  const uint words = dim / 4, groups = (dim + group - 1) / group;
  const uint codes = block[offset * words + at / 4];
  const float scale = as_type<float>(block[page_tokens * words + offset * groups + at / group]);
  return float4(element(codes, 0, scale), element(codes, 1, scale), element(codes, 2, scale),
                element(codes, 3, scale));
}
// Four elements of what a token has in a page, of keys or of values.
template <Kind KIND>
inline float4 page_quad(thread const Operands& o, device const uint* all, uint dim, uint group,
                        ulong block, uint offset, uint at) {
  if (KIND == KIND_INT8) {
    const ulong words = dim / 4 + (dim + group - 1) / group;
    return coded_quad(all + block * words * o.page_tokens, o.page_tokens, offset, dim, at, group);
  }
  return quad((device const float*)all + (block * o.page_tokens + offset) * dim, dim, at);
}

// The lines of a threadgroup and what they have summed up; pointers lead to its memory.
template <Kind KIND, uint LINES, uint CHUNKS> struct Block {
  static constant constexpr uint THREADS = threads_of(LINES, CHUNKS);
  static constant constexpr uint SIMDS = THREADS / SIMD;
  static constant constexpr uint QUADS = CHUNK / 4;
  // Lines whose weights with one token a thread has.
  static constant constexpr uint OWN = LINES / SIMDS;
  // Simdgroups that share eight lines, and how many matrices of scores and of a chunk's sums each
  // of them has then.
  static constant constexpr uint SHARE = SIMDS * 8 / LINES;
  static constant constexpr uint SCORES = TILE / 8 / SHARE;
  static constant constexpr uint SUMS = CHUNK / 8 / SHARE;

  Operands o;
  Item item;
  threadgroup float* queries;
  threadgroup float* tile;
  threadgroup float* weights;
  threadgroup float* diagonals;
  threadgroup float2* factors;
  threadgroup uint* slots;
  uint index, key_chunks;
  // Tokens that the thread's lines see.
  uint begin[OWN], end[OWN];
  Softmax part[OWN];
  Softmax whole[OWN];
  simdgroup_float8x8 sums[CHUNKS * SUMS];

  uint lane() const { return index % SIMD; }
  uint own_line(uint i) const { return index / SIMD * OWN + i; }
  // The first of the eight lines that the simdgroup multiplies, and its share of their matrices.
  uint first_line() const { return index / SIMD / SHARE * 8; }
  uint share() const { return index / SIMD % SHARE; }
  uint rope_width() const { return (o.key_dim + CHUNK - 1) / CHUNK * CHUNK; }

  float4 query(ulong row, uint at) const {
    if (KIND != KIND_LATENT) return quad(o.q + row * o.key_dim, o.key_dim, at);
    if (at < rope_width()) return quad(o.q_rope + row * o.key_dim, o.key_dim, at);
    return quad(o.q + row * o.value_dim, o.value_dim, at - rope_width());
  }
  float4 value(ulong block, uint offset, uint at) const {
    return page_quad<KIND>(o, o.values, o.value_dim, VALUE_GROUP, block, offset, at);
  }
  float4 key(ulong block, uint offset, uint at) const {
    if (KIND == KIND_LATENT && at >= rope_width()) return value(block, offset, at - rope_width());
    return page_quad<KIND>(o, o.keys, o.key_dim, KEY_GROUP, block, offset, at);
  }

  // Reads the queries of the block and what its lines see.
  void load() {
    const uint width = key_chunks * CHUNK;
    for (uint i = index; i < LINES * width / 4; i += THREADS) {
      const uint line = i / (width / 4), at = i % (width / 4) * 4;
      *(threadgroup float4*)(queries + line * width + at) =
          line < item.lines ? query(head_row(o, item, line), at) : float4(0.0f);
    }
    for (uint i = 0; i < OWN; ++i) {
      const bool lives = own_line(i) < item.lines;
      const uint position = position_of(o, item, own_line(i));
      begin[i] = lives ? first_seen(o, position) : 0;
      end[i] = lives ? position + 1 : 0;
      whole[i] = empty_softmax();
    }
    for (uint i = index; i < LINES * 8; i += THREADS) diagonals[i] = 0.0f;
  }

  // Finds the tokens of the tile from `first` on that some line sees.
  void locate(uint first, uint low, uint high) {
    if (index >= TILE) return;
    const uint token = first + index;
    const bool seen = token >= low && token < high;
    slots[index] = seen ? o.pages[item.first_page + token / o.page_tokens] : NOWHERE;
    slots[TILE + index] = token % o.page_tokens;
    slots[2 * TILE + index] = 0;
  }

  // A chunk of the tile's keys or values to threadgroup memory. A value that is no number must not
  // reach lines which do not see it, not even times zero: it becomes a zero, and its token is
  // remembered as broken.
  void stage(uint chunk, bool values) {
    for (uint i = 0; i < TILE * QUADS / THREADS; ++i) {
      const uint token = i * (THREADS / QUADS) + index / QUADS;
      const uint at = chunk * CHUNK + index % QUADS * 4;
      const uint page = slots[token], offset = slots[TILE + token];
      float4 held = float4(0.0f);
      if (page != NOWHERE) {
        const ulong block = ulong(page) * o.kv_heads + item.head;
        held = values ? value(block, offset, at) : key(block, offset, at);
      }
      const bool whole =
          is_number(held.x) && is_number(held.y) && is_number(held.z) && is_number(held.w);
      if (values && !whole) {
        slots[2 * TILE + token] = 1;
        held = float4(0.0f);
      }
      *(threadgroup float4*)(tile + token * STRIDE + index % QUADS * 4) = held;
    }
  }

  // Scores of the tile's tokens, in `weights`.
  void score() {
    const uint width = key_chunks * CHUNK;
    simdgroup_float8x8 scores[SCORES];
    for (uint n = 0; n < SCORES; ++n) scores[n] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    for (uint chunk = 0; chunk < key_chunks; ++chunk) {
      stage(chunk, false);
      threadgroup_barrier(mem_flags::mem_threadgroup);
      threadgroup const float* lines = queries + first_line() * width + chunk * CHUNK;
      for (uint d = 0; d < CHUNK; d += 8) {
        simdgroup_float8x8 query, key;
        simdgroup_load(query, lines + d, width);
        for (uint n = 0; n < SCORES; ++n) {
          const uint token = (share() * SCORES + n) * 8;
          simdgroup_load(key, tile + token * STRIDE + d, STRIDE, 0, true);
          simdgroup_multiply_accumulate(scores[n], query, key, scores[n]);
        }
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    threadgroup float* to = weights + first_line() * WEIGHT_STRIDE + share() * SCORES * 8;
    for (uint n = 0; n < SCORES; ++n) simdgroup_store(scores[n], to + n * 8, WEIGHT_STRIDE);
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }

  // Scores become weights; the sums so far count what is on the diagonals then.
  void soften(uint first) {
    const uint token = first + lane();
    for (uint i = 0; i < OWN; ++i) {
      const uint line = own_line(i);
      threadgroup float* at = weights + line * WEIGHT_STRIDE + lane();
      const bool seen = token >= begin[i] && token < end[i];
      const float scaled = *at * o.scale;
      const bool usual = seen && is_number(scaled);
      const float top = max(part[i].top, simd_max(usual ? scaled : LOWEST));
      const float weight = usual ? precise::exp(scaled - top) : 0.0f;
      const float keep = counts(part[i].top, top);
      const float sum = part[i].sum * keep + simd_sum(weight);
      // A line with a score that is no number is none throughout, and adds nothing to matrices.
      part[i].sum = simd_any(seen && !usual) ? no_number() : sum;
      part[i].top = top;
      *at = weight;
      if (lane() == 0) diagonals[line * 8 + line % 8] = keep;
    }
  }

  // Adds the tile's weighted values.
  void add_values(uint first) {
    for (uint chunk = 0; chunk < CHUNKS; ++chunk) {
      stage(chunk, true);
      threadgroup_barrier(mem_flags::mem_threadgroup);
      if (chunk == CHUNKS - 1) forget_broken(first);
      simdgroup_float8x8 keep, weight, value;
      simdgroup_load(keep, diagonals + first_line() * 8, 8);
      for (uint n = 0; n < SUMS; ++n)
        simdgroup_multiply(sums[chunk * SUMS + n], keep, sums[chunk * SUMS + n]);
      for (uint t = 0; t < TILE; t += 8) {
        simdgroup_load(weight, weights + first_line() * WEIGHT_STRIDE + t, WEIGHT_STRIDE);
        for (uint n = 0; n < SUMS; ++n) {
          simdgroup_load(value, tile + t * STRIDE + (share() * SUMS + n) * 8, STRIDE);
          simdgroup_multiply_accumulate(sums[chunk * SUMS + n], weight, value,
                                        sums[chunk * SUMS + n]);
        }
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
  }

  // A line that sees a broken token is no number throughout.
  void forget_broken(uint first) {
    const uint token = first + lane();
    const bool broken = slots[2 * TILE + lane()] != 0;
    for (uint i = 0; i < OWN; ++i) {
      const bool sees = broken && token >= begin[i] && token < end[i];
      const bool any = simd_any(sees);
      if (any) part[i].sum = no_number();
    }
  }

  // One part of all lines: tokens of one split, of which the block sees `low..high`.
  void run_part(uint low, uint high) {
    for (uint i = 0; i < OWN; ++i) part[i] = empty_softmax();
    for (uint n = 0; n < CHUNKS * SUMS; ++n)
      sums[n] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    for (uint first = low / TILE * TILE; first < high; first += TILE) {
      locate(first, low, high);
      threadgroup_barrier(mem_flags::mem_threadgroup);
      score();
      soften(first);
      add_values(first);
    }
  }

  // The sums of a chunk to the memory of tiles, `[lines, STRIDE]`.
  void show_sums(uint chunk) {
    threadgroup float* to = tile + first_line() * STRIDE + share() * SUMS * 8;
    for (uint n = 0; n < SUMS; ++n)
      simdgroup_store(sums[chunk * SUMS + n], to + n * 8, STRIDE);
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }

  // Leaves a part in scratch.
  void leave_part(uint split) {
    for (uint chunk = 0; chunk < CHUNKS; ++chunk) {
      show_sums(chunk);
      for (uint i = index; i < LINES * CHUNK; i += THREADS) {
        const uint line = i / CHUNK, at = chunk * CHUNK + i % CHUNK;
        if (line >= item.lines || at >= o.value_dim) continue;
        o.scratch[part_of(o, item, LINES, line, split) * o.value_dim + at] =
            tile[line * STRIDE + i % CHUNK];
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    device float* ends = part_ends(o, item, LINES);
    for (uint i = 0; i < OWN; ++i) {
      if (lane() != 0 || own_line(i) >= item.lines) continue;
      const ulong at = part_of(o, item, LINES, own_line(i), split) * 2;
      ends[at] = part[i].top;
      ends[at + 1] = part[i].sum;
    }
  }

  // Adds a part to the sums in `out`, the last one divides them.
  void add_part(uint from, bool last) {
    for (uint i = 0; i < OWN; ++i) {
      // A line that sees nothing of the split keeps what it has.
      const bool sees = begin[i] < from + o.split_tokens && end[i] > from;
      float2 factor = float2(begin[i] < from ? 1.0f : 0.0f, 0.0f);
      if (sees) factor = merge(whole[i], part[i]);
      if (lane() != 0) continue;
      factors[own_line(i)] = factor;
      weights[own_line(i)] = whole[i].sum;
    }
    for (uint chunk = 0; chunk < CHUNKS; ++chunk) {
      show_sums(chunk);
      for (uint i = index; i < LINES * CHUNK; i += THREADS) {
        const uint line = i / CHUNK, at = chunk * CHUNK + i % CHUNK;
        if (line >= item.lines || at >= o.value_dim) continue;
        device float* out = o.out + head_row(o, item, line) * o.value_dim + at;
        const float2 factor = factors[line];
        const float before = factor.x == 0.0f ? 0.0f : *out;
        const float both = mixed(before, factor.x, tile[line * STRIDE + i % CHUNK], factor.y);
        *out = last ? precise::divide(both, weights[line]) : both;
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
  }

  // The parts of one item and key head: all of them where the grid has one layer, else the layer's.
  void run() {
    const uint low = first_seen(o, position_of(o, item, 0));
    const uint high = position_of(o, item, item.lines - 1) + 1;
    const bool alone = item.layers == 1;
    const uint first = first_split(o, item) + item.layer;
    const uint last = alone ? (high - 1) / o.split_tokens : first;
    if (first * o.split_tokens >= high) return;
    load();
    for (uint split = first; split <= last; ++split) {
      const uint from = split * o.split_tokens;
      run_part(max(low, from), min(high, from + o.split_tokens));
      if (alone)
        add_part(from, split == last);
      else
        leave_part(item.layer);
    }
  }
};

// Makes one of the parts of each line of an item, which are in scratch; a threadgroup for each line.
inline void merge_parts(thread const Operands& o, thread const Item& item, uint lines, uint index,
                        uint threads) {
  const uint line = item.layer;
  if (line >= item.lines) return;
  const uint position = position_of(o, item, line), before = first_split(o, item);
  const uint first = first_seen(o, position) / o.split_tokens, last = position / o.split_tokens;
  device const float* ends = part_ends(o, item, lines);
  for (uint at = index; at < o.value_dim; at += threads) {
    Softmax whole = empty_softmax();
    float sum = 0.0f;
    for (uint split = first; split <= last; ++split) {
      const ulong part = part_of(o, item, lines, line, split - before);
      Softmax next;
      next.top = ends[2 * part];
      next.sum = ends[2 * part + 1];
      const float2 factor = merge(whole, next);
      sum = mixed(sum, factor.x, o.scratch[part * o.value_dim + at], factor.y);
    }
    o.out[head_row(o, item, line) * o.value_dim + at] = precise::divide(sum, whole.sum);
  }
}

// Parameters of the kernels of `paged_attention`, and the operands that they make up.
#define PAGED_PARAMETERS                                                                         \
  device float *out [[buffer(0)]], device const float *q [[buffer(1)]],                          \
      device const uint *keys [[buffer(2)]], device const uint *values [[buffer(3)]],            \
      device const uint *items [[buffer(4)]], device const uint *pages [[buffer(5)]],            \
      device float *scratch [[buffer(6)]], constant uint &heads [[buffer(7)]],                   \
      constant uint &kv_heads [[buffer(8)]], constant uint &page_tokens [[buffer(9)]],           \
      constant uint &head_dim [[buffer(10)]], constant float &scale [[buffer(11)]],              \
      constant uint &window [[buffer(12)]], constant uint &split_tokens [[buffer(13)]],          \
      constant uint &splits [[buffer(14)]], uint3 group [[threadgroup_position_in_grid]],        \
      uint3 groups [[threadgroups_per_grid]], uint index [[thread_index_in_threadgroup]],        \
      uint threads [[threads_per_threadgroup]]
#define PAGED_OPERANDS                                                                           \
  const Operands o = {out,   q,        q,           keys,     values,   pages, scratch, heads,   \
                      kv_heads, page_tokens, head_dim, head_dim, scale, window, split_tokens,    \
                      splits};
// The same of `latent_attention`.
#define LATENT_PARAMETERS                                                                        \
  device float *out [[buffer(0)]], device const float *q [[buffer(1)]],                          \
      device const float *q_rope [[buffer(2)]], device const uint *keys [[buffer(3)]],           \
      device const uint *values [[buffer(4)]], device const uint *items [[buffer(5)]],           \
      device const uint *pages [[buffer(6)]], device float *scratch [[buffer(7)]],               \
      constant uint &heads [[buffer(8)]], constant uint &page_tokens [[buffer(9)]],              \
      constant uint &rope_dim [[buffer(10)]], constant uint &latent_dim [[buffer(11)]],          \
      constant float &scale [[buffer(12)]], constant uint &split_tokens [[buffer(13)]],          \
      constant uint &splits [[buffer(14)]], uint3 group [[threadgroup_position_in_grid]],        \
      uint3 groups [[threadgroups_per_grid]], uint index [[thread_index_in_threadgroup]],        \
      uint threads [[threads_per_threadgroup]]
#define LATENT_OPERANDS                                                                          \
  const Operands o = {out, q, q_rope,      keys,     values,     pages, scratch,     heads,      \
                      1,   page_tokens, rope_dim, latent_dim, scale, 0xffffffffu, split_tokens,  \
                      splits};

#define ATTENTION(NAME, PARAMETERS, OPERANDS, KIND, LINES, CHUNKS)                               \
  kernel void NAME(PARAMETERS, threadgroup float* queries [[threadgroup(0)]]) {                  \
    threadgroup float4 tile[TILE * STRIDE / 4];                                                  \
    threadgroup float4 weights[LINES * WEIGHT_STRIDE / 4];                                       \
    threadgroup float4 diagonals[LINES * 2];                                                     \
    threadgroup float2 factors[LINES];                                                           \
    threadgroup uint slots[3 * TILE];                                                            \
    OPERANDS                                                                                     \
    Block<KIND, LINES, CHUNKS> block;                                                            \
    block.o = o;                                                                                 \
    block.item = item_of(items, group, groups);                                                  \
    block.queries = queries;                                                                     \
    block.tile = (threadgroup float*)tile;                                                       \
    block.weights = (threadgroup float*)weights;                                                 \
    block.diagonals = (threadgroup float*)diagonals;                                             \
    block.factors = factors;                                                                     \
    block.slots = slots;                                                                         \
    block.index = index;                                                                         \
    block.key_chunks = (o.key_dim + CHUNK - 1) / CHUNK;                                          \
    if (KIND == KIND_LATENT) block.key_chunks += (o.value_dim + CHUNK - 1) / CHUNK;              \
    block.run();                                                                                 \
  }
#define MERGE(NAME, PARAMETERS, OPERANDS, LINES)                                                 \
  kernel void NAME(PARAMETERS) {                                                                 \
    OPERANDS                                                                                     \
    merge_parts(o, item_of(items, group, groups), LINES, index, threads);                        \
  }
#define PAGED(NAME, KIND, LINES, CHUNKS)                                                         \
  ATTENTION(NAME, PAGED_PARAMETERS, PAGED_OPERANDS, KIND, LINES, CHUNKS)
#define LATENT(NAME, LINES, CHUNKS)                                                              \
  ATTENTION(NAME, LATENT_PARAMETERS, LATENT_OPERANDS, KIND_LATENT, LINES, CHUNKS)

PAGED(paged_attention_f32_8_64, KIND_F32, 8, 1)
PAGED(paged_attention_f32_8_128, KIND_F32, 8, 2)
PAGED(paged_attention_f32_8_256, KIND_F32, 8, 4)
PAGED(paged_attention_f32_32_64, KIND_F32, 32, 1)
PAGED(paged_attention_f32_32_128, KIND_F32, 32, 2)
PAGED(paged_attention_int8_8_64, KIND_INT8, 8, 1)
PAGED(paged_attention_int8_8_128, KIND_INT8, 8, 2)
PAGED(paged_attention_int8_8_256, KIND_INT8, 8, 4)
PAGED(paged_attention_int8_32_64, KIND_INT8, 32, 1)
PAGED(paged_attention_int8_32_128, KIND_INT8, 32, 2)
MERGE(paged_attention_merge_8, PAGED_PARAMETERS, PAGED_OPERANDS, 8)
MERGE(paged_attention_merge_32, PAGED_PARAMETERS, PAGED_OPERANDS, 32)
LATENT(latent_attention_8_64, 8, 1)
LATENT(latent_attention_8_512, 8, 8)
LATENT(latent_attention_32_64, 32, 1)
MERGE(latent_attention_merge_8, LATENT_PARAMETERS, LATENT_OPERANDS, 8)
MERGE(latent_attention_merge_32, LATENT_PARAMETERS, LATENT_OPERANDS, 32)
