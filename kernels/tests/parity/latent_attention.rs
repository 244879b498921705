//! Rows of the table of `latent_attention`: ragged segments over shuffled pages, whose unused slots
//! are poison.

use std::sync::Arc;

use candle_core::Tensor;
use sconce_kernels::attention::{self as pools, KvType};
use sconce_kernels::latent_attention::{Inputs, Shape, reference};
use sconce_kernels::{
    AttentionOptions, Error, KvPages, PageTable, Pool, Segment, latent_attention, write_kv,
};

use crate::common::{Backend, Random, bits, compare, device, poisoned, tensor, values};

const OPTIONS: AttentionOptions = AttentionOptions { scale: 0.2, window: None };

/// Heads, tokens of a page, widths of rope key and latent; first position and length of segments.
type Case = ([usize; 4], &'static [(usize, usize)]);

const CASES: &[Case] = &[
    ([1, 16, 16, 16], &[]),
    ([1, 16, 16, 16], &[(0, 1)]),
    ([20, 64, 64, 512], &[(0, 3), (130, 1), (63, 2)]),
    ([4, 16, 8, 32], &[(0, 33), (5, 12), (100, 3)]),
    ([5, 5, 6, 10], &[(0, 7), (11, 9)]),
    ([2, 64, 32, 48], &[(0, 150), (64, 1)]),
    // Longer than the parts that rows are summed up in.
    ([3, 16, 16, 80], &[(700, 2), (0, 15), (600, 9)]),
    ([3, 16, 16, 24], &[(520, 9)]),
    ([7, 16, 4, 17], &[(17, 4)]),
];

struct Setup {
    keys: Tensor,
    latents: Tensor,
    reference_keys: Vec<f32>,
    reference_latents: Vec<f32>,
    q_latent: Vec<f32>,
    q_rope: Vec<f32>,
    segments: Vec<Segment>,
    pages: Vec<u32>,
    shape: Shape,
}

fn set_up((sizes, segments): &Case, seed: u64) -> Setup {
    let [heads, page_tokens, rope_dim, latent_dim] = *sizes;
    let mut random = Random::new(seed);
    let count: usize =
        segments.iter().map(|(first, len)| (first + len).div_ceil(page_tokens)).sum();
    let mut pages: Vec<u32> = (0..count as u32).collect();
    for index in (1..count).rev() {
        pages.swap(index, random.below(index + 1));
    }
    let pool = |width| Tensor::full(f32::NAN, (count, 1, page_tokens, width), &device()).unwrap();
    let mut setup = Setup {
        keys: pool(rope_dim).contiguous().unwrap(),
        latents: pool(latent_dim).contiguous().unwrap(),
        reference_keys: vec![f32::NAN; count * page_tokens * rope_dim],
        reference_latents: vec![f32::NAN; count * page_tokens * latent_dim],
        q_latent: Vec::new(),
        q_rope: Vec::new(),
        segments: Vec::new(),
        pages,
        shape: Shape { heads, page_tokens, rope_dim, latent_dim },
    };
    let (mut first_row, mut first_page) = (0, 0);
    for (first_position, len) in segments.iter().copied() {
        let page_count = (first_position + len).div_ceil(page_tokens);
        let segment = Segment { first_row, len, first_position, first_page, page_count };
        setup.fill(&segment, &mut random);
        setup.segments.push(segment);
        (first_row, first_page) = (first_row + len, first_page + page_count);
    }
    setup.q_latent = random.numbers(first_row * heads * latent_dim);
    setup.q_rope = random.numbers(first_row * heads * rope_dim);
    setup
}

impl Setup {
    fn kv(&self) -> KvPages<'_> {
        KvPages { keys: &self.keys, values: &self.latents }
    }

    /// Writes all tokens of a segment's sequence.
    fn fill(&mut self, segment: &Segment, random: &mut Random) {
        let (tokens, held) = (segment.first_position + segment.len, self.shape.page_tokens);
        let page = |token: usize| self.pages[segment.first_page + token / held] as usize;
        let slots: Vec<u32> =
            (0..tokens).map(|token| (page(token) * held + token % held) as u32).collect();
        let Shape { heads, page_tokens, rope_dim, latent_dim } = self.shape;
        let [keys, latents] = [rope_dim, latent_dim].map(|width| random.numbers(tokens * width));
        let (k, v) = (tensor(&keys, rope_dim), tensor(&latents, latent_dim));
        write_kv(self.kv(), &k, &v, &slots).unwrap();
        let (pages, kv_heads, kv_type) = (self.pages.len(), 1, KvType::F32);
        let [of_keys, of_latents] = [rope_dim, latent_dim].map(|head_dim| pools::Shape {
            pages,
            kv_heads,
            page_tokens,
            head_dim,
            heads,
            kv_type,
        });
        pools::reference::write_keys(&mut self.reference_keys, &keys, &slots, &of_keys);
        let pool = &mut self.reference_latents;
        pools::reference::write_values(pool, &latents, &slots, &of_latents);
    }

    /// Attention over the given segments, whose rows index the queries of the setup.
    fn run(&self, segments: &[Segment]) -> Vec<f32> {
        let Shape { heads, rope_dim, latent_dim, .. } = self.shape;
        let width = heads * latent_dim;
        let out = poisoned(self.q_latent.len() / width + 1, width);
        let (latent, rope) =
            (tensor(&self.q_latent, width), tensor(&self.q_rope, heads * rope_dim));
        let table = PageTable { segments, pages: &self.pages };
        latent_attention(&out, &latent, &rope, self.kv(), table, OPTIONS).unwrap();
        values(&out)
    }
}

