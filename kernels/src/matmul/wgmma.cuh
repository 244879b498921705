// A weight times many rows of activations on the tensor cores of 9.0a, which multiply while their
// warps decode.
//
// A block has `64 * M` outputs for each of its `GROUPS` warpgroups, times `N` rows of activations,
// and goes over the inputs 64 at a time. A weight goes from its codes straight into the registers of
// the first operand, a lane's octets of two rows for each 64 outputs: it passes shared memory in no
// form, and is decoded once for `N` rows. There it is a code times its scale and its bias, rounded to
// bf16 as in `gemm.cuh`, so that sums stay in the tensor cores' accumulators from the first input to
// the last. Multiplied after every group instead, as `expert_gemm.cuh` does, they would cost two
// instructions each and a wait for the product before: as much time as `M * N / 16` codes.
//
// Activations are the second operand, `matmul_round_wgmma` has made them: in bf16, and the pairs of
// every 32 inputs in the order in which lanes have those of weights, so that 16 bytes are copied as
// they lie. A row's 64 inputs are 128 bytes, swizzled as such: eight threads copy a row of all banks,
// and eight rows of 16 bytes, as tensor cores read them, are of all banks too. Copies are `cp.async`
// into four stages, the step after the next one on its way. A tensor map (TMA) would take one thread
// instead of all, but these are some 4 of 70 instructions of a step; it cannot gather the rows that an
// expert reads, and needs an object of the driver's for each tensor.
//
// Order of a step: its first window is decoded while the second one before is multiplied, and so on:
// two groups of products are under way at most, and a group is waited for when its registers are
// decoded into again. So a stage is free when the block passes the barrier of the step after the
// next: four stages.
//
// Floor: 2 * rows * outputs * inputs operations over the rate of tensor cores; decoding takes some 70
// instructions of a warp for 16 outputs times 64 inputs (130 where scales are not bf16), in which time
// tensor cores multiply these by 35 rows (65).
#pragma once

#include "../gpu/wgmma.cuh"
#include "steps.cuh"

// Where the bytes of a stage begin to repeat their pattern.
constexpr unsigned WGMMA_ALIGN = 1024;

