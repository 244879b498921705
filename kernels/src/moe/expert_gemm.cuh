// Experts times many pairs, on tensor cores.
//
// A block has up to 64 pairs of one expert and 256 outputs, 32 for each of its 8 warps, and goes
// over the inputs 64 at a time. Outputs are the rows of `mma`, whose fragments are decoded from
// codes in registers: a weight passes neither shared memory nor f32. Pairs are its columns, by
// sixteens, so that an expert with 40 pairs costs 48. Activations are rounded to bf16 on their way
// into shared memory (`XP` 1), or parted into three, which are together just what they are; codes
// are exact, and a group's scale and bias multiply its sum of products and its sum of activations,
// in f32. Weights in f16 and f32 have parts as well (`WP`).
//
// Floor: 2 * pairs * outputs * inputs operations over the rate of `mma.sync` with 1 part, or the
// bytes of the weights over the bandwidth, which are about as long with 40 pairs for an expert: 256 *
// 64 codes in nibbles are 9 KB for 40 * 256 * 128 operations, some 500 clocks of tensor cores. Memory
// answers after more than that, so with 1 part the weights of the next two steps are on their way
// into registers, 16 KB; accumulators leave room for no second block beside. Activations come from the
// second-level cache, again for every 256 outputs; `matmul_round` halves them, to 2 bytes each, with
// which that cache moves 1.4 GB for 906 MB of weights. 16 bytes of shared memory serve 4 `mma`.
#pragma once

#include "../matmul/steps.cuh"
#include "experts.cuh"

constexpr unsigned EXPERT_GEMM_OUTPUTS = 256, EXPERT_GEMM_THREADS = 256;
// Elements between pairs in shared memory: two of them fall on different banks.
constexpr unsigned EXPERT_GEMM_STRIDE = STEP_INPUTS + 32;

// What a lane has of a step: two octets of four rows, `g`, `g + 8`, `g + 16` and `g + 24` of the
// warp's, and the scales of the step's group `q`.
template <Store S> struct ExpertStep {
  unsigned words[4][step_words_of(S)];
  RawScale scales[4];
};

