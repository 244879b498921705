//! What must hold before attention touches memory.

use candle_core::Tensor;

use super::{KvPages, PageTable, Segment, Shape};
use crate::access::{check, check_dim, rows_of};
use crate::error::{Error, Result};
use crate::gather_rows::check_indices;

/// The shape of a pool of pages, with as many query heads as key heads.
pub(super) fn pages(op: &'static str, kv: KvPages<'_>) -> Result<Shape> {
    let wrong = |operand, tensor: &Tensor| Error::Shape {
        op,
        operand,
        expected: "[pages, kv_heads, page_tokens, head_dim], equal for keys and values".to_owned(),
        found: format!("{:?}", tensor.dims()),
    };
    let [pages, kv_heads, page_tokens, head_dim] = *kv.keys.dims() else {
        return Err(wrong("keys", kv.keys));
    };
    if kv_heads == 0 || page_tokens == 0 || head_dim == 0 {
        return Err(wrong("keys", kv.keys));
    }
    if kv.values.dims() != kv.keys.dims() {
        return Err(wrong("values", kv.values));
    }
    Ok(Shape { pages, kv_heads, page_tokens, head_dim, heads: kv_heads })
}

/// Rows of new keys and values, one for each slot.
pub(super) fn new_rows(
    op: &'static str,
    shape: &Shape,
    k: &Tensor,
    v: &Tensor,
    slots: &[u32],
) -> Result<()> {
    let width = shape.kv_heads * shape.head_dim;
    check_dim(op, "k", rows_of(op, "k", k, slots.len())?.1, width)?;
    check_dim(op, "v", rows_of(op, "v", v, slots.len())?.1, width)?;
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
    check_indices(op, "pages", table.pages, shape.pages)?;
    let rows = out_rows.min(q_rows);
    let mut next_row = 0;
    for segment in table.segments {
        next_row = self::segment(op, segment, next_row, rows, table.pages.len(), &shape)?;
    }
    Ok(Shape { heads, ..shape })
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
