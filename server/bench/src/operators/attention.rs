//! Attention: one token at a depth, as in decoding, and many, as in a prompt.

use candle_core::{CpuStorage, Device, Storage, Tensor};
use sconce_kernels::{
    AttentionOptions, KvPages, KvSide, KvType, PageTable, Segment, latent_attention, memory,
    paged_attention, write_kv,
};

use super::{Operator, expect_room, random};
use crate::error::Error;
use crate::runner::{Labels, Runner, Work};

/// Tokens of a page.
const PAGE_TOKENS: usize = 64;
/// Products with keys and values in 8 bits: queries and weights are in two halves of 8 bits.
const CODE_PLANES: f64 = 2.0;

/// One sequence that advances by `rows` tokens from `depth` on.
struct Step {
    segment: Segment,
    pages: Vec<u32>,
}

impl Step {
    fn new(rows: usize, depth: usize) -> Self {
        let page_count = (depth + rows).div_ceil(PAGE_TOKENS);
        let segment =
            Segment { first_row: 0, len: rows, first_position: depth, first_page: 0, page_count };
        Self { segment, pages: (0..page_count as u32).collect() }
    }

    fn table(&self) -> PageTable<'_> {
        PageTable { segments: std::slice::from_ref(&self.segment), pages: &self.pages }
    }

    /// Tokens that are read.
    fn positions(&self) -> usize {
        self.segment.first_position + self.segment.len
    }

    /// Pairs of a token and one it sees.
    fn pairs(&self) -> f64 {
        let Segment { len, first_position, .. } = self.segment;
        len as f64 * (first_position as f64 + (len as f64 + 1.0) / 2.0)
    }
}

/// Keys and values of several layers, `[pages, heads, tokens, row]` each.
struct Layers {
    layers: Vec<(Tensor, Tensor)>,
}

impl Layers {
    /// Pages for `step` in which every token has random keys and values, of so many elements in each
    /// of `heads` heads.
    fn new(
        runner: &Runner<'_>,
        step: &Step,
        heads: usize,
        (keys, values): (usize, usize),
        kv_type: KvType,
    ) -> Result<Self, Error> {
        let positions = step.pages.len() * PAGE_TOKENS;
        let slots: Vec<u32> = (0..positions as u32).collect();
        let (k, v) = (random(positions, heads * keys)?, random(positions, heads * values)?);
        let row_lens = row_lens(kv_type, (keys, values));
        let pool = |row_len| pages(&[step.pages.len(), heads, PAGE_TOKENS, row_len], kv_type);
        let layer = |_| {
            let (keys, values) = (pool(row_lens.0)?, pool(row_lens.1)?);
            write_kv(KvPages { keys: &keys, values: &values }, &k, &v, &slots)?;
            Ok((keys, values))
        };
        let bytes = positions as f64 * token_bytes(kv_type, heads, (keys, values));
        let layers = (0..runner.copies(bytes as usize)).map(layer);
        Ok(Self { layers: layers.collect::<Result<_, Error>>()? })
    }

    fn at(&self, call: usize) -> KvPages<'_> {
        let (keys, values) = &self.layers[call % self.layers.len()];
        KvPages { keys, values }
    }
}

/// Empty pages in memory like that of a model's pool: in huge pages where the system has them.
fn pages(dims: &[usize], kv_type: KvType) -> Result<Tensor, Error> {
    expect_room(dims)?;
    let pages = Tensor::zeros(dims, kv_type.dtype(), &Device::Cpu)?;
    match &*pages.storage_and_layout().0 {
        Storage::Cpu(CpuStorage::F32(values)) => memory::prefer_huge_pages(values),
        Storage::Cpu(CpuStorage::U32(words)) => memory::prefer_huge_pages(words),
        _ => {}
    }
    Ok(pages)
}

/// Bytes of a token of `heads` heads, whose keys and values have these elements.
fn token_bytes(kv_type: KvType, heads: usize, (keys, values): (usize, usize)) -> f64 {
    let (keys, values) = row_lens(kv_type, (keys, values));
    ((keys + values) * heads * size_of::<f32>()) as f64
}

/// Elements of tensors that a token takes in a head whose keys and values have these elements.
fn row_lens(kv_type: KvType, (keys, values): (usize, usize)) -> (usize, usize) {
    (kv_type.row_len(KvSide::Keys, keys), kv_type.row_len(KvSide::Values, values))
}

