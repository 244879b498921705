// Attention in f32, tile by tile, for `attention.cu`: which lines a block has, how a tile of keys or
// values gets to shared memory, the online softmax, and how the parts of a line become one.
#pragma once
#include "../gpu/cuda.cuh"

namespace attention {

// Tokens of a tile: one for each lane.
constexpr unsigned TILE = WARP;
// Elements of a head that are in shared memory at a time, of all tokens of a tile.
constexpr unsigned CHUNK = 64;
// From row to row of a tile: lanes that read 16 bytes of different rows meet different banks.
constexpr unsigned STRIDE = CHUNK + 4;
constexpr unsigned WEIGHT_STRIDE = TILE + 4;
// No page, for tokens that nobody sees.
constexpr unsigned NOWHERE = 0xffffffffu;

// How pages hold keys and values. Of latents, keys are the rope keys with the latents after them.
enum class Kind { F32, Latent };

// Threads of a block, by its lines (query heads of rows) and the chunks of its values.
constexpr unsigned threads_of(unsigned lines, unsigned chunks) {
  return (lines == 8 ? 64 : 128) * (chunks > 2 ? 2 : 1);
}

// A run of lines of one segment, as the host lists them.
struct Item {
  unsigned first_row, first_position, first_page, first_line, lines;
};

struct Operands {
  float* out;
  const float *q, *q_rope;
  const void *keys, *values;
  const Item* items;
  const unsigned* pages;
  float* scratch;
  unsigned heads, kv_heads, page_tokens, key_dim, value_dim;
  float scale;
  unsigned window, split_tokens, splits;

