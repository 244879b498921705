//! Rows of the attention table: ragged segments over shuffled pages, whose unused slots are poison.

use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;
use sconce_kernels::attention::reference::{self, Inputs};
use sconce_kernels::attention::{KvSide, KvType, Shape};
use sconce_kernels::{
    AttentionOptions, Error, KvPages, PageTable, Pool, Segment, paged_attention, write_kv,
};

use crate::common::{Backend, Random, bits, compare, device, poisoned, tensor, values};

/// Sequences with tokens in pages, and what is computed over them.
#[derive(Clone)]
struct Case {
    shape: Shape,
    window: Option<usize>,
    /// First position and length of each segment.
    segments: Vec<(usize, usize)>,
}

/// Pages whose every scale, or element, is poison.
pub(crate) fn unwritten(side: KvSide, shape: &Shape) -> Tensor {
    let row_len = shape.kv_type.row_len(side, shape.head_dim);
    let dims = (shape.pages, shape.kv_heads, shape.page_tokens, row_len);
    let pages = match shape.kv_type {
        KvType::F32 => Tensor::full(f32::NAN, dims, &device()),
        KvType::Int8 => Tensor::full(f32::NAN.to_bits(), dims, &device()),
    };
    pages.unwrap().contiguous().unwrap()
}

/// Keys and values written through the operator, queries, and the table.
struct Setup {
    keys: Tensor,
    values: Tensor,
    /// What they stand for, in f32 blocks.
    reference_keys: Vec<f32>,
    reference_values: Vec<f32>,
    q: Vec<f32>,
    segments: Vec<Segment>,
    pages: Vec<u32>,
    shape: Shape,
    options: AttentionOptions,
}

fn case(shape: [usize; 4], window: Option<usize>, segments: &[(usize, usize)]) -> Case {
    let [heads, kv_heads, page_tokens, head_dim] = shape;
    let pages = segments.iter().map(|(first, len)| (first + len).div_ceil(page_tokens)).sum();
    let shape = Shape { pages, kv_heads, page_tokens, head_dim, heads, kv_type: KvType::F32 };
    Case { shape, window, segments: segments.to_vec() }
}

/// The same in 8 bits.
fn coded(case: Case) -> Case {
    Case { shape: Shape { kv_type: KvType::Int8, ..case.shape }, ..case }
}

fn cases() -> Vec<Case> {
    vec![
        case([1, 1, 16, 16], None, &[]),
        case([1, 1, 16, 16], None, &[(0, 1)]),
        case([9, 3, 64, 64], None, &[(0, 70), (63, 1), (64, 1), (200, 1)]),
        case([4, 2, 16, 32], None, &[(0, 33), (5, 12), (100, 3)]),
        case([8, 1, 32, 128], None, &[(0, 5), (90, 2)]),
        case([2, 2, 5, 10], None, &[(0, 7), (11, 9)]),
        case([30, 1, 16, 24], None, &[(17, 4)]),
        case([6, 2, 16, 64], Some(1), &[(0, 20), (40, 1)]),
        case([6, 2, 16, 64], Some(20), &[(0, 50), (77, 3)]),
        case([3, 1, 64, 48], Some(64), &[(100, 70)]),
        coded(case([1, 1, 16, 16], None, &[])),
        coded(case([1, 1, 16, 16], None, &[(0, 1)])),
        coded(case([9, 3, 64, 64], None, &[(0, 70), (63, 1), (64, 1), (200, 1)])),
        coded(case([4, 2, 16, 32], None, &[(0, 33), (5, 12), (100, 3)])),
        coded(case([8, 1, 256, 128], None, &[(0, 5), (290, 2)])),
        coded(case([7, 1, 48, 80], None, &[(0, 7), (51, 9)])),
        coded(case([2, 2, 64, 256], Some(1), &[(0, 20), (40, 1)])),
        coded(case([2, 1, 16, 256], None, &[(0, 33)])),
        coded(case([6, 2, 16, 112], Some(20), &[(0, 50), (77, 3)])),
        coded(case([5, 1, 64, 96], Some(64), &[(100, 70)])),
        // Longer than the parts that rows are summed up in.
        case([3, 1, 64, 32], None, &[(1300, 2), (0, 3)]),
        case([2, 1, 16, 16], Some(600), &[(1500, 40), (511, 2)]),
        case([2, 2, 5, 10], None, &[(1100, 3)]),
        coded(case([3, 1, 64, 64], None, &[(1300, 2), (0, 3)])),
        coded(case([2, 1, 16, 16], Some(513), &[(1500, 40), (1023, 2)])),
        case([3, 1, 64, 32], Some(usize::MAX), &[(1300, 2)]),
        case([9, 1, 16, 192], Some(300), &[(290, 2), (255, 5), (3, 1)]),
        case([1, 1, 16, 65], None, &[(0, 35)]),
        // More heads and rows than a GPU splits the contexts of.
        case([32, 32, 16, 16], None, &[(250, 33); 8]),
        coded(case([32, 32, 16, 16], Some(70), &[(300, 1); 16])),
    ]
}

