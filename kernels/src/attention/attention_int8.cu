// `paged_attention` over pages of 8 bits, on tensor cores.
//
// A warp has 16 lines (query heads of rows that share a key head) and goes over the tokens that they
// see in tiles of 32; a block is one warp where lines are few (decode), else four warps that share the
// tiles. Codes go to shared memory as numbers of 16 bits, which hold them exactly, and products with
// them are scaled after (keys, by group) or before (values: the weights are). Only queries, over
// their largest element, are rounded to f16, and scaled weights to bf16, which has their range; sums
// and the softmax are f32. Splits and their parts are those of
// attention.cu, with the same promise: a warp computes a line alike, whatever else is in the step.
//
// A token of a key head moves about 1.1 * 2 * head_dim bytes for 64 * head_dim operations of the
// tensor cores: a single warp is bound by memory, floor bytes / bandwidth, with about ten blocks of
// 8 KiB in flight on a multiprocessor at 128 elements; four warps come near the rate of mma.sync,
// for which a tile's conversion is amortized over 64 lines.
#include "tiles.cuh"

namespace attention {

constexpr unsigned WARP_LINES = 16;
// Elements of a key, and of a value, that share a scale.
constexpr unsigned KEY_GROUP = 32, VALUE_GROUP = 64;
// Past the end of a row of bf16 in shared memory: eight rows that are read together meet all banks.
constexpr unsigned PAD = 8;
// Queries whose elements are all smaller count as zeros: the inverse is a number.
constexpr float SMALLEST = 1e-30f;

__device__ __forceinline__ unsigned f16_pair(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const unsigned*>(&pair);
}
__device__ __forceinline__ unsigned bf16_pair(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const unsigned*>(&pair);
}
// The lower two of four codes.
template <bool VALUES> __device__ __forceinline__ unsigned code_pair(unsigned codes) {
  const float low = static_cast<float>(codes & 0xff) - 128.0f;
  const float high = static_cast<float>(codes >> 8 & 0xff) - 128.0f;
  if (!VALUES) return f16_pair(low, high);
  // Whole numbers of so few bits end within the upper half of f32, which is bf16.
  return __float_as_uint(low) >> 16 | (__float_as_uint(high) & 0xffff0000u);
}

// What a block has in shared memory besides queries, keys and values.
template <unsigned LINES, unsigned DIM> struct __align__(16) Scales {
  float keys[DIM / KEY_GROUP][TILE];
  float values[DIM / VALUE_GROUP][TILE];
  // What scores are multiplied by.
  float lines[LINES];
};

template <unsigned WARPS, unsigned DIM> struct CodedBlock {
  static constexpr unsigned LINES = WARPS * WARP_LINES, THREADS = WARPS * WARP;
  static constexpr unsigned ROW = DIM + PAD;
  using BlockScales = Scales<LINES, DIM>;

  const Operands& o;
  const Item item;
  // f16, f16 and bf16.
  unsigned short *queries, *keys, *values;
  BlockScales& scales;
  Slots& slots;
  // Of the thread's two lines, eight apart: the tokens they see, and what they have summed up.
  unsigned begin[2], end[2];
  Softmax part[2];
  float sums[DIM / 8][4];

  __device__ unsigned line(unsigned half) const {
    return threadIdx.x / WARP * WARP_LINES + threadIdx.x % WARP / 4 + half * 8;
  }

  // Reads the queries of the block and what its lines see.
  __device__ __forceinline__ void load() {
#pragma unroll 1
    for (unsigned i = 0; i < WARP_LINES; ++i) load_query(threadIdx.x / WARP * WARP_LINES + i);
#pragma unroll
    for (unsigned half = 0; half < 2; ++half) {
      const bool lives = line(half) < item.lines;
      const unsigned position = o.position(item, line(half));
      begin[half] = lives ? o.first_seen(position) : 0;
      end[half] = lives ? position + 1 : 0;
    }
  }

  // Reads the query of a line, by its warp.
  __device__ __forceinline__ void load_query(unsigned line) {
    constexpr unsigned QUADS = (DIM / 4 + WARP - 1) / WARP;
    const unsigned lane = threadIdx.x % WARP;
    float4 q[QUADS];
    float largest = 0.0f;
#pragma unroll
    for (unsigned i = 0; i < QUADS; ++i) {
      const unsigned at = (i * WARP + lane) * 4;
      q[i] = make_float4(0, 0, 0, 0);
      if (line < item.lines) q[i] = quad(o.q + o.head_row(item, line) * o.key_dim, o.key_dim, at);
      largest = fmaxf(fmaxf(largest, fmaxf(fabsf(q[i].x), fabsf(q[i].y))),
                      fmaxf(fabsf(q[i].z), fabsf(q[i].w)));
    }
    largest = warp_max(largest);
    const float inverse = largest < SMALLEST ? 0.0f : 1.0f / largest;
#pragma unroll
    for (unsigned i = 0; i < QUADS; ++i) {
      const unsigned at = (i * WARP + lane) * 4;
      if (at < DIM)
        *reinterpret_cast<uint2*>(queries + line * ROW + at) =
            make_uint2(f16_pair(q[i].x * inverse, q[i].y * inverse),
                       f16_pair(q[i].z * inverse, q[i].w * inverse));
    }
    if (lane == 0) scales.lines[line] = largest * o.scale;
  }

  // The block of the page that a token of the tile is in.
  template <unsigned GROUP>
  __device__ const unsigned* page(const void* all, unsigned token) const {
    const size_t words = o.key_dim / 4 + (o.key_dim + GROUP - 1) / GROUP;
    const size_t block = static_cast<size_t>(slots.page[token]) * o.kv_heads + blockIdx.y;
    return static_cast<const unsigned*>(all) + block * words * o.page_tokens;
  }

  // The tile's codes to shared memory, 16 at a time.
  template <unsigned GROUP, bool VALUES>
  __device__ __forceinline__ void stage_codes(unsigned short* to, const void* all) {
    constexpr unsigned PIECES = DIM / 16;
#pragma unroll(DIM > 128 ? 2 : 4)
    for (unsigned i = threadIdx.x; i < TILE * PIECES; i += THREADS) {
      const unsigned token = i / PIECES, at = i % PIECES * 16;
      uint4 codes = make_uint4(0x80808080u, 0x80808080u, 0x80808080u, 0x80808080u);
      if (slots.page[token] != NOWHERE && at < o.key_dim)
        codes = *reinterpret_cast<const uint4*>(
            page<GROUP>(all, token) + (slots.offset[token] * o.key_dim + at) / 4);
      uint4* row = reinterpret_cast<uint4*>(to + token * ROW + at);
      row[0] = make_uint4(code_pair<VALUES>(codes.x), code_pair<VALUES>(codes.x >> 16),
                          code_pair<VALUES>(codes.y), code_pair<VALUES>(codes.y >> 16));
      row[1] = make_uint4(code_pair<VALUES>(codes.z), code_pair<VALUES>(codes.z >> 16),
                          code_pair<VALUES>(codes.w), code_pair<VALUES>(codes.w >> 16));
    }
  }

  // The tile's scales. Those of values that are no numbers become zeros, and their tokens broken.
  template <unsigned GROUP, bool VALUES>
  __device__ __forceinline__ void stage_scales(float (*to)[TILE], const void* all) {
    const unsigned groups = (o.key_dim + GROUP - 1) / GROUP;
    for (unsigned i = threadIdx.x; i < TILE * (DIM / GROUP); i += THREADS) {
      const unsigned token = i / (DIM / GROUP), group = i % (DIM / GROUP);
      float scale = 0.0f;
      if (slots.page[token] != NOWHERE && group < groups)
        scale = __uint_as_float(page<GROUP>(all, token)[o.page_tokens * (o.key_dim / 4) +
                                                        slots.offset[token] * groups + group]);
      if (VALUES && !isfinite(scale)) {
        slots.broken[token] = 1;
        scale = 0.0f;
      }
      to[group][token] = scale;
    }
  }

  // Finds the tokens of the tile from `first` on that some line sees, and brings them.
  __device__ __forceinline__ void stage(unsigned first, unsigned low, unsigned high) {
    if (threadIdx.x < TILE) {
      const unsigned token = first + threadIdx.x;
      const bool seen = token >= low && token < high;
      slots.page[threadIdx.x] =
          seen ? o.pages[item.first_page + token / o.page_tokens] : NOWHERE;
      slots.offset[threadIdx.x] = token % o.page_tokens;
      slots.broken[threadIdx.x] = 0;
    }
    __syncthreads();
    stage_codes<KEY_GROUP, false>(keys, o.keys);
    stage_scales<KEY_GROUP, false>(scales.keys, o.keys);
    stage_codes<VALUE_GROUP, true>(values, o.values);
    stage_scales<VALUE_GROUP, true>(scales.values, o.values);
    __syncthreads();
  }

  // Scores of the tile's tokens: of tokens n * 8 + lane % 4 * 2 and the next one, both lines.
  __device__ __forceinline__ void scores(float (&score)[TILE / 8][4]) {
    const unsigned lane = threadIdx.x % WARP;
#pragma unroll
    for (unsigned n = 0; n < TILE / 8; ++n)
#pragma unroll
      for (unsigned e = 0; e < 4; ++e) score[n][e] = 0.0f;
    const unsigned short* query =
        queries + (threadIdx.x / WARP * WARP_LINES + lane % 16) * ROW + lane / 16 * 8;
    const unsigned short* key = keys + lane % 8 * ROW + lane / 8 * 8;
#pragma unroll(DIM > 128 ? 1 : 2)
    for (unsigned group = 0; group < DIM / KEY_GROUP; ++group) {
      unsigned q[2][4];
      ldmatrix_x4(q[0], query + group * KEY_GROUP);
      ldmatrix_x4(q[1], query + group * KEY_GROUP + 16);
#pragma unroll
      for (unsigned n = 0; n < TILE / 8; ++n) {
        unsigned k[4];
        ldmatrix_x4(k, key + n * 8 * ROW + group * KEY_GROUP);
        float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        const unsigned first[2] = {k[0], k[1]}, second[2] = {k[2], k[3]};
        mma_m16n8k16<__half>(sum, q[0], first);
        mma_m16n8k16<__half>(sum, q[1], second);
        const float2 scale =
            *reinterpret_cast<const float2*>(&scales.keys[group][n * 8 + lane % 4 * 2]);
        score[n][0] += sum[0] * scale.x;
        score[n][1] += sum[1] * scale.y;
        score[n][2] += sum[2] * scale.x;
        score[n][3] += sum[3] * scale.y;
      }
    }
  }

  // Scores become weights; the sums so far are made to count what they still do.
  __device__ __forceinline__ void soften(float (&score)[TILE / 8][4], unsigned first) {
    const unsigned at = threadIdx.x % 4 * 2;
#pragma unroll
    for (unsigned half = 0; half < 2; ++half) {
      const float scale = scales.lines[line(half)];
      float top = part[half].top, sum = 0.0f;
      bool broken = false;
#pragma unroll
      for (unsigned n = 0; n < TILE / 8; ++n)
#pragma unroll
        for (unsigned e = 0; e < 2; ++e) {
          const unsigned token = first + n * 8 + at + e;
          const bool seen = token >= begin[half] && token < end[half];
          float& one = score[n][half * 2 + e];
          one = seen ? one * scale : -INFINITY;
          top = fmaxf(top, one);
          broken = broken || (seen && slots.broken[n * 8 + at + e] != 0);
        }
      top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 1));
      top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 2));