/// Attention with keys and values for groups of heads, in every storage that fits the heads.
pub(super) fn grouped(runner: &mut Runner<'_>) -> Result<(), Error> {
    let (sizes, options) = (runner.options().sizes, runner.options());
    let (heads, kv_heads, dim) = (sizes.heads, sizes.kv_heads, sizes.head_dim);
    let scale = (dim as f32).sqrt().recip();
    for (kv_type, name) in [(KvType::F32, "f32"), (KvType::Int8, "int8")] {
        if !kv_type.fits(PAGE_TOKENS, dim) {
            continue;
        }
        for (&depth, &rows) in pairs(&options.depths, &options.rows) {
            let (q, out) = (random(rows, heads * dim)?, random(rows, heads * dim)?);
            let step = Step::new(rows, depth);
            let layers = Layers::new(runner, &step, kv_heads, (dim, dim), kv_type)?;
            let labels = Labels {
                shape: format!("{heads}/{kv_heads} heads of {dim}, {name} kv"),
                rows,
                depth: Some(depth),
                ..Labels::default()
            };
            let macs = step.pairs() * (2 * heads * dim) as f64;
            let bytes = step.positions() as f64 * token_bytes(kv_type, kv_heads, (dim, dim));
            let work = match kv_type {
                KvType::F32 => Work { bytes, integer_macs: 0.0, float_macs: macs },
                KvType::Int8 => Work { bytes, integer_macs: CODE_PLANES * macs, float_macs: 0.0 },
            };
            runner.time(Operator::Attention, labels, work, |call| {
                let options = AttentionOptions { scale, window: None };
                Ok(paged_attention(&out, &q, layers.at(call), step.table(), options)?)
            })?;
        }
    }
    Ok(())
}

/// Attention over latents.
pub(super) fn latent(runner: &mut Runner<'_>) -> Result<(), Error> {
    let (sizes, options) = (runner.options().sizes, runner.options());
    let (heads, dim, rope) = (sizes.latent_heads, sizes.latent_dim, sizes.rope_dim);
    let scale = ((dim + rope) as f32).sqrt().recip();
    for (&depth, &rows) in pairs(&options.depths, &options.rows) {
        let (q, out) = (random(rows, heads * dim)?, random(rows, heads * dim)?);
        let q_rope = random(rows, heads * rope)?;
        let step = Step::new(rows, depth);
        let layers = Layers::new(runner, &step, 1, (rope, dim), KvType::F32)?;
        let labels = Labels {
            shape: format!("{heads} heads over {dim}+{rope}"),
            rows,
            depth: Some(depth),
            ..Labels::default()
        };
        let work = Work {
            bytes: step.positions() as f64 * token_bytes(KvType::F32, 1, (rope, dim)),
            integer_macs: 0.0,
            float_macs: step.pairs() * (heads * (2 * dim + rope)) as f64,
        };
        runner.time(Operator::LatentAttention, labels, work, |call| {
            let options = AttentionOptions { scale, window: None };
            let kv = layers.at(call);
            Ok(latent_attention(&out, &q, &q_rope, kv, step.table(), options)?)
        })?;
    }
    Ok(())
}

/// Every one of `a` with every one of `b`.
fn pairs<'a, T>(a: &'a [T], b: &'a [T]) -> impl Iterator<Item = (&'a T, &'a T)> {
    a.iter().flat_map(move |a| b.iter().map(move |b| (a, b)))
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use candle_core::DType;

    use super::*;
    use crate::Options;

    #[test]
    fn a_token_sees_itself_and_all_before_it() {
        let step = Step::new(3, 10);
        assert_eq!(step.pairs(), (11 + 12 + 13) as f64);
        assert_eq!((step.positions(), step.pages.len()), (13, 1));
        assert_eq!(Step::new(1, 0).pairs(), 1.0);
        assert_eq!(Step::new(1, 64).pages.len(), 2);
    }

    #[test]
    fn every_token_of_every_layer_has_keys_and_values() {
        let options = Options { cold: false, ..Options::default() };
        let mut heard = |_| ControlFlow::Continue(());
        let (runner, step) = (Runner::new(&options, &mut heard), Step::new(3, 70));
        for kv_type in [KvType::F32, KvType::Int8] {
            let layers = Layers::new(&runner, &step, 2, (32, 64), kv_type).unwrap().layers;
            let (keys, values) = &layers[0];
            for pages in [keys, values] {
                // No code of 8 bits is 0, no scale is, and hardly any random number.
                let empty = pages.flatten_all().unwrap().eq(0.0).unwrap().to_dtype(DType::F32);
                let empty = empty.unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
                let few = pages.elem_count() as f32 / 100.0;
                assert!(empty < few, "{kv_type:?} {:?}: {empty} are 0", pages.dims());
            }
        }
    }
}