/// Cases with the seeds of their numbers, backend after backend.
fn on_all_backends(cases: Vec<Case>) -> Vec<(Backend, (usize, Case))> {
    let numbered = |backend| cases.iter().cloned().enumerate().map(move |case| (backend, case));
    Backend::all().into_iter().flat_map(numbered).collect()
}

fn set_up(case: &Case, seed: u64) -> Setup {
    let mut random = Random::new(seed);
    let shape = case.shape;
    let mut pages: Vec<u32> = (0..shape.pages as u32).collect();
    for index in (1..pages.len()).rev() {
        pages.swap(index, random.below(index + 1));
    }
    let elements = shape.pages * shape.kv_heads * shape.page_tokens * shape.head_dim;
    let mut setup = Setup {
        keys: unwritten(KvSide::Keys, &shape),
        values: unwritten(KvSide::Values, &shape),
        reference_keys: vec![f32::NAN; elements],
        reference_values: vec![f32::NAN; elements],
        q: Vec::new(),
        segments: Vec::new(),
        pages,
        shape,
        options: AttentionOptions { scale: 0.3, window: case.window },
    };
    let (mut first_row, mut first_page) = (0, 0);
    for (first_position, len) in case.segments.iter().copied() {
        let page_count = (first_position + len).div_ceil(shape.page_tokens);
        let segment = Segment { first_row, len, first_position, first_page, page_count };
        setup.fill(&segment, &mut random);
        setup.segments.push(segment);
        (first_row, first_page) = (first_row + len, first_page + page_count);
    }
    setup.q = random.numbers(first_row * shape.heads * shape.head_dim);
    // A query of zeros weighs all tokens that it sees alike, and no others.
    setup.q.iter_mut().take(shape.head_dim).for_each(|element| *element = 0.0);
    setup
}

impl Setup {
    /// Writes all tokens of a segment's sequence.
    fn fill(&mut self, segment: &Segment, random: &mut Random) {
        let tokens = segment.first_position + segment.len;
        let slot = |token: usize| {
            let page = self.pages[segment.first_page + token / self.shape.page_tokens] as usize;
            (page * self.shape.page_tokens + token % self.shape.page_tokens) as u32
        };
        let slots: Vec<u32> = (0..tokens).map(slot).collect();
        let width = self.shape.kv_heads * self.shape.head_dim;
        let [k, v] = [(); 2].map(|()| random.numbers(tokens * width));
        let kv = KvPages { keys: &self.keys, values: &self.values };
        write_kv(kv, &tensor(&k, width), &tensor(&v, width), &slots).unwrap();
        let stands_for = |side, rows: &[f32]| match self.shape.kv_type {
            KvType::F32 => rows.to_vec(),
            KvType::Int8 => reference::rounded(side, rows, self.shape.head_dim),
        };
        let shape = self.reference_shape();
        let (k, v) = (stands_for(KvSide::Keys, &k), stands_for(KvSide::Values, &v));
        reference::write_keys(&mut self.reference_keys, &k, &slots, &shape);
        reference::write_values(&mut self.reference_values, &v, &slots, &shape);
    }

    fn reference_shape(&self) -> Shape {
        Shape { kv_type: KvType::F32, ..self.shape }
    }

    /// Attention over the given segments, whose rows index the queries of the setup.
    fn run(&self, segments: &[Segment]) -> Vec<f32> {
        let width = self.shape.heads * self.shape.head_dim;
        let out = poisoned(self.q.len() / width + 1, width);
        let kv = KvPages { keys: &self.keys, values: &self.values };
        let table = PageTable { segments, pages: &self.pages };
        paged_attention(&out, &tensor(&self.q, width), kv, table, self.options).unwrap();
        values(&out)
    }
}

