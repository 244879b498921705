//! What must hold before attention touches memory.

use candle_core::Tensor;

use super::{KvPages, KvSide, KvType, PageTable, Segment, Shape};
use crate::access::{check, check_dim, contiguous, rows_of};
use crate::error::{Error, Result};
use crate::gather_rows::check_indices;

/// The shape of the pages of keys and of values, with as many query heads as key heads. They may
/// differ in the width of a head only, and have no gaps.
pub(crate) fn pages(op: &'static str, kv: KvPages<'_>) -> Result<[Shape; 2]> {
    let keys = pool(op, "keys", KvSide::Keys, kv.keys)?;
    let values = pool(op, "values", KvSide::Values, kv.values)?;
    if keys.kv_type != values.kv_type {
        let (expected, found) = (keys.kv_type.dtype(), values.kv_type.dtype());
        return Err(Error::DType { op, operand: "values", expected, found });
    }
    check(op, "values", Shape { head_dim: keys.head_dim, ..values } == keys, || {
        (
            format!("[{}, {}, {}, value_dim]", keys.pages, keys.kv_heads, keys.page_tokens),
            format!("{:?}", kv.values.dims()),
        )
    })?;
    Ok([keys, values])
}

fn pool(op: &'static str, operand: &'static str, side: KvSide, tensor: &Tensor) -> Result<Shape> {
    let kv_type = KvType::of(tensor.dtype()).ok_or_else(|| Error::DType {
        op,
        operand,
        expected: KvType::F32.dtype(),
        found: tensor.dtype(),
    })?;
    if let [pages, kv_heads, page_tokens, row_len] = *tensor.dims()
        && let Some(head_dim) = kv_type.dim(side, row_len)
        && kv_heads > 0
        && page_tokens > 0
        && head_dim > 0
        && kv_type.fits(page_tokens, head_dim)
    {
        contiguous(op, operand, tensor)?;
        return Ok(Shape { pages, kv_heads, page_tokens, head_dim, heads: kv_heads, kv_type });
    }
    Err(Error::Shape {
        op,
        operand,
        expected: match kv_type {
            KvType::F32 => "[pages, kv_heads, page_tokens, head_dim]".to_owned(),
            KvType::Int8 => "[pages, kv_heads, a multiple of 16, words of a head]".to_owned(),
        },
        found: format!("{:?}", tensor.dims()),
    })
}

/// Rows of new keys or values, one for each slot.
pub(crate) fn new_rows(
    op: &'static str,
    operand: &'static str,
    shape: &Shape,
    rows: &Tensor,
    slots: &[u32],
) -> Result<()> {
    let width = shape.kv_heads * shape.head_dim;
    check_dim(op, operand, rows_of(op, operand, rows, slots.len())?.1, width)?;
    check_indices(op, "slots", slots, shape.pages * shape.page_tokens)
}

/// Queries and outputs against the pages and the table; completes the shape.
pub(super) fn queries(
    op: &'static str,
    shape: Shape,
    out: &Tensor,
    q: &Tensor,
    table: PageTable<'_>,
) -> Result<Shape> {
    let (out_rows, width) = rows_of(op, "out", out, 0)?;
    let (q_rows, q_width) = rows_of(op, "q", q, 0)?;
    check_dim(op, "q", q_width, width)?;
    let heads = width / shape.head_dim;
    let fits = heads * shape.head_dim == width && heads > 0 && heads.is_multiple_of(shape.kv_heads);
    check(op, "q", fits, || {
        (
            format!("[rows, a multiple of {} * {}]", shape.kv_heads, shape.head_dim),
            format!("[rows, {width}]"),
        )
    })?;
    self::table(op, table, out_rows.min(q_rows), &shape)?;
    Ok(Shape { heads, ..shape })
}

/// The segments and pages of a step of at most `rows` rows.
pub(crate) fn table(
    op: &'static str,
    table: PageTable<'_>,
    rows: usize,
    shape: &Shape,
) -> Result<()> {
    check_indices(op, "pages", table.pages, shape.pages)?;
    let mut next_row = 0;
    for segment in table.segments {
        next_row = self::segment(op, segment, next_row, rows, table.pages.len(), shape)?;
    }
    Ok(())
}

/// Checks one segment and returns the row after its last: segments are in order and disjoint, so
/// that threads can write them at the same time.
fn segment(
    op: &'static str,
    segment: &Segment,
    next_row: usize,
    rows: usize,
    table_len: usize,
    shape: &Shape,
) -> Result<usize> {
    let end_row = segment.first_row.checked_add(segment.len);
    let end_page = segment.first_page.checked_add(segment.page_count);
    let end_position = segment.first_position.checked_add(segment.len);
    let held = segment.page_count.saturating_mul(shape.page_tokens);
    let fits = segment.first_row >= next_row
        && end_row.is_some_and(|end| end <= rows)
        && end_page.is_some_and(|end| end <= table_len)
        && end_position.is_some_and(|end| end <= held);
    check(op, "segments", fits, || {
        (
            format!(
                "in order within {rows} rows, {table_len} page table entries and the positions of \
                 their pages"
            ),
            format!("{segment:?}"),
        )
    })?;
    Ok(segment.first_row + segment.len)
}
