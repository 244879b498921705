// `paged_attention` over pages in f32, and `latent_attention`.
//
// A block has up to 8 or 32 lines (query heads of consecutive rows that share a key head) of one
// segment and goes over the tokens they see in tiles of 32. A chunk of 64 elements of a tile's keys,
// then of its values, is in shared memory at a time, read once from memory as whole lines of 256
// bytes for all lines of the block. A lane has the scores of one token, so that the
// softmax of a line is a few shuffles; then a thread has four elements of the sums of a few lines.
//
// Sums start anew at every multiple of `split_tokens` and the parts are merged in order. With many
// blocks, each does so itself, in `out`; with few (decode), each split is a block of its own that
// leaves a part in scratch, and a second kernel merges ("flash decoding"). Both add in one order, and
// both sizes of a block too, so that the bits of a row do not hang on what else is in the step.
//
// A token of a key head moves (key_dim + value_dim) * 4 bytes for
// 2 * lines * (key_dim + value_dim) operations: a block of 8 lines is bound by memory, floor bytes /
// bandwidth, with 16 blocks of 8 KiB in flight on a multiprocessor; one of 32 by the f32 pipes.
#include "tiles.cuh"

PAGED_ATTENTION(paged_attention_f32_8_64, (run<Kind::F32, 8, 1>), 64)
PAGED_ATTENTION(paged_attention_f32_8_128, (run<Kind::F32, 8, 2>), 64)
PAGED_ATTENTION(paged_attention_f32_8_256, (run<Kind::F32, 8, 4>), 128)
PAGED_ATTENTION(paged_attention_f32_32_64, (run<Kind::F32, 32, 1>), 128)
PAGED_ATTENTION(paged_attention_f32_32_128, (run<Kind::F32, 32, 2>), 128)
PAGED_ATTENTION(paged_attention_f32_32_256, (run<Kind::F32, 32, 4>), 256)
PAGED_ATTENTION(paged_attention_merge_8, merge_parts<8>, 128)
PAGED_ATTENTION(paged_attention_merge_32, merge_parts<32>, 128)

#define LATENT_ATTENTION(NAME, BODY, THREADS)                                                     \
  extern "C" __global__ void __launch_bounds__(THREADS, 1)                                           \
      NAME(float* out, const float* q_latent, const float* q_rope, const void* keys,              \
           const void* latents, const unsigned* items, const unsigned* pages, float* scratch,     \
           unsigned heads, unsigned page_tokens, unsigned rope_dim, unsigned latent_dim,          \
           float scale, unsigned split_tokens, unsigned splits) {                                 \
    using namespace attention;                                                                    \
    const Item* runs = reinterpret_cast<const Item*>(items);                                      \
    BODY({out, q_latent,    q_rope,   keys,       latents, runs,        pages,        scratch,    \
          heads, 1,         page_tokens, rope_dim, latent_dim, scale,   0xffffffffu,              \
          split_tokens, splits});                                                                 \
  }

LATENT_ATTENTION(latent_attention_8_64, (run<Kind::Latent, 8, 1>), 64)
LATENT_ATTENTION(latent_attention_8_512, (run<Kind::Latent, 8, 8>), 128)
LATENT_ATTENTION(latent_attention_32_64, (run<Kind::Latent, 32, 1>), 128)
LATENT_ATTENTION(latent_attention_32_512, (run<Kind::Latent, 32, 8>), 256)
LATENT_ATTENTION(latent_attention_merge_8, merge_parts<8>, 128)
LATENT_ATTENTION(latent_attention_merge_32, merge_parts<32>, 128)
