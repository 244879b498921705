//! What attention reads of a step's rows, in one call: norms of the heads of queries and keys, where a
//! model has them, the rotary embedding of both, and the new keys and values in their pages. As
//! `rms_norm`, `rope` and `write_kv` one after another, whose bits it has.

mod cpu;
mod gpu;
pub mod reference;

use candle_core::Tensor;

use crate::access::{View, check, check_dim, distinct, rows_of, vector_of, write};
use crate::attention::{KvPages, KvType, Shape, operands};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::rope::Angles;

const OP: &str = "prepare_attention";

/// A step's rows, as projected, and the angles of their positions.
#[derive(Debug, Clone, Copy)]
pub struct AttentionRows<'a> {
    /// `[capacity, heads * head_dim]`.
    pub q: &'a Tensor,
    /// `[capacity, kv_heads * head_dim]`.
    pub k: &'a Tensor,
    /// `[capacity, kv_heads * head_dim]`.
    pub v: &'a Tensor,
    /// `[capacity, rotary_dim / 2]`, as in [`rope`](crate::rope()); elements `i` and `i + half` of a
    /// head are turned together.
    pub cos: &'a Tensor,
    /// As `cos`.
    pub sin: &'a Tensor,
}

/// Norms of the heads of queries and keys.
#[derive(Debug, Clone, Copy)]
pub struct HeadNorms<'a> {
    /// Weight of the queries' norm, `[head_dim]`.
    pub q: &'a Tensor,
    /// Weight of the keys' norm, `[head_dim]`.
    pub k: &'a Tensor,
    /// Added to the mean of the squares.
    pub eps: f32,
}

/// Writes the queries of as many leading rows as there are slots to `queries`,
/// `[capacity, heads * head_dim]`, and their keys and values into the slots.
///
/// # Errors
/// Those of the operators that it stands for; on a GPU heads wider than 256.
pub fn prepare_attention(
    queries: &Tensor,
    rows: AttentionRows<'_>,
    norms: Option<HeadNorms<'_>>,
    kv: KvPages<'_>,
    slots: &[u32],
) -> Result<()> {
    let shape = shape(queries, rows, norms, kv, slots)?;
    let AttentionRows { q, k, v, cos, sin } = rows;
    let read = [("q", q), ("k", k), ("v", v), ("cos", cos), ("sin", sin)];
    let written = [("queries", queries), ("keys", kv.keys), ("values", kv.values)];
    for (index, (_, tensor)) in written.iter().enumerate() {
        distinct(OP, tensor, &read)?;
        distinct(OP, tensor, &written[index + 1..])?;
        if let Some(norms) = norms {
            distinct(OP, tensor, &[("q norm", norms.q), ("k norm", norms.k)])?;
        }
    }
    if let Some(gpu) = Gpu::of(queries) {
        return gpu::prepare_attention(gpu, queries, rows, norms, (kv, slots, &shape));
    }
    let view = |operand, tensor| View::new(OP, operand, tensor);
    let (q, k, v) = (view("q", q)?, view("k", k)?, view("v", v)?);
    let (cos, sin) = (view("cos", cos)?, view("sin", sin)?);
    let weights = match norms {
        Some(norms) => Some((view("q norm", norms.q)?, view("k norm", norms.k)?, norms.eps)),
        None => None,
    };
    let norms = match &weights {
        Some((q, k, eps)) => [Some((q.slice()?, *eps)), Some((k.slice()?, *eps))],
        None => [None, None],
    };
    let (half, angles) = (rows.cos.dims()[1], slots.len() * rows.cos.dims()[1]);
    let angles = Angles { cos: &cos.slice()?[..angles], sin: &sin.slice()?[..angles], half };
    let inputs = cpu::Inputs { q: q.slice()?, k: k.slice()?, v: v.slice()?, angles, norms };
    write(OP, queries, |queries| match shape.kv_type {
        KvType::F32 => write(OP, kv.keys, |keys| {
            write(OP, kv.values, |values| {
                cpu::prepare_f32(queries, [keys, values], inputs, slots, &shape);
                Ok(())
            })
        }),
        KvType::Int8 => write(OP, kv.keys, |keys| {
            write(OP, kv.values, |values| {
                cpu::prepare_int8(queries, [keys, values], inputs, slots, &shape);
                Ok(())
            })
        }),
    })
}

/// Checks all shapes, and the slots; completes the shape of the pages with the heads of queries.
fn shape(
    queries: &Tensor,
    rows: AttentionRows<'_>,
    norms: Option<HeadNorms<'_>>,
    kv: KvPages<'_>,
    slots: &[u32],
) -> Result<Shape> {
    let [shape, values] = operands::pages(OP, kv)?;
    let dim = shape.head_dim;
    check(OP, "values", values.head_dim == dim, || {
        (format!("heads of {dim}, as keys"), values.head_dim.to_string())
    })?;
    operands::new_rows(OP, "k", &shape, rows.k, slots)?;
    operands::new_rows(OP, "v", &shape, rows.v, slots)?;
    let (_, width) = rows_of(OP, "queries", queries, slots.len())?;
    check_dim(OP, "q", rows_of(OP, "q", rows.q, slots.len())?.1, width)?;
    check(OP, "q", width > 0 && width.is_multiple_of(dim), || {
        (format!("[rows, a multiple of {dim}]"), format!("[rows, {width}]"))
    })?;
    let (_, half) = rows_of(OP, "cos", rows.cos, slots.len())?;
    check_dim(OP, "sin", rows_of(OP, "sin", rows.sin, slots.len())?.1, half)?;
    check(OP, "cos", 2 * half <= dim, || {
        (format!("[rows, at most {}]", dim / 2), format!("[rows, {half}]"))
    })?;
    for (operand, weight) in
        norms.iter().flat_map(|norms| [("q norm", norms.q), ("k norm", norms.k)])
    {
        let found = vector_of(OP, operand, weight)?;
        check(OP, operand, found == dim, || (format!("[{dim}]"), format!("[{found}]")))?;
    }
    Ok(Shape { heads: width / dim, ..shape })
}
