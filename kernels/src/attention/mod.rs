//! Causal attention over keys and values in pages (Kwon et al., "PagedAttention", 2023), with
//! grouped query heads and a sliding window.
//!
//! A block is what one page holds for one head. The order inside it is the backend's own, as
//! [`KvType`] has it: on the CPU one load of keys serves several tokens, on GPUs what a token has is
//! read as it lies. Copy whole pages only.

pub(crate) mod blocks;
mod cpu;
pub(crate) mod gpu;
mod kv_type;
pub(crate) mod operands;
pub(crate) mod page;
pub mod reference;
pub(crate) mod write;

use candle_core::Tensor;

pub use self::kv_type::{BlockOrder, KvSide, KvType};
use crate::access::{View, check, distinct, write};
use crate::error::Result;
use crate::gpu::Gpu;

/// The pages of one layer.
#[derive(Debug, Clone, Copy)]
pub struct KvPages<'a> {
    /// `[pages, kv_heads, page_tokens, row_len]`, where [`KvType::row_len`] of `key_dim` elements is
    /// `key_dim` in f32; inside a block in the backend's order.
    pub keys: &'a Tensor,
    /// The same of `value_dim` elements; both widths are `head_dim` for [`paged_attention`]. Keys
    /// and values are of one type.
    pub values: &'a Tensor,
}

/// Consecutive rows of a step that are consecutive tokens of one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Segment {
    /// Row of the first token in the step.
    pub first_row: usize,
    /// Number of tokens.
    pub len: usize,
    /// Position of the first token in its sequence.
    pub first_position: usize,
    /// Where the sequence's pages begin in [`PageTable::pages`]; its page `p` holds the positions
    /// from `p * page_tokens` on. Pages that lie wholly before the window are not read.
    pub first_page: usize,
    /// Number of the sequence's pages, enough for its last token.
    pub page_count: usize,
}

/// Which pages each segment reads.
#[derive(Debug, Clone, Copy)]
pub struct PageTable<'a> {
    /// The segments of the step; rows outside of all segments are not written.
    pub segments: &'a [Segment],
    /// Page numbers of all segments' sequences, sequence after sequence.
    pub pages: &'a [u32],
}

/// What does not change from step to step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionOptions {
    /// Factor on the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// A token sees itself and `window - 1` tokens before it; all of them if `None`.
    pub window: Option<usize>,
}

/// Writes the keys and values of a step's rows into their slots.
///
/// `k` is `[capacity, kv_heads * key_dim]` and `v` is `[capacity, kv_heads * value_dim]`; row `r`
/// goes to slot `slots[r]`, which is `page * page_tokens + offset in the page`. As many rows as there
/// are slots.
///
/// # Errors
/// A slot outside of the pages, shapes that do not fit, tensors that are not contiguous or of other
/// types than f32 and that of the pages, a device without an implementation, tensors that share
/// storage.
pub fn write_kv(kv: KvPages<'_>, k: &Tensor, v: &Tensor, slots: &[u32]) -> Result<()> {
    const OP: &str = "write_kv";
    let [key_shape, value_shape] = operands::pages(OP, kv)?;
    operands::new_rows(OP, "k", &key_shape, k, slots)?;
    operands::new_rows(OP, "v", &value_shape, v, slots)?;
    distinct(OP, kv.keys, &[("values", kv.values), ("k", k), ("v", v)])?;
    distinct(OP, kv.values, &[("k", k), ("v", v)])?;
    if let Some(gpu) = Gpu::of(kv.keys) {
        return gpu::write_kv(gpu, kv, [k, v], slots, [&key_shape, &value_shape]);
    }
    let (k, v) = (View::new(OP, "k", k)?, View::new(OP, "v", v)?);
    let (k, v) = (k.slice()?, v.slice()?);
    match key_shape.kv_type {
        KvType::F32 => {
            write(OP, kv.keys, |keys| {
                write::keys(keys, k, slots, &key_shape);
                Ok(())
            })?;
            write(OP, kv.values, |values| {
                write::values(values, v, slots, &value_shape);
                Ok(())
            })
        }
        KvType::Int8 => {
            write(OP, kv.keys, |keys| {
                write::key_codes(keys, k, slots, &key_shape);
                Ok(())
            })?;
            write(OP, kv.values, |values| {
                write::value_codes(values, v, slots, &value_shape);
                Ok(())
            })
        }
    }
}