#[test]
fn attention_matches_its_reference() {
    for (backend, (seed, case)) in on_all_backends(cases()) {
        let setup = backend.with(|| set_up(&case, seed as u64 + 1));
        let mut expected = vec![f32::NAN; setup.q.len()];
        let (keys, values) = (&setup.reference_keys, &setup.reference_values);
        let inputs = Inputs { q: &setup.q, keys, values };
        let table = PageTable { segments: &setup.segments, pages: &setup.pages };
        let shape = setup.reference_shape();
        reference::paged_attention(&mut expected, inputs, table, &shape, setup.options);
        let found = backend.with(|| setup.run(&setup.segments));
        let tolerance = match (setup.shape.kv_type, backend) {
            (KvType::F32, _) => 3e-6,
            // Weights times the scales of values are rounded to bf16: by up to one part in 256.
            (KvType::Int8, backend) if backend.is_cuda() => 4e-3,
            // Queries and weights are rounded to one part in 16319 of their largest.
            (KvType::Int8, _) => 3e-4,
        };
        let case = format!("{backend} {:?} {:?} {:?}", case.shape, case.window, case.segments);
        compare(&case, &found, &expected, &vec![1.0; expected.len()], tolerance);
    }
}

#[test]
fn a_row_has_the_same_bits_alone_in_chunks_and_in_a_batch() {
    let pools: Vec<_> = [1, 2, 3].map(|threads| Arc::new(Pool::new(threads).unwrap())).into();
    for (backend, (seed, case)) in on_all_backends(cases()) {
        let setup = backend.with(|| set_up(&case, seed as u64 + 1));
        let width = setup.shape.heads * setup.shape.head_dim;
        let whole = backend.with(|| setup.run(&setup.segments));
        for (index, chunk) in [1, 3, 17].into_iter().enumerate() {
            for segment in &setup.segments {
                for start in (0..segment.len).step_by(chunk) {
                    // Emulated, the first and the last chunk of a segment take long enough.
                    if backend.is_gpu() && start > 0 && start + chunk < segment.len {
                        continue;
                    }
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
                    assert!(same, "{backend} {:?}: {part:?}", case.shape);
                }
            }
        }
    }
}

/// What rows become once some tokens' keys and values have these elements.
fn overwritten(case: &Case, tokens: Range<usize>, [key, value]: [f32; 2]) -> Vec<f32> {
    let setup = set_up(case, 11);
    let shape = setup.shape;
    let width = shape.kv_heads * shape.head_dim;
    let [k, v] = [key, value].map(|element| tensor(&vec![element; tokens.len() * width], width));
    let slot = |token| setup.pages[token / shape.page_tokens] as usize * shape.page_tokens;
    let slots = tokens.map(|token| (slot(token) + token % shape.page_tokens) as u32);
    let kv = KvPages { keys: &setup.keys, values: &setup.values };
    write_kv(kv, &k, &v, &slots.collect::<Vec<_>>()).unwrap();
    setup.run(&setup.segments)
}

/// A row is no number throughout if it sees one of the tokens, and else as if they were numbers.
fn assert_contained(case: &Case, tokens: &Range<usize>, name: &str) {
    let width = case.shape.heads * case.shape.head_dim;
    let (first, len) = case.segments[0];
    let clean = overwritten(case, tokens.clone(), [0.5; 2]);
    for poison in [[f32::NAN, 0.5], [0.5, f32::NAN]] {
        let found = overwritten(case, tokens.clone(), poison);
        for (row, position) in (first..first + len).enumerate() {
            let start = case.window.map_or(0, |window| (position + 1).saturating_sub(window));
            let range = row * width..(row + 1) * width;
            let contained = match start < tokens.end && tokens.start <= position {
                true => found[range].iter().all(|value| value.is_nan()),
                false => bits(&found[range.clone()]) == bits(&clean[range]),
            };
            assert!(contained, "{name}, {:?} {poison:?}: position {position}", case.shape);
        }
    }
}

#[test]
fn what_is_no_number_reaches_the_rows_that_see_it_and_no_others() {
    let pools: Vec<_> = [1, 2].map(|threads| Arc::new(Pool::new(threads).unwrap())).into();
    let shape = [6, 2, 16, 64];
    // A token that begins a part, one that some rows have in their window, a whole part.
    let cases = || {
        [
            (case(shape, None, &[(500, 15)]), 512..513),
            (case(shape, Some(20), &[(500, 40)]), 508..509),
            (case(shape, None, &[(500, 15)]), 0..512),
        ]
    };
    let all = cases().into_iter().chain(cases().map(|(case, tokens)| (coded(case), tokens)));
    for (case, tokens) in all {
        for backend in Backend::all() {
            let pools = if backend.is_gpu() { &pools[..1] } else { &pools };
            for pool in pools {
                let name = format!("{backend}, {} threads", pool.threads());
                Pool::with(pool, || backend.with(|| assert_contained(&case, &tokens, &name)));
            }
        }
    }
}

