//! Operators that take rows one by one and hold nothing: norms, rope, gates, a table's rows. What
//! they read was just written, so it comes from caches, and their bytes a second may exceed what
//! memory gives.

use sconce_kernels::{Activation, RopeLayout};

use super::{Operator, constant, random};
use crate::error::Error;
use crate::runner::{Labels, Runner, Work};

/// Added to the mean of squares.
const EPS: f32 = 1e-5;

/// Work of `rows` rows of `dim`, of which `tensors` are read or written, with `macs` multiply-adds
/// an element.
fn work(rows: usize, dim: usize, tensors: usize, macs: usize) -> Work {
    let elements = (rows * dim) as f64;
    Work {
        bytes: elements * (tensors * size_of::<f32>()) as f64,
        integer_macs: 0.0,
        float_macs: elements * macs as f64,
    }
}

fn labels(shape: String, rows: usize) -> Labels {
    Labels { shape, rows, ..Labels::default() }
}

/// The norm of the residual stream.
pub(super) fn rms_norm(runner: &mut Runner<'_>) -> Result<(), Error> {
    let dim = runner.options().sizes.hidden;
    let weight = constant(1.0, dim)?;
    for &rows in &runner.options().rows {
        let (x, out) = (random(rows, dim)?, random(rows, dim)?);
        let labels = labels(dim.to_string(), rows);
        runner.time(Operator::RmsNorm, labels, work(rows, dim, 2, 2), |_| {
            Ok(sconce_kernels::rms_norm(&out, &x, &weight, EPS, rows)?)
        })?;
    }
    Ok(())
}

/// The gated norm of the heads of a gated delta layer.
pub(super) fn rms_norm_gated(runner: &mut Runner<'_>) -> Result<(), Error> {
    let sizes = runner.options().sizes;
    let (heads, width) = (sizes.value_heads, sizes.value_dim);
    let (dim, weight) = (heads * width, constant(1.0, width)?);
    for &rows in &runner.options().rows {
        let (x, gate, out) = (random(rows, dim)?, random(rows, dim)?, random(rows, dim)?);
        let labels = labels(format!("{heads} heads of {width}"), rows);
        runner.time(Operator::RmsNormGated, labels, work(rows, dim, 3, 3), |_| {
            Ok(sconce_kernels::rms_norm_gated(&out, &x, &gate, &weight, EPS, rows)?)
        })?;
    }
    Ok(())
}

/// The rotary embedding of queries.
pub(super) fn rope(runner: &mut Runner<'_>) -> Result<(), Error> {
    let sizes = runner.options().sizes;
    let (heads, width) = (sizes.heads, sizes.head_dim);
    let dim = heads * width;
    for &rows in &runner.options().rows {
        let x = random(rows, dim)?;
        // Of one angle everywhere: rows must not grow however often they are turned.
        let turned = |value: f32| -> Result<_, Error> {
            Ok(constant(value, rows * width / 2)?.reshape((rows, width / 2))?)
        };
        let (cos, sin) = (turned(0.8)?, turned(0.6)?);
        let labels = labels(format!("{heads} heads of {width}"), rows);
        runner.time(Operator::Rope, labels, work(rows, dim, 2, 2), |_| {
            Ok(sconce_kernels::rope(&x, &cos, &sin, width, RopeLayout::Half, rows)?)
        })?;
    }
    Ok(())
}

/// The gate of an MLP.
pub(super) fn gate_mul(runner: &mut Runner<'_>) -> Result<(), Error> {
    let dim = runner.options().sizes.intermediate;
    for &rows in &runner.options().rows {
        let (gate, x, out) = (random(rows, dim)?, random(rows, dim)?, random(rows, dim)?);
        let labels = labels(dim.to_string(), rows);
        runner.time(Operator::GateMul, labels, work(rows, dim, 3, 1), |_| {
            Ok(sconce_kernels::gate_mul(&out, &gate, &x, Activation::Silu, rows)?)
        })?;
    }
    Ok(())
}

/// Rows of the table of embeddings, far from each other.
pub(super) fn embedding(runner: &mut Runner<'_>) -> Result<(), Error> {
    let sizes = runner.options().sizes;
    for &format in runner.options().formats() {
        let table = format.pack(sizes.vocab, sizes.hidden)?;
        for &rows in &runner.options().rows {
            let out = random(rows, sizes.hidden)?;
            // Steps of a golden section, which leave no two rows near each other.
            let step = (sizes.vocab as f64 * 0.618_033_988_75) as usize;
            let labels =
                Labels { format: Some(format.name()), ..labels(sizes.hidden.to_string(), rows) };
            let row_bytes = table.bytes() as f64 / sizes.vocab as f64;
            let written = (sizes.hidden * size_of::<f32>()) as f64;
            let work = Work { bytes: rows as f64 * (row_bytes + written), ..Work::default() };
            let mut ids = vec![0; rows];
            runner.time(Operator::Embedding, labels, work, |call| {
                for (index, id) in ids.iter_mut().enumerate() {
                    *id = ((call * rows + index) * step % sizes.vocab) as u32;
                }
                Ok(sconce_kernels::embedding(&out, &table, &ids)?)
            })?;
        }
    }
    Ok(())
}