/// `out = softmax(scale * q k^T) v` for every row of every segment, over the tokens it may see.
///
/// `out` and `q` are `[capacity, heads * head_dim]`; query head `h` reads key head
/// `h / (heads / kv_heads)`. The keys and values of the segments' own tokens must have been written.
/// A row's result depends on nothing but its own query and the tokens it sees.
///
/// # Errors
/// A segment whose rows, pages or positions lie outside of what they index, shapes that do not fit,
/// tensors that are not contiguous or of other types than f32 and that of the pages, a device
/// without an implementation, tensors that share storage with `out`.
pub fn paged_attention(
    out: &Tensor,
    q: &Tensor,
    kv: KvPages<'_>,
    table: PageTable<'_>,
    options: AttentionOptions,
) -> Result<()> {
    const OP: &str = "paged_attention";
    let [shape, values] = operands::pages(OP, kv)?;
    check(OP, "values", values == shape, || {
        (format!("{:?}", kv.keys.dims()), format!("{:?}", kv.values.dims()))
    })?;
    check(OP, "window", options.window != Some(0), || ("at least 1".to_owned(), "0".to_owned()))?;
    let shape = operands::queries(OP, shape, out, q, table)?;
    distinct(OP, out, &[("q", q), ("keys", kv.keys), ("values", kv.values)])?;
    if let Some(gpu) = Gpu::of(out) {
        return gpu::paged_attention(gpu, out, q, kv, table, (&shape, options));
    }
    let q = View::new(OP, "q", q)?;
    let keys = View::new(OP, "keys", kv.keys)?;
    let values = View::new(OP, "values", kv.values)?;
    let pages = match shape.kv_type {
        KvType::F32 => Pages::F32 { keys: keys.elements()?, values: values.elements()? },
        KvType::Int8 => Pages::Int8 { keys: keys.elements()?, values: values.elements()? },
    };
    let inputs = Inputs { q: q.slice()?, pages };
    write(OP, out, |out| {
        cpu::paged_attention(out, inputs, table, &shape, options);
        Ok(())
    })
}

/// Sizes of the pages of keys or of values, and of a query row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Pages in the pool.
    pub pages: usize,
    /// Heads of the keys and values.
    pub kv_heads: usize,
    /// Tokens of a page.
    pub page_tokens: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Heads of the queries, a multiple of `kv_heads`.
    pub heads: usize,
    /// How a page holds them.
    pub kv_type: KvType,
}

impl Shape {
    /// Where the block of a page and a head starts.
    pub fn block(&self, side: KvSide, page: usize, kv_head: usize) -> usize {
        (page * self.kv_heads + kv_head) * self.block_len(side)
    }

    /// Elements of a block, or words.
    pub fn block_len(&self, side: KvSide) -> usize {
        self.page_tokens * self.kv_type.row_len(side, self.head_dim)
    }

    /// Page and offset of a slot.
    pub fn locate(&self, slot: usize) -> (usize, usize) {
        (slot / self.page_tokens, slot % self.page_tokens)
    }

    /// Where element `dim` of the key of token `offset` lies inside its block, in f32 on the CPU.
    pub fn key_in_block(&self, offset: usize, dim: usize) -> usize {
        dim * self.page_tokens + offset
    }

    /// Where element `dim` of the value of token `offset` lies inside its block, in f32 on the CPU.
    pub fn value_in_block(&self, offset: usize, dim: usize) -> usize {
        offset * self.head_dim + dim
    }
}

/// What attention reads.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// `[capacity, heads * head_dim]`.
    pub q: &'a [f32],
    /// All pages.
    pub pages: Pages<'a>,
}

/// All pages of keys and all pages of values, block after block.
#[derive(Debug, Clone, Copy)]
pub enum Pages<'a> {
    /// Elements.
    F32 {
        /// Keys.
        keys: &'a [f32],
        /// Values.
        values: &'a [f32],
    },
    /// Words of codes, and scales.
    Int8 {
        /// Keys.
        keys: &'a [u32],
        /// Values.
        values: &'a [u32],
    },
}
