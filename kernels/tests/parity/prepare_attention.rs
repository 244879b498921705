//! Rows of the table of `prepare_attention`: queries against the definition, and everything against the
//! operators that it stands for, bit by bit.

use candle_core::Tensor;
use sconce_kernels::attention::{KvSide, KvType};
use sconce_kernels::prepare_attention::reference;
use sconce_kernels::rope::Angles;
use sconce_kernels::{
    AttentionRows, Error, HeadNorms, KvPages, RopeLayout, prepare_attention, rms_norm, rope,
    write_kv, write_rows,
};

use crate::common::{
    Backend, Random, bits, compare, device, displaced, poisoned, tensor, values, vector,
};

const EPS: f32 = 1e-6;
const PAGE_TOKENS: usize = 16;
const PAGES: usize = 3;

/// Operands of a call.
struct Case {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    half: usize,
    kv_type: KvType,
    slots: Vec<u32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
    norms: [Vec<f32>; 2],
}

/// Queries, with a row more than there is, and the words of the pages of keys and of values.
type Found = (Vec<f32>, [Vec<u32>; 2]);

impl Case {
    fn new([heads, kv_heads, dim, half]: [usize; 4], kv_type: KvType, slots: &[u32]) -> Self {
        let mut random = Random::new((dim * 10 + half + slots.len()) as u64);
        let rows = slots.len() + 1;
        Self {
            heads,
            kv_heads,
            dim,
            half,
            kv_type,
            slots: slots.to_vec(),
            q: random.numbers(rows * heads * dim),
            k: random.numbers(rows * kv_heads * dim),
            v: random.numbers(rows * kv_heads * dim),
            cos: random.numbers(rows * half),
            sin: random.numbers(rows * half),
            norms: [random.numbers(dim), random.numbers(dim)],
        }
    }

    /// Pages that are poison.
    fn pages(&self, side: KvSide) -> Tensor {
        let dims = (PAGES, self.kv_heads, PAGE_TOKENS, self.kv_type.row_len(side, self.dim));
        let pages = match self.kv_type {
            KvType::F32 => Tensor::full(f32::NAN, dims, &device()),
            KvType::Int8 => Tensor::full(u32::MAX, dims, &device()),
        };
        pages.unwrap().contiguous().unwrap()
    }

    fn words(&self, pages: &Tensor) -> Vec<u32> {
        match self.kv_type {
            KvType::F32 => bits(&values(pages)),
            KvType::Int8 => pages.flatten_all().unwrap().to_vec1().unwrap(),
        }
    }