#pragma unroll
      for (unsigned n = 0; n < TILE / 8; ++n)
#pragma unroll
        for (unsigned e = 0; e < 2; ++e) {
          const unsigned token = first + n * 8 + at + e;
          const bool seen = token >= begin[half] && token < end[half];
          float& one = score[n][half * 2 + e];
          one = seen ? __expf(one - top) : 0.0f;
          sum += one;
        }
      // A line that sees a broken token is no number throughout.
      sum = broken ? NAN : sum;
      sum += __shfl_xor_sync(ALL_LANES, sum, 1);
      sum += __shfl_xor_sync(ALL_LANES, sum, 2);
      const float keep = counts(part[half].top, top);
      part[half].sum = part[half].sum * keep + sum;
      part[half].top = top;
#pragma unroll
      for (unsigned n = 0; n < DIM / 8; ++n) {
        sums[n][half * 2] *= keep;
        sums[n][half * 2 + 1] *= keep;
      }
    }
  }

  // Adds the tile's weighted values.
  __device__ __forceinline__ void add_values(const float (&weight)[TILE / 8][4]) {
    const unsigned lane = threadIdx.x % WARP;
#pragma unroll
    for (unsigned group = 0; group < DIM / VALUE_GROUP; ++group) {
      unsigned scaled[TILE / 16][4];
#pragma unroll
      for (unsigned n = 0; n < TILE / 8; ++n) {
        const float2 scale =
            *reinterpret_cast<const float2*>(&scales.values[group][n * 8 + lane % 4 * 2]);
        scaled[n / 2][n % 2 * 2] = bf16_pair(weight[n][0] * scale.x, weight[n][1] * scale.y);
        scaled[n / 2][n % 2 * 2 + 1] = bf16_pair(weight[n][2] * scale.x, weight[n][3] * scale.y);
      }
#pragma unroll
      for (unsigned n = 0; n < VALUE_GROUP / 8; ++n) {
        const unsigned at = group * VALUE_GROUP + n * 8;
        unsigned v[4];
        ldmatrix_x4_trans(v, values + lane * ROW + at);
        const unsigned first[2] = {v[0], v[1]}, second[2] = {v[2], v[3]};
        mma_m16n8k16<__nv_bfloat16>(sums[at / 8], scaled[0], first);
        mma_m16n8k16<__nv_bfloat16>(sums[at / 8], scaled[1], second);
      }
    }
  }

  // One part of all lines: tokens of one split, of which the block sees `low..high`.
  __device__ __forceinline__ void run_part(unsigned low, unsigned high) {
    part[0] = part[1] = Softmax();
#pragma unroll
    for (unsigned n = 0; n < DIM / 8; ++n)
#pragma unroll
      for (unsigned e = 0; e < 4; ++e) sums[n][e] = 0.0f;
    for (unsigned first = low / TILE * TILE; first < high; first += TILE) {
      stage(first, low, high);
      float score[TILE / 8][4];
      scores(score);
      soften(score, first);
      add_values(score);
      __syncthreads();
    }
  }

  // Leaves a part in scratch.
  __device__ __forceinline__ void leave_part(unsigned split) {
#pragma unroll
    for (unsigned half = 0; half < 2; ++half) {
      if (line(half) >= item.lines) continue;
      const size_t at = o.template part<LINES>(line(half), split);
      if (threadIdx.x % 4 == 0)
        *reinterpret_cast<float2*>(o.template part_ends<LINES>() + 2 * at) =
            make_float2(part[half].top, part[half].sum);
      float* to = o.scratch + at * o.value_dim + threadIdx.x % 4 * 2;
#pragma unroll
      for (unsigned n = 0; n < DIM / 8; ++n)
        if (n * 8 < o.value_dim)
          *reinterpret_cast<float2*>(to + n * 8) =
              make_float2(sums[n][half * 2], sums[n][half * 2 + 1]);
    }
  }

  // Adds a part to the sums in `out`, the last one divides them.
  __device__ __forceinline__ void add_part(Softmax (&whole)[2], unsigned from, bool last) {
#pragma unroll
    for (unsigned half = 0; half < 2; ++half) {
      if (line(half) >= item.lines) continue;
      // A line that sees nothing of the split keeps what it has.
      const bool sees = begin[half] < from + o.split_tokens && end[half] > from;
      const float begun = begin[half] < from ? 1.0f : 0.0f;
      const float2 factor = sees ? merge(whole[half], part[half]) : make_float2(begun, 0.0f);
      float* out = o.out + o.head_row(item, line(half)) * o.value_dim + threadIdx.x % 4 * 2;
#pragma unroll
      for (unsigned n = 0; n < DIM / 8; ++n) {
        if (n * 8 >= o.value_dim) continue;
#pragma unroll
        for (unsigned e = 0; e < 2; ++e) {
          float& to = out[n * 8 + e];
          const float before = factor.x == 0.0f ? 0.0f : to;
          const float both = mixed(before, factor.x, sums[n][half * 2 + e], factor.y);
          to = last ? both / whole[half].sum : both;
        }
      }
    }
  }
};