#ifdef SCONCE_WGMMA
template <Store S, unsigned N, unsigned M, unsigned GROUPS> struct Wgmma {
  static_assert(S != Store::WORDS, "in one part of bf16");
  static constexpr unsigned THREADS = 128 * GROUPS, OUTPUTS = 64 * M * GROUPS;
  // Bytes of a row of a stage; stages, and steps that activations are copied ahead.
  static constexpr unsigned ROW = 2 * STEP_INPUTS, STAGE = N * ROW, STAGES = 4, COPIED = 2;
  // Copies of a thread for a step.
  static constexpr unsigned COPIES = (8 * N + THREADS - 1) / THREADS;
  // Steps whose weights are on their way into registers, as many as there are for them.
  static constexpr unsigned AHEAD = is_plain(S) || N > 64 ? 1 : 2;

  // What a lane has of a step: two octets of its rows, and their scales.
  struct Step {
    unsigned words[2 * M][step_words_of(S)];
    RawScale scales[2 * M][2];
  };

  const Weight& weight;
  const unsigned outputs, inputs, first_output;
  const unsigned q = threadIdx.x % 4, g = threadIdx.x % WARP / 4;
  unsigned char* stages;
  unsigned long long descriptor;
  const uint4* from[COPIES];
  bool live[COPIES];

  // `memory` is dynamic shared memory; `row` gives where a row of activations begins, or none.
  template <class Row>
  __device__ __forceinline__ Wgmma(const Weight& weight, unsigned outputs, unsigned inputs,
                                   unsigned first_output, unsigned char* memory, Row row)
      : weight(weight), outputs(outputs), inputs(inputs), first_output(first_output) {
    stages = memory + (WGMMA_ALIGN - shared_address(memory) % WGMMA_ALIGN) % WGMMA_ALIGN;
    descriptor = matrix_descriptor(shared_address(stages), 0, 8 * ROW, Swizzle::BYTES_128);
#pragma unroll
    for (unsigned i = 0; i < COPIES; ++i) {
      const unsigned at = threadIdx.x / 8 + i * (THREADS / 8);
      const uint4* found = at < N ? row(at) : nullptr;
      live[i] = found != nullptr;
      from[i] = found + (live[i] ? threadIdx.x % 8 : 0);
    }
  }

  // The output of the lane's row `i`.
  __device__ __forceinline__ unsigned output(unsigned i) const {
    const unsigned group = threadIdx.x / 128, warp = threadIdx.x / WARP % 4;
    return first_output + (group * M + i / 2) * 64 + warp * 16 + i % 2 * 8 + g;
  }

  // Begins to copy the activations of a step.
  __device__ __forceinline__ void copy(unsigned index) const {
    const unsigned octets = (inputs + 31) / 32 * 4, eight = threadIdx.x % 8;
    unsigned char* stage = stages + index % STAGES * STAGE;
#pragma unroll
    for (unsigned i = 0; i < COPIES; ++i) {
      const unsigned row = threadIdx.x / 8 + i * (THREADS / 8);
      if (N * 8 % THREADS != 0 && row >= N) break;
      const bool inside = live[i] && index * 8 + eight < octets;
      copy_async_16(stage + row * ROW + (eight ^ row % 8) * 16, from[i] + (inside ? index * 8 : 0),
                    inside);
    }
  }

  // Loads the weights of a step.
  __device__ __forceinline__ void fetch(Step& step, unsigned index) const {
    const WeightFormat format = weight.format;
#pragma unroll
    for (unsigned i = 0; i < 2 * M; ++i) {
      // Rows beyond the last are those of the last: their sums are not written.
      const size_t row = min(output(i), outputs - 1);
      load_step<S>(step.words[i], weight.codes + row * weight.row_words, weight.row_words, index, q);
      if constexpr (!is_plain(S)) {
#pragma unroll
        for (unsigned w = 0; w < 2; ++w) {
          // The zeros beyond the last column are of the last group.
          const unsigned column = min(STEP_INPUTS * index + 32 * w + 8 * q, inputs - 1);
          if (w == 0 || format.group_log2() < 6)
            step.scales[i][w] = load_scale(weight.scales + row * weight.scale_words,
                                           column >> format.group_log2(), format);
          else
            step.scales[i][w] = step.scales[i][0];
        }
      }
    }
  }

  // Codes times their scale, and their bias added.
  static __device__ __forceinline__ void scale(unsigned (&pairs)[4], RawScale raw,
                                               WeightFormat format) {
    if (format.scale_type() == ScaleType::BF16) {
      // Both are exact: one rounding, as below.
      const __nv_bfloat162 scale = pair_of(__byte_perm(raw.scale, 0, 0x1010));
      const __nv_bfloat162 bias = pair_of(__byte_perm(raw.scale, 0, 0x3232));
#pragma unroll
      for (int i = 0; i < 4; ++i) pairs[i] = bits_of(__hfma2(pair_of(pairs[i]), scale, bias));
    } else {
      const float2 scale = scale_of(raw, format);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        pairs[i] = round_pair(fmaf(low_of(pairs[i]), scale.x, scale.y),
                              fmaf(high_of(pairs[i]), scale.x, scale.y));
    }
  }

  // Window `w` of a step as fragments: of each 64 outputs two, of 16 inputs.
  __device__ __forceinline__ void decode(unsigned (&rows)[M][2][4], const Step& step,
                                         unsigned w) const {
#pragma unroll
    for (unsigned i = 0; i < 2 * M; ++i) {
      unsigned pairs[1][4];
      decode_step<S, 1>(pairs, step.words[i], w, weight.format);
      if constexpr (!is_plain(S)) scale(pairs[0], step.scales[i][w], weight.format);
#pragma unroll
      for (unsigned pair = 0; pair < 4; ++pair)
        rows[i / 2][pair / 2][pair % 2 * 2 + i % 2] = pairs[0][pair];
    }
  }

  // Computes all sums and hands them to `put(row, output, sum)`.
  template <class Put> __device__ __forceinline__ void run(Put put) {
    const unsigned steps = (inputs + STEP_INPUTS - 1) / STEP_INPUTS;
    float sums[M][N / 2] = {};
    unsigned rows[2][M][2][4] = {};
    Step next[AHEAD];
#pragma unroll
    for (unsigned i = 0; i < COPIED; ++i) {
      if (i < steps) copy(i);
      copy_commit();
    }
#pragma unroll
    for (unsigned i = 0; i < AHEAD; ++i)
      if (i < steps) fetch(next[i], i);
    wgmma_fence(sums);
#pragma unroll 1
    for (unsigned turn = 0; turn < steps; turn += AHEAD)
#pragma unroll
      for (unsigned i = 0; i < AHEAD; ++i) {
        if (turn + i >= steps) break;
        step(sums, rows, next[i], turn + i, steps);
      }
    wgmma_wait<0>(sums);
    copy_wait<0>();
#pragma unroll
    for (unsigned m = 0; m < M; ++m)
#pragma unroll
      for (unsigned i = 0; i < N / 2; ++i)
        put(i / 4 * 8 + 2 * q + i % 2, output(2 * m + i % 4 / 2), sums[m][i]);
  }

  // Begins the products of a step, whose weights are in `step`, where later ones are then loaded.
  __device__ __forceinline__ void step(float (&sums)[M][N / 2], unsigned (&rows)[2][M][2][4],
                                       Step& step, unsigned index, unsigned steps) {
    const unsigned stage = index % STAGES * STAGE;
#pragma unroll
    for (unsigned w = 0; w < 2; ++w) {
      wgmma_wait<1>(rows[w]);
      decode(rows[w], step, w);
      if (w == 0) {
        // This step's activations are there, those of the step before the last were read.
        copy_wait<COPIED - 1>();
        proxy_fence();
        __syncthreads();
        if (index + COPIED < steps) copy(index + COPIED);
        copy_commit();
      } else if (index + AHEAD < steps) {
        fetch(step, index + AHEAD);
      }
      wgmma_fence(rows[w]);
#pragma unroll
      for (unsigned half = 0; half < 2; ++half)
#pragma unroll
        for (unsigned m = 0; m < M; ++m)
          wgmma_m64k16<N>(sums[m], rows[w][m][half],
                          descriptor + (stage + (2 * w + half) * 32) / 16);
      wgmma_commit();
    }
  }
};
#endif