    /// Runs `operator` with queries to write, rows that `place` makes, norms, and pages.
    fn run_with(
        &self,
        place: fn(&[f32], usize) -> Tensor,
        operator: impl FnOnce(&Tensor, AttentionRows<'_>, HeadNorms<'_>, KvPages<'_>),
    ) -> Found {
        let (width, kv_width) = (self.heads * self.dim, self.kv_heads * self.dim);
        let (keys, values_) = (self.pages(KvSide::Keys), self.pages(KvSide::Values));
        let queries = poisoned(self.slots.len() + 1, width);
        let rows = AttentionRows {
            q: &place(&self.q, width),
            k: &place(&self.k, kv_width),
            v: &place(&self.v, kv_width),
            cos: &place(&self.cos, self.half),
            sin: &place(&self.sin, self.half),
        };
        let norms = HeadNorms { q: &vector(&self.norms[0]), k: &vector(&self.norms[1]), eps: EPS };
        operator(&queries, rows, norms, KvPages { keys: &keys, values: &values_ });
        (values(&queries), [self.words(&keys), self.words(&values_)])
    }

    fn run(&self, place: fn(&[f32], usize) -> Tensor, normed: bool) -> Found {
        self.run_with(place, |queries, rows, norms, kv| {
            let norms = normed.then_some(norms);
            prepare_attention(queries, rows, norms, kv, &self.slots).unwrap();
        })
    }

    /// One operator after another.
    fn apart(&self, normed: bool) -> Found {
        let count = self.slots.len();
        self.run_with(tensor, |queries, rows, norms, kv| {
            let keys = poisoned(count + 1, self.kv_heads * self.dim);
            for (out, x, weight) in [(queries, rows.q, norms.q), (&keys, rows.k, norms.k)] {
                match normed {
                    true => rms_norm(out, x, weight, EPS, count).unwrap(),
                    false => {
                        let live = count * x.dims()[1];
                        let copied = &values(x)[..live];
                        write_rows(out, copied).unwrap();
                    }
                }
                rope(out, rows.cos, rows.sin, self.dim, RopeLayout::Half, count).unwrap();
            }
            write_kv(kv, &keys, rows.v, &self.slots).unwrap();
        })
    }
}

fn cases() -> Vec<Case> {
    let f32s: [([usize; 4], &[u32]); 6] = [
        ([1, 1, 2, 1], &[0]),
        ([4, 2, 16, 2], &[17, 3, 40]),
        ([3, 1, 10, 5], &[5, 6]),
        ([2, 2, 100, 1], &[47]),
        ([2, 1, 256, 32], &[1, 0]),
        ([5, 1, 64, 32], &[]),
    ];
    let coded: [([usize; 4], &[u32]); 5] = [
        ([2, 1, 16, 8], &[33]),
        ([3, 1, 80, 20], &[2, 46]),
        ([2, 2, 112, 56], &[9]),
        ([1, 1, 128, 64], &[31, 32, 0]),
        ([2, 1, 256, 32], &[20, 21]),
    ];
    let of = |kv_type| move |(dims, slots)| Case::new(dims, kv_type, slots);
    f32s.map(of(KvType::F32)).into_iter().chain(coded.map(of(KvType::Int8))).collect()
}

#[test]
fn prepared_queries_match_the_reference() {
    for case in cases() {
        let live = case.slots.len();
        let angles = Angles {
            cos: &case.cos[..live * case.half],
            sin: &case.sin[..live * case.half],
            half: case.half,
        };
        for normed in [false, true] {
            let norm = normed.then_some((case.norms[0].as_slice(), EPS));
            let q = &case.q[..live * case.heads * case.dim];
            let expected = reference::heads(q, norm, angles, case.dim);
            let magnitudes = vec![4.0; expected.len()];
            for backend in Backend::all() {
                let (queries, _) = backend.with(|| case.run(tensor, normed));
                let name = format!("{backend} {}x{}, normed {normed}", case.heads, case.dim);
                compare(&name, &queries, &expected, &magnitudes, 2e-6);
            }
        }
    }
}

#[test]
fn rows_are_prepared_with_the_bits_of_the_operators_apart() {
    for case in cases() {
        for normed in [false, true] {
            for backend in Backend::all() {
                let name = format!("{backend} {}x{}, normed {normed}", case.heads, case.dim);
                let expected = backend.with(|| case.apart(normed));
                for place in [tensor, displaced] {
                    let found = backend.with(|| case.run(place, normed));
                    assert_eq!(bits(&found.0), bits(&expected.0), "{name}: queries");
                    assert!(found.1 == expected.1, "{name}: pages");
                }
            }
        }
    }
}

#[test]
fn rows_that_do_not_fit_are_refused() {
    let case = Case::new([2, 1, 8, 4], KvType::F32, &[3]);
    case.run_with(tensor, |queries, rows, norms, kv| {
        let run = |rows, norms, slots: &[u32]| {
            prepare_attention(queries, rows, Some(norms), kv, slots).unwrap_err()
        };
        let outside = run(rows, norms, &[48]);
        assert!(matches!(outside, Error::Index { operand: "slots", .. }), "{outside}");
        let wide = poisoned(2, 5);
        let found = run(AttentionRows { cos: &wide, sin: &wide, ..rows }, norms, &[3]);
        assert!(matches!(found, Error::Shape { operand: "cos", .. }), "{found}");
        let short = vector(&[1.0; 7]);
        let found = run(rows, HeadNorms { k: &short, ..norms }, &[3]);
        assert!(matches!(found, Error::Shape { operand: "k norm", .. }), "{found}");
        let found = run(AttentionRows { q: queries, ..rows }, norms, &[3]);
        assert!(matches!(found, Error::Aliased { operand: "q", .. }), "{found}");
    });
}

#[cfg(any(feature = "cuda", feature = "emulate", feature = "metal"))]
#[test]
fn heads_wider_than_a_warp_holds_are_refused() {
    let case = Case::new([1, 1, 260, 2], KvType::F32, &[0]);
    for backend in Backend::all().into_iter().filter(|backend| backend.is_gpu()) {
        case.run_with(tensor, |queries, rows, norms, kv| {
            let run = || prepare_attention(queries, rows, Some(norms), kv, &[0]);
            let found = backend.with(run).unwrap_err().to_string();
            assert!(found.contains("heads of at most 256 on a GPU"), "{found}");
        });
    }
}