template <Store S, int WP, int XP> struct ExpertGemm {
  static constexpr bool PLAIN = is_plain(S);
  // Pairs at a time, and columns of eight of them: as many as there are registers for.
  static constexpr unsigned PAIRS = XP == 1 && !PLAIN ? 64 : 32, TILES = PAIRS / 8;
  // Octets of a step that a thread parts.
  static constexpr unsigned OCTETS = PAIRS * (STEP_INPUTS / 8) / EXPERT_GEMM_THREADS;
  static constexpr unsigned STAGE = PAIRS * EXPERT_GEMM_STRIDE;
  // Steps whose weights are on their way, as many as there are registers for.
  static constexpr unsigned AHEAD = XP == 1 ? 2 : 1;

  // Activations of a step in parts, and their sums over each half of a window.
  struct Shared {
    unsigned short x[2][XP][STAGE];
    float sums[2][PAIRS][4];
  };

  const ExpertJob& job;
  Shared& shared;
  const unsigned lane, q, first_pair, count;
  // Activations of a step, in f32 or as they were rounded before, in the first four words.
  float x[OCTETS][8];

  __device__ __forceinline__ ExpertGemm(const ExpertJob& job, Shared& shared, unsigned first_pair)
      : job(job), shared(shared), lane(threadIdx.x % WARP), q(threadIdx.x % 4),
        first_pair(first_pair), count(min(PAIRS, job.pairs - first_pair)) {}

  // The output of the lane's row `i`.
  __device__ __forceinline__ unsigned output(unsigned i) const {
    return job.first_output + threadIdx.x / WARP * 32 + 8 * i + lane / 4;
  }

  // Loads the weights of a step.
  __device__ __forceinline__ void fetch(ExpertStep<S>& step, unsigned index) {
    const WeightFormat format = job.weight.format;
    const unsigned group = (index * STEP_INPUTS >> format.group_log2()) + q;
    const unsigned here = max(STEP_INPUTS >> format.group_log2(), 1u);
    const bool grouped = !PLAIN && q < here && group < job.inputs >> format.group_log2();
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
      step.scales[i] = RawScale{0, 0};
      // Rows beyond the last are those of the last: their sums are not written.
      const size_t row = min(output(i), job.outputs - 1);
      const Weight& weight = job.weight;
      if (grouped)
        step.scales[i] = load_scale(weight.scales + row * weight.scale_words, group, format);
      load_step<S>(step.words[i], weight.codes + row * weight.row_words, weight.row_words, index, q);
    }
  }

  // Loads the activations of a step.
  __device__ __forceinline__ void fetch_x(unsigned index) {
#pragma unroll
    for (unsigned i = 0; i < OCTETS; ++i) {
      const unsigned at = threadIdx.x + i * EXPERT_GEMM_THREADS, pair = at / 8;
      const unsigned column = index * STEP_INPUTS + at % 8 * 8;
      if (XP == 1 && job.rounded) {
        uint4 part = make_uint4(0, 0, 0, 0);
        if (pair < count && column < job.inputs) part = *job.part(first_pair + pair, column);
        x[i][0] = __uint_as_float(part.x), x[i][1] = __uint_as_float(part.y);
        x[i][2] = __uint_as_float(part.z), x[i][3] = __uint_as_float(part.w);
      } else {
        const float* row = pair < count ? job.input(first_pair + pair) : nullptr;
        expert_octet(x[i], job, row, column);
      }
    }
  }

  // Parts the activations that were loaded into a stage.
  __device__ __forceinline__ void store(unsigned stage) {
#pragma unroll
    for (unsigned i = 0; i < OCTETS; ++i) {
      const unsigned at = threadIdx.x + i * EXPERT_GEMM_THREADS, pair = at / 8, octet = at % 8;
      float sum = 0.0f;
#pragma unroll
      for (int part = 0; part < XP; ++part) {
        const uint4 four =
            XP == 1 && job.rounded
                ? make_uint4(__float_as_uint(x[i][0]), __float_as_uint(x[i][1]),
                             __float_as_uint(x[i][2]), __float_as_uint(x[i][3]))
                : next_part(x[i]);
        unsigned short* to = &shared.x[stage][part][pair * EXPERT_GEMM_STRIDE + 8 * octet];
        *reinterpret_cast<uint4*>(to) = four;
        sum += sum_of_part(four);
      }
      sum += __shfl_xor_sync(ALL_LANES, sum, 1);
      if (octet % 2 == 0) shared.sums[stage][pair][octet / 2] = sum;
    }
  }

  // Multiplies `SPAN` windows from `w` on, which share their scales, the group `group` of the step;
  // with `half` below 2, only that half of a window.
  template <unsigned SPAN>
  __device__ __forceinline__ void span(float (&sums)[2][TILES][4], const ExpertStep<S>& step,
                                       unsigned stage, unsigned w, unsigned group, unsigned half) {
    const WeightFormat format = job.weight.format;
    unsigned rows[SPAN][4][WP][4];
    float2 scales[4];
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
#pragma unroll
      for (unsigned window = 0; window < SPAN; ++window)
        decode_step<S, WP>(rows[window][i], step.words[i], SPAN == 2 ? window : w, format);
      if constexpr (!PLAIN) {
        RawScale raw;
        raw.scale = __shfl_sync(ALL_LANES, step.scales[i].scale, group, 4);
        raw.bias = __shfl_sync(ALL_LANES, step.scales[i].bias, group, 4);
        scales[i] = scale_of(raw, format);
      }
    }