#[test]
fn latent_attention_matches_its_reference() {
    for (seed, case) in CASES.iter().enumerate() {
        let setup = set_up(case, seed as u64 + 1);
        let mut expected = vec![f32::NAN; setup.q_latent.len()];
        let inputs = Inputs {
            q_latent: &setup.q_latent,
            q_rope: &setup.q_rope,
            keys: &setup.reference_keys,
            latents: &setup.reference_latents,
        };
        let table = PageTable { segments: &setup.segments, pages: &setup.pages };
        reference::latent_attention(&mut expected, inputs, table, &setup.shape, OPTIONS.scale);
        for backend in Backend::all() {
            let found = backend.with(|| {
                let setup = set_up(case, seed as u64 + 1);
                setup.run(&setup.segments)
            });
            let ones = vec![1.0; expected.len()];
            compare(&format!("{backend} {case:?}"), &found, &expected, &ones, 6e-6);
        }
    }
}

#[test]
fn a_row_over_latents_has_the_same_bits_alone_in_chunks_and_in_a_batch() {
    let pools: Vec<_> = [1, 2, 5].map(|threads| Arc::new(Pool::new(threads).unwrap())).into();
    let all = |backend| CASES.iter().enumerate().map(move |case| (backend, case));
    for (backend, (seed, case)) in Backend::all().into_iter().flat_map(all) {
        let setup = backend.with(|| set_up(case, seed as u64 + 1));
        let width = setup.shape.heads * setup.shape.latent_dim;
        let whole = backend.with(|| setup.run(&setup.segments));
        for (index, chunk) in [1, 3, 17].into_iter().enumerate() {
            for segment in &setup.segments {
                for start in (0..segment.len).step_by(chunk) {
                    let part = Segment {
                        first_row: segment.first_row + start,
                        len: chunk.min(segment.len - start),
                        first_position: segment.first_position + start,
                        ..*segment
                    };
                    let run = || backend.with(|| setup.run(&[part]));
                    let found = Pool::with(&pools[index], run);
                    let range = part.first_row * width..(part.first_row + part.len) * width;
                    let same = bits(&found[range.clone()]) == bits(&whole[range]);
                    assert!(same, "{backend} {case:?}: {part:?}");
                }
            }
        }
    }
}

#[test]
fn what_a_thread_left_from_another_shape_does_not_matter() {
    let wide = set_up(&([2, 16, 24, 40], &[(0, 20)]), 1);
    let odd = set_up(&([2, 5, 6, 10], &[(0, 9)]), 2);
    let pool = Arc::new(Pool::new(1).unwrap());
    Pool::with(&pool, || {
        let first = odd.run(&odd.segments);
        let nan = vec![f32::NAN; wide.q_latent.len()];
        let broken = Setup { q_latent: nan, ..wide };
        assert!(broken.run(&broken.segments).iter().all(|value| value.is_nan()));
        assert_eq!(bits(&odd.run(&odd.segments)), bits(&first));
    });
}

#[test]
fn latents_that_do_not_fit_are_refused() {
    let setup = set_up(&([2, 16, 4, 8], &[(0, 4), (20, 2)]), 1);
    let (q_latent, q_rope) = (tensor(&setup.q_latent, 16), tensor(&setup.q_rope, 8));
    let run = |out: &Tensor, q_rope: &Tensor, kv, segments: &[Segment], options| {
        let table = PageTable { segments, pages: &setup.pages };
        latent_attention(out, &q_latent, q_rope, kv, table, options)
    };
    let (out, kv, good) = (poisoned(6, 16), setup.kv(), setup.segments[1]);
    let windowed = AttentionOptions { window: Some(4), ..OPTIONS };
    let error = run(&out, &q_rope, kv, &[good], windowed).unwrap_err().to_string();
    assert_eq!(error, "latent_attention: window must be none, found Some(4)");
    let beyond = Segment { page_count: 1, ..good };
    let narrow = poisoned(6, 12);
    let two_heads = Tensor::zeros((3, 2, 16, 4), candle_core::DType::F32, &device()).unwrap();
    let two = KvPages { keys: &two_heads, values: &two_heads };
    let turned = KvPages { keys: kv.values, values: kv.keys };
    for found in [
        run(&out, &q_rope, kv, &[beyond], OPTIONS),
        run(&narrow, &q_rope, kv, &[good], OPTIONS),
        run(&out, &q_latent, kv, &[good], OPTIONS),
        run(&out, &q_rope, two, &[good], OPTIONS),
        run(&out, &q_rope, turned, &[good], OPTIONS),
    ] {
        assert!(matches!(found, Err(Error::Shape { .. })), "{found:?}");
    }
    let aliased = run(&q_latent, &q_rope, kv, &[good], OPTIONS);
    assert!(matches!(aliased, Err(Error::Aliased { .. })));
    assert!(run(&out, &q_rope, kv, &[good], OPTIONS).is_ok());
}