  __device__ unsigned group() const { return heads / kv_heads; }
  // The first token that one at `position` sees.
  __device__ unsigned first_seen(unsigned position) const {
    return position >= window ? position - window + 1 : 0;
  }
  // The row of a line among all heads of all rows of the step.
  __device__ size_t head_row(const Item& item, unsigned line) const {
    const unsigned index = item.first_line + line;
    const size_t row = item.first_row + index / group();
    return row * heads + blockIdx.y * group() + index % group();
  }
  __device__ unsigned position(const Item& item, unsigned line) const {
    return item.first_position + (item.first_line + line) / group();
  }
  // The split in which the first token lies that the lines of an item see.
  __device__ unsigned first_split(const Item& item) const {
    return first_seen(position(item, 0)) / split_tokens;
  }
  // Where the parts of a line lie in scratch: `splits` times `value_dim` sums each, and after those
  // of all lines two numbers for each part. Splits count from the item's first one.
  template <unsigned LINES> __device__ size_t part(unsigned line, unsigned split) const {
    const size_t block = static_cast<size_t>(blockIdx.x) * kv_heads + blockIdx.y;
    return (block * LINES + line) * splits + split;
  }
  template <unsigned LINES> __device__ float* part_ends() const {
    return scratch + static_cast<size_t>(gridDim.x) * kv_heads * LINES * splits * value_dim;
  }
};

// What a maximum counts against another one that is at least as large.
__device__ __forceinline__ float counts(float maximum, float largest) {
  return maximum == -INFINITY ? 0.0f : expf(maximum - largest);
}
// A sum with another one added, always rounded in this order.
__device__ __forceinline__ float mixed(float sum, float keep, float other, float add) {
  return keep == 0.0f ? other * add : fmaf(sum, keep, other * add);
}

// Maximum and sum of the weights of a line, over what it has seen so far.
struct Softmax {
  float top = -INFINITY, sum = 0.0f;
};
// Adds a part to the ones before it; returns what the sums of values count.
__device__ __forceinline__ float2 merge(Softmax& whole, const Softmax& part) {
  const float top = fmaxf(whole.top, part.top);
  const float keep = counts(whole.top, top), add = counts(part.top, top);
  // What is no number stays so, whatever it counts.
  whole.sum = fmaf(whole.sum, keep, part.sum * add);
  whole.top = top;
  return make_float2(keep, add);
}

// Four elements of a row of `dim`, of which those outside are zeros.
__device__ __forceinline__ float4 quad(const float* row, unsigned dim, unsigned at) {
  if (dim % 4 == 0)
    return at < dim ? *reinterpret_cast<const float4*>(row + at) : make_float4(0, 0, 0, 0);
  return make_float4(at < dim ? row[at] : 0.0f, at + 1 < dim ? row[at + 1] : 0.0f,
                     at + 2 < dim ? row[at + 2] : 0.0f, at + 3 < dim ? row[at + 3] : 0.0f);
}

// Where the tokens of a tile lie, and which have values that are no numbers.
struct Slots {
  unsigned page[TILE], offset[TILE], broken[TILE];
};

template <Kind KIND> struct Source {
  const Operands& o;

  // Chunks of a key, all of whose parts begin a chunk.
  static __device__ unsigned key_chunks(const Operands& o) {
    const unsigned own = (o.key_dim + CHUNK - 1) / CHUNK;
    return KIND == Kind::Latent ? own + (o.value_dim + CHUNK - 1) / CHUNK : own;
  }
  __device__ float4 query(size_t head_row, unsigned at) const {
    if constexpr (KIND == Kind::Latent) {
      const unsigned rope = (o.key_dim + CHUNK - 1) / CHUNK * CHUNK;
      return at < rope ? quad(o.q_rope + head_row * o.key_dim, o.key_dim, at)
                       : quad(o.q + head_row * o.value_dim, o.value_dim, at - rope);
    }
    return quad(o.q + head_row * o.key_dim, o.key_dim, at);
  }
  __device__ float4 key(unsigned page, unsigned offset, unsigned at) const {
    const size_t block = static_cast<size_t>(page) * o.kv_heads + blockIdx.y;
    if constexpr (KIND == Kind::Latent) {
      const unsigned rope = (o.key_dim + CHUNK - 1) / CHUNK * CHUNK;
      if (at >= rope) return value(page, offset, at - rope);
    }
    const size_t row = block * o.page_tokens + offset;
    return quad(static_cast<const float*>(o.keys) + row * o.key_dim, o.key_dim, at);
  }
  __device__ float4 value(unsigned page, unsigned offset, unsigned at) const {
    const size_t block = static_cast<size_t>(page) * o.kv_heads + blockIdx.y;
    const size_t row = block * o.page_tokens + offset;
    return quad(static_cast<const float*>(o.values) + row * o.value_dim, o.value_dim, at);
  }
};

// A value that is no number must not reach lines which do not see it, not even times zero: it
// becomes a zero, and its token is remembered as broken.
__device__ __forceinline__ float4 unbroken(float4 value, unsigned& broken) {
  const bool whole =
      isfinite(value.x) && isfinite(value.y) && isfinite(value.z) && isfinite(value.w);
  if (whole) return value;
  broken = 1;
  return make_float4(0, 0, 0, 0);
}

template <Kind KIND, unsigned LINES, unsigned CHUNKS> struct Block {
  static constexpr unsigned THREADS = threads_of(LINES, CHUNKS), WARPS = THREADS / WARP;
  // Lines whose scores with one token a thread has.
  static constexpr unsigned OWN = LINES / WARPS;
  // Lines of whose sums a thread has four elements of each chunk.
  static constexpr unsigned QUADS = CHUNK / 4, SUMS = LINES * QUADS / THREADS;

  const Operands& o;
  const Item item;
  float *queries, *tile, *weights;
  float2* factors;
  Slots& slots;
  unsigned key_chunks;
  // Tokens that the thread's lines see.
  unsigned begin[OWN], end[OWN];
  Softmax part[OWN];
  float sums[CHUNKS][SUMS][4];

  __device__ unsigned own_line(unsigned i) const { return threadIdx.x / WARP * OWN + i; }
  __device__ unsigned sum_line(unsigned i) const { return threadIdx.x / QUADS * SUMS + i; }

  // Reads the queries of the block and what its lines see.
  __device__ __forceinline__ void load() {
    const unsigned width = key_chunks * CHUNK;
    const Source<KIND> source{o};
    for (unsigned i = threadIdx.x; i < LINES * width / 4; i += THREADS) {
      const unsigned line = i / (width / 4), at = i % (width / 4) * 4;
      *reinterpret_cast<float4*>(queries + line * width + at) =
          line < item.lines ? source.query(o.head_row(item, line), at) : make_float4(0, 0, 0, 0);
    }
#pragma unroll
    for (unsigned i = 0; i < OWN; ++i) {
      const bool lives = own_line(i) < item.lines;
      const unsigned position = o.position(item, own_line(i));
      begin[i] = lives ? o.first_seen(position) : 0;
      end[i] = lives ? position + 1 : 0;
    }
  }

  // A chunk of the tile's keys or values to shared memory.
  template <bool VALUES> __device__ __forceinline__ void stage(unsigned chunk) {
    const Source<KIND> source{o};
    float4 held[TILE * QUADS / THREADS];
#pragma unroll
    for (unsigned i = 0; i < TILE * QUADS / THREADS; ++i) {
      const unsigned token = i * (THREADS / QUADS) + threadIdx.x / QUADS;
      const unsigned at = chunk * CHUNK + threadIdx.x % QUADS * 4;
      const unsigned page = slots.page[token], offset = slots.offset[token];
      held[i] = page == NOWHERE ? make_float4(0, 0, 0, 0)
                : VALUES        ? source.value(page, offset, at)
                                : source.key(page, offset, at);
    }
#pragma unroll
    for (unsigned i = 0; i < TILE * QUADS / THREADS; ++i) {
      const unsigned token = i * (THREADS / QUADS) + threadIdx.x / QUADS;
      if (VALUES) held[i] = unbroken(held[i], slots.broken[token]);
      *reinterpret_cast<float4*>(tile + token * STRIDE + threadIdx.x % QUADS * 4) = held[i];
    }
  }

  // Finds the tokens of the tile from `first` on that some line sees.
  __device__ __forceinline__ void locate(unsigned first, unsigned low, unsigned high) {
    if (threadIdx.x >= TILE) return;
    const unsigned token = first + threadIdx.x;
    const bool seen = token >= low && token < high;
    slots.page[threadIdx.x] =
        seen ? o.pages[item.first_page + token / o.page_tokens] : NOWHERE;
    slots.offset[threadIdx.x] = token % o.page_tokens;
    slots.broken[threadIdx.x] = 0;
  }

  // Scores of the lane's token and the warp's lines.
  __device__ __forceinline__ void scores(float (&score)[OWN]) {
    const unsigned width = key_chunks * CHUNK;
#pragma unroll
    for (unsigned i = 0; i < OWN; ++i) score[i] = 0.0f;
    for (unsigned chunk = 0; chunk < key_chunks; ++chunk) {
      stage<false>(chunk);
      __syncthreads();
      const float* key = tile + threadIdx.x % WARP * STRIDE;
#pragma unroll 2
      for (unsigned d = 0; d < CHUNK; d += 4) {
        const float4 k = *reinterpret_cast<const float4*>(key + d);
#pragma unroll
        for (unsigned i = 0; i < OWN; ++i) {
          const float4 q = *reinterpret_cast<const float4*>(
              queries + own_line(i) * width + chunk * CHUNK + d);
          score[i] += k.x * q.x;
          score[i] += k.y * q.y;
          score[i] += k.z * q.z;
          score[i] += k.w * q.w;
        }
      }
      __syncthreads();
    }
  }

  // Scores become weights, in shared memory, with what the sums so far count.
  __device__ __forceinline__ void soften(const float (&score)[OWN], unsigned first) {
    const unsigned token = first + threadIdx.x % WARP;
#pragma unroll
    for (unsigned i = 0; i < OWN; ++i) {
      const bool seen = token >= begin[i] && token < end[i];
      const float scaled = seen ? score[i] * o.scale : -INFINITY;
      const float top = fmaxf(part[i].top, warp_max(scaled));
      const float weight = seen ? expf(scaled - top) : 0.0f;
      const float keep = counts(part[i].top, top);
      part[i].sum = part[i].sum * keep + warp_sum(weight);
      part[i].top = top;
      weights[own_line(i) * WEIGHT_STRIDE + threadIdx.x % WARP] = weight;
      if (threadIdx.x % WARP == 0) factors[own_line(i)].x = keep;
    }
  }

  // Adds the tile's weighted values.
  __device__ __forceinline__ void add_values(unsigned first) {
#pragma unroll
    for (unsigned chunk = 0; chunk < CHUNKS; ++chunk) {
      stage<true>(chunk);
      __syncthreads();
      if (chunk == CHUNKS - 1) forget_broken(first);
#pragma unroll
      for (unsigned i = 0; i < SUMS; ++i) {
        const float keep = factors[sum_line(i)].x;
#pragma unroll
        for (unsigned e = 0; e < 4; ++e) sums[chunk][i][e] *= keep;
      }
      const float* value = tile + threadIdx.x % QUADS * 4;
#pragma unroll 2
      for (unsigned t = 0; t < TILE; t += 4) {
        float4 v[4];
#pragma unroll
        for (unsigned n = 0; n < 4; ++n)
          v[n] = *reinterpret_cast<const float4*>(value + (t + n) * STRIDE);
#pragma unroll
        for (unsigned i = 0; i < SUMS; ++i) {
          const float4 w =
              *reinterpret_cast<const float4*>(weights + sum_line(i) * WEIGHT_STRIDE + t);
          add(sums[chunk][i], w.x, v[0]);
          add(sums[chunk][i], w.y, v[1]);
          add(sums[chunk][i], w.z, v[2]);
          add(sums[chunk][i], w.w, v[3]);
        }
      }
      __syncthreads();
    }
  }
  static __device__ __forceinline__ void add(float (&sum)[4], float weight, const float4& value) {
    sum[0] += weight * value.x;
    sum[1] += weight * value.y;
    sum[2] += weight * value.z;
    sum[3] += weight * value.w;
  }

  // A line that sees a broken token is no number throughout.
  __device__ __forceinline__ void forget_broken(unsigned first) {
    const unsigned lane = threadIdx.x % WARP, token = first + lane;
    const bool broken = slots.broken[lane] != 0;
    if (!__any_sync(ALL_LANES, broken)) return;
#pragma unroll
    for (unsigned i = 0; i < OWN; ++i) {
      const bool sees = broken && token >= begin[i] && token < end[i];
      if (__any_sync(ALL_LANES, sees)) part[i].sum = NAN;
    }
  }

  // One part of all lines: tokens of one split, of which the block sees `low..high`.
  __device__ __forceinline__ void run_part(unsigned low, unsigned high) {
#pragma unroll
    for (unsigned i = 0; i < OWN; ++i) part[i] = Softmax();
#pragma unroll
    for (unsigned chunk = 0; chunk < CHUNKS; ++chunk)
#pragma unroll
      for (unsigned i = 0; i < SUMS; ++i)
#pragma unroll
        for (unsigned e = 0; e < 4; ++e) sums[chunk][i][e] = 0.0f;
    for (unsigned first = low / TILE * TILE; first < high; first += TILE) {
      locate(first, low, high);
      __syncthreads();
      float score[OWN];
      scores(score);
      soften(score, first);
      add_values(first);
    }
  }

  // Calls `body(line, element, sum)` for the thread's sums of lines and elements that exist.
  template <class Body> __device__ __forceinline__ void each_sum(Body body) {
#pragma unroll
    for (unsigned i = 0; i < SUMS; ++i) {
      const unsigned line = sum_line(i);
      if (line >= item.lines) continue;
#pragma unroll
      for (unsigned chunk = 0; chunk < CHUNKS; ++chunk)
#pragma unroll
        for (unsigned e = 0; e < 4; ++e) {
          const unsigned at = chunk * CHUNK + threadIdx.x % QUADS * 4 + e;
          if (at < o.value_dim) body(line, at, sums[chunk][i][e]);
        }
    }
  }

  // Leaves a part in scratch.
  __device__ __forceinline__ void leave_part(unsigned split) {
    each_sum([&](unsigned line, unsigned at, float sum) {
      o.scratch[o.template part<LINES>(line, split) * o.value_dim + at] = sum;
    });
    float* ends = o.template part_ends<LINES>();
#pragma unroll
    for (unsigned i = 0; i < OWN; ++i) {
      if (threadIdx.x % WARP != 0 || own_line(i) >= item.lines) continue;
      const size_t at = o.template part<LINES>(own_line(i), split) * 2;
      ends[at] = part[i].top;
      ends[at + 1] = part[i].sum;
    }
  }

  // Adds a part to the sums in `out`, the last one divides them.
  __device__ __forceinline__ void add_part(Softmax (&whole)[OWN], unsigned from, bool last) {
#pragma unroll
    for (unsigned i = 0; i < OWN; ++i) {
      // A line that sees nothing of the split keeps what it has.
      const bool sees = begin[i] < from + o.split_tokens && end[i] > from;
      const bool begun = begin[i] < from;
      const float2 factor =
          sees ? merge(whole[i], part[i]) : make_float2(begun ? 1.0f : 0.0f, 0.0f);
      if (threadIdx.x % WARP != 0) continue;
      factors[own_line(i)] = factor;
      weights[own_line(i)] = whole[i].sum;
    }
    __syncthreads();
    each_sum([&](unsigned line, unsigned at, float sum) {
      float* out = o.out + o.head_row(item, line) * o.value_dim + at;
      const float2 factor = factors[line];
      const float before = factor.x == 0.0f ? 0.0f : *out;
      const float both = mixed(before, factor.x, sum, factor.y);
      *out = last ? both / weights[line] : both;
    });
  }
};

// The parts of one item and key head: all of them where the grid has one layer, else the layer's.
template <Kind KIND, unsigned LINES, unsigned CHUNKS>
__device__ __forceinline__ void run(const Operands& o) {
  using Lines = Block<KIND, LINES, CHUNKS>;
  __shared__ __align__(16) float tile[TILE * STRIDE];
  __shared__ __align__(16) float weights[LINES * WEIGHT_STRIDE];
  __shared__ __align__(16) float2 factors[LINES];
  __shared__ Slots slots;
  const Item item = o.items[blockIdx.x];
  Lines block{o, item, dynamic_shared<float>(), tile, weights, factors, slots,
              Source<KIND>::key_chunks(o)};
  const unsigned low = o.first_seen(o.position(item, 0));
  const unsigned high = o.position(item, item.lines - 1) + 1;
  const bool alone = gridDim.z == 1;
  const unsigned first = o.first_split(item) + blockIdx.z;
  const unsigned end = alone ? (high - 1) / o.split_tokens + 1 : first + 1;
  if (first * o.split_tokens >= high) return;
  block.load();
  Softmax whole[Lines::OWN];
  for (unsigned split = first; split < end; ++split) {
    const unsigned from = split * o.split_tokens;
    block.run_part(max(low, from), min(high, from + o.split_tokens));
    if (alone)
      block.add_part(whole, from, split + 1 == end);
    else
      block.leave_part(blockIdx.z);
  }
}

// Makes one of the parts of each line of an item, which are in scratch; a block for each line.
template <unsigned LINES> __device__ __forceinline__ void merge_parts(const Operands& o) {
  const Item item = o.items[blockIdx.x];
  const unsigned line = blockIdx.z;
  if (line >= item.lines) return;
  const unsigned position = o.position(item, line);
  const unsigned first = o.first_seen(position) / o.split_tokens;
  const unsigned last = position / o.split_tokens;
  const unsigned before = o.first_split(item);
  const float* ends = o.part_ends<LINES>();
  for (unsigned at = threadIdx.x; at < o.value_dim; at += blockDim.x) {
    Softmax whole;
    float sum = 0.0f;
#pragma unroll 8
    for (unsigned split = first; split <= last; ++split) {
      const size_t part = o.part<LINES>(line, split - before);
      Softmax next;
      next.top = ends[2 * part];
      next.sum = ends[2 * part + 1];
      const float2 factor = merge(whole, next);
      sum = mixed(sum, factor.x, o.scratch[part * o.value_dim + at], factor.y);
    }
    o.out[o.head_row(item, line) * o.value_dim + at] = sum / whole.sum;
  }
}

}  // namespace attention

// A kernel of `paged_attention`: what it is called, what it does, on how many threads.
#define PAGED_ATTENTION(NAME, BODY, THREADS)                                                       \
  extern "C" __global__ void __launch_bounds__(THREADS, 1)                                            \
      NAME(float* out, const float* q, const void* keys, const void* values,                       \
           const unsigned* items, const unsigned* pages, float* scratch, unsigned heads,           \
           unsigned kv_heads, unsigned page_tokens, unsigned head_dim, float scale,                \
           unsigned window, unsigned split_tokens, unsigned splits) {                              \
    using namespace attention;                                                                     \
    const Item* runs = reinterpret_cast<const Item*>(items);                                       \
    BODY({out,      q,           nullptr,  keys,     values, runs,   pages,        scratch, heads, \
          kv_heads, page_tokens, head_dim, head_dim, scale,  window, split_tokens, splits});       \
  }