#pragma unroll
    for (unsigned two = 0; two < TILES; two += 2) {
      if (8 * two >= count) break;
#pragma unroll
      for (unsigned tile = two; tile < two + 2; ++tile) {
        float products[2][4] = {};
#pragma unroll
        for (unsigned window = 0; window < SPAN; ++window)
          multiply(products, rows[window], stage, tile, (w + window) * 32, half);
        if constexpr (PLAIN) {
#pragma unroll
          for (unsigned i = 0; i < 8; ++i) sums[i / 4][tile][i % 4] += products[i / 4][i % 4];
        } else {
          float2 inputs = make_float2(0.0f, 0.0f);
          if (format.biased()) inputs = input_sums<SPAN>(stage, tile, w, half);
#pragma unroll
          for (unsigned i = 0; i < 8; ++i) {
            const float2 scale = scales[i / 4 * 2 + i % 4 / 2];
            sums[i / 4][tile][i % 4] +=
                scale.x * products[i / 4][i % 4] + scale.y * (i % 2 ? inputs.y : inputs.x);
          }
        }
      }
    }
  }

  // Adds a window of all 32 rows times a column of eight pairs.
  __device__ __forceinline__ void multiply(float (&products)[2][4],
                                           const unsigned (&rows)[4][WP][4], unsigned stage,
                                           unsigned tile, unsigned column,
                                           unsigned half) const {
#pragma unroll
    for (int part = XP; part-- > 0;) {
      const unsigned short* from =
          &shared.x[stage][part][(8 * tile + lane / 4) * EXPERT_GEMM_STRIDE + column + 8 * q];
      uint4 octet = *reinterpret_cast<const uint4*>(from);
      if (half < 2 && q / 2 != half) octet = make_uint4(0, 0, 0, 0);
      // Products of parts that are both small are too small to matter.
#pragma unroll
      for (int of = min(WP, XP - part); of-- > 0;) {
        multiply_window(products[0], rows[0][of], rows[1][of], octet);
        multiply_window(products[1], rows[2][of], rows[3][of], octet);
      }
    }
  }

  // Sums of the activations of pairs `2 q` and `2 q + 1` of a tile.
  template <unsigned SPAN>
  __device__ __forceinline__ float2 input_sums(unsigned stage, unsigned tile, unsigned w,
                                               unsigned half) const {
    float sums[2];
#pragma unroll
    for (unsigned i = 0; i < 2; ++i) {
      const float* of = shared.sums[stage][8 * tile + 2 * q + i] + 2 * w;
      if constexpr (SPAN == 2)
        sums[i] = (of[0] + of[1]) + (of[2] + of[3]);
      else
        sums[i] = half < 2 ? of[half] : of[0] + of[1];
    }
    return make_float2(sums[0], sums[1]);
  }

  __device__ __forceinline__ void compute(float (&sums)[2][TILES][4], const ExpertStep<S>& step,
                                          unsigned stage) {
    const unsigned log2 = job.weight.format.group_log2();
    if constexpr (PLAIN) {
      // One window at a time, also for want of registers.
#pragma unroll
      for (unsigned w = 0; w < 2; ++w) span<1>(sums, step, stage, w, 0, 2);
    } else {
      if (log2 >= 6) {
        span<2>(sums, step, stage, 0, 0, 2);
      } else if (log2 == 5) {
#pragma unroll
        for (unsigned w = 0; w < 2; ++w) span<1>(sums, step, stage, w, w, 2);
      } else {
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) span<1>(sums, step, stage, i / 2, i, i % 2);
      }
    }
  }

  __device__ __forceinline__ void write(const float (&sums)[2][TILES][4]) const {
#pragma unroll
    for (unsigned tile = 0; tile < TILES; ++tile)
#pragma unroll
      for (unsigned i = 0; i < 8; ++i) {
        const unsigned pair = 8 * tile + 2 * q + i % 2, to = output(i / 2);
        if (pair >= count || to >= job.outputs) continue;
        job.out[static_cast<size_t>(first_pair + pair) * job.outputs + to] =
            sums[i / 4][tile][i % 4];
      }
  }
};

template <Store S, int WP, int XP>
__device__ __forceinline__ void expert_gemm(const ExpertJob& job,
                                            typename ExpertGemm<S, WP, XP>::Shared& shared) {
  using Work = ExpertGemm<S, WP, XP>;
  const unsigned steps = (job.inputs + STEP_INPUTS - 1) / STEP_INPUTS;
  for (unsigned first = 0; first < job.pairs; first += Work::PAIRS) {
    Work work(job, shared, first);
    float sums[2][Work::TILES][4] = {};
    // Weights come from memory, activations from a cache, half as far away.
    ExpertStep<S> next[Work::AHEAD];
    if (steps > 0) work.fetch_x(0);
#pragma unroll
    for (unsigned i = 0; i < Work::AHEAD; ++i)
      if (i < steps) work.fetch(next[i], i);
    // The last step of the pairs before may be at work on this stage.
    __syncthreads();
#pragma unroll 1
    for (unsigned turn = 0; turn < steps; turn += 2)
#pragma unroll
      for (unsigned stage = 0; stage < 2; ++stage) {
        const unsigned index = turn + stage;
        if (index >= steps) break;
        work.store(stage);
        __syncthreads();
        const ExpertStep<S> step = next[stage % Work::AHEAD];
        if (index + 1 < steps) work.fetch_x(index + 1);
        if (index + Work::AHEAD < steps) work.fetch(next[stage % Work::AHEAD], index + Work::AHEAD);
        work.compute(sums, step, stage);
      }
    work.write(sums);
  }
}