#[test]
fn equal_keys_give_the_mean_of_the_values() {
    Backend::all().into_iter().for_each(|backend| backend.with(assert_equal_keys_give_the_mean));
}

fn assert_equal_keys_give_the_mean() {
    let shape = [1, 1, 16, 16];
    let setup = set_up(&case(shape, None, &[(0, 3)]), 1);
    let kv = KvPages { keys: &setup.keys, values: &setup.values };
    let slots: Vec<u32> = (0..3).map(|token| setup.pages[0] * 16 + token).collect();
    let v: Vec<f32> = (0..48).map(|index| (index / 16) as f32).collect();
    write_kv(kv, &tensor(&[0.5; 48], 16), &tensor(&v, 16), &slots).unwrap();
    let found = setup.run(&setup.segments);
    for (row, mean) in [0.0, 0.5, 1.0].into_iter().enumerate() {
        assert!(found[row * 16..][..16].iter().all(|value| (value - mean).abs() < 1e-6));
    }
}

#[cfg(any(feature = "cuda", feature = "emulate", feature = "metal"))]
#[test]
fn what_gpus_have_no_kernel_for_is_refused_by_name() {
    use candle_core::DType;

    let run = |head_dim: usize, skip: usize| {
        let pool = Tensor::zeros(16 * head_dim + skip, DType::F32, &device()).unwrap();
        let pool = pool.narrow(0, skip, 16 * head_dim).unwrap();
        let keys = pool.reshape((1, 1, 16, head_dim)).unwrap();
        let values = Tensor::zeros((1, 1, 16, head_dim), DType::F32, &device()).unwrap();
        let (out, q) = (poisoned(1, head_dim), tensor(&vec![0.5; head_dim], head_dim));
        let segment = Segment { len: 1, page_count: 1, ..Segment::default() };
        let table = PageTable { segments: &[segment], pages: &[0] };
        let options = AttentionOptions { scale: 1.0, window: None };
        paged_attention(&out, &q, KvPages { keys: &keys, values: &values }, table, options)
    };
    for backend in Backend::all().into_iter().filter(|backend| backend.is_gpu()) {
        let error = backend.with(|| run(260, 0)).unwrap_err().to_string();
        assert_eq!(error, "paged_attention: keys must be heads of at most 256, found 260");
        let error = backend.with(|| run(64, 2)).unwrap_err().to_string();
        let expected =
            "paged_attention: keys must be starting at a multiple of 4 elements, found 2";
        assert_eq!(error, expected);
        assert!(backend.with(|| run(64, 4)).is_ok() && backend.with(|| run(65, 2)).is_ok());
    }
}

#[test]
fn segments_that_point_outside_are_refused() {
    let setup = set_up(&case([2, 1, 16, 16], None, &[(0, 4), (20, 2)]), 1);
    let kv = KvPages { keys: &setup.keys, values: &setup.values };
    let (q, out) = (tensor(&setup.q, 32), poisoned(6, 32));
    let run = |segments: &[Segment], pages: &[u32], options| {
        paged_attention(&out, &q, kv, PageTable { segments, pages }, options)
    };
    let good = setup.segments[1];
    let bad = [
        Segment { first_row: 5, ..good },
        Segment { first_page: 2, ..good },
        Segment { page_count: 1, ..good },
        Segment { first_position: usize::MAX, ..good },
        Segment { len: usize::MAX, ..good },
    ];
    for segment in bad {
        let found = run(&[segment], &setup.pages, setup.options);
        assert!(matches!(found, Err(Error::Shape { .. })), "{segment:?}");
    }
    let overlapping = [setup.segments[0], Segment { first_row: 3, ..good }];
    assert!(matches!(run(&overlapping, &setup.pages, setup.options), Err(Error::Shape { .. })));
    assert!(matches!(run(&[good], &[0, 1, 9], setup.options), Err(Error::Index { .. })));
    let blind = AttentionOptions { window: Some(0), ..setup.options };
    assert!(matches!(run(&[good], &setup.pages, blind), Err(Error::Shape { .. })));
    assert!(run(&[good], &setup.pages, setup.options).is_ok());
}