// The parts of one item and key head: all of them where the grid has one layer, else the layer's.
template <unsigned WARPS, unsigned DIM> __device__ __forceinline__ void run_coded(const Operands& o) {
  using Lines = CodedBlock<WARPS, DIM>;
  __shared__ typename Lines::BlockScales scales;
  __shared__ Slots slots;
  const Item item = o.items[blockIdx.x];
  unsigned short* queries = dynamic_shared<unsigned short>();
  unsigned short* keys = queries + Lines::LINES * Lines::ROW;
  Lines block{o, item, queries, keys, keys + TILE * Lines::ROW, scales, slots};
  const unsigned low = o.first_seen(o.position(item, 0));
  const unsigned high = o.position(item, item.lines - 1) + 1;
  const bool alone = gridDim.z == 1;
  const unsigned first = o.first_split(item) + blockIdx.z;
  const unsigned end = alone ? (high - 1) / o.split_tokens + 1 : first + 1;
  if (first * o.split_tokens >= high) return;
  block.load();
  Softmax whole[2];
  for (unsigned split = first; split < end; ++split) {
    const unsigned from = split * o.split_tokens;
    block.run_part(max(low, from), min(high, from + o.split_tokens));
    if (alone)
      block.add_part(whole, from, split + 1 == end);
    else
      block.leave_part(blockIdx.z);
  }
}

}  // namespace attention

PAGED_ATTENTION(paged_attention_int8_16_64, (run_coded<1, 64>), 32)
PAGED_ATTENTION(paged_attention_int8_16_128, (run_coded<1, 128>), 32)
PAGED_ATTENTION(paged_attention_int8_16_256, (run_coded<1, 256>), 32)
PAGED_ATTENTION(paged_attention_int8_64_64, (run_coded<4, 64>), 128)
PAGED_ATTENTION(paged_attention_int8_64_128, (run_coded<4, 128>), 128)
PAGED_ATTENTION(paged_attention_int8_64_256, (run_coded<4, 256>), 128)
PAGED_ATTENTION(paged_attention_merge_16, merge_parts<16>, 128)
PAGED_ATTENTION(paged_attention_merge_64, merge_parts<64>, 128)
