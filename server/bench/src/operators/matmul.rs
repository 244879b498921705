//! Products of rows with weights, and what readies rows for them.

use candle_core::Device;
use sconce_kernels::{ActivationBuffer, Matrix, Mode, head_matmul, matmul};

use super::{Operator, random};
use crate::error::Error;
use crate::formats::{Activations, WeightFormat};
use crate::runner::{Labels, Runner, Work};

/// Most rows of a step whose logits are wanted.
const HEAD_ROWS_MAX: usize = 8;

/// The two shapes of an MLP: up to its width, and down from it.
pub(super) fn layers(runner: &mut Runner<'_>) -> Result<(), Error> {
    let sizes = runner.options().sizes;
    let (wide, narrow) = (sizes.intermediate, sizes.hidden);
    for &format in runner.options().formats() {
        for (outputs, inputs) in [(wide, narrow), (narrow, wide)] {
            let rows = runner.options().rows.clone();
            products(runner, Operator::Matmul, format, (outputs, inputs), &rows)?;
        }
    }
    Ok(())
}

/// The head, for a few rows.
pub(super) fn head(runner: &mut Runner<'_>) -> Result<(), Error> {
    let sizes = runner.options().sizes;
    let rows = runner.options().rows.iter().copied();
    let rows: Vec<usize> = rows.filter(|rows| *rows <= HEAD_ROWS_MAX).collect();
    for &format in runner.options().formats() {
        products(runner, Operator::LmHead, format, (sizes.vocab, sizes.hidden), &rows)?;
    }
    Ok(())
}

fn products(
    runner: &mut Runner<'_>,
    operator: Operator,
    format: WeightFormat,
    (outputs, inputs): (usize, usize),
    rows: &[usize],
) -> Result<(), Error> {
    let forms = runner.options().activations(format);
    if forms.is_empty() || rows.is_empty() {
        return Ok(());
    }
    let weights = packed(runner, format, (outputs, inputs))?;
    for form in forms {
        for &rows in rows {
            let (x, out) = (random(rows, inputs)?, random(rows, outputs)?);
            let mut buffer = ActivationBuffer::new(rows, inputs, form.kind(), &Device::Cpu)?;
            let x = buffer.prepare(&x, rows, &[&weights[0]])?;
            let labels = Labels {
                shape: format!("{outputs}x{inputs}"),
                format: Some(format.name()),
                activations: Some(form.name()),
                rows,
                depth: None,
            };
            let work = product_work(form, &weights[0], rows, 1);
            runner.time(operator, labels, work, |call| {
                Ok(matmul(&out, &x, &weights[call % weights.len()], Mode::Store)?)
            })?;
        }
    }
    Ok(())
}

/// As many copies of a weight as take turns.
fn packed(
    runner: &Runner<'_>,
    format: WeightFormat,
    (outputs, inputs): (usize, usize),
) -> Result<Vec<Matrix>, Error> {
    let bytes = format.bytes(1, (outputs, inputs))?;
    (0..runner.copies(bytes)).map(|_| format.pack(outputs, inputs)).collect()
}

/// The work of multiplying `rows` rows with each of `read` weights like `weight`.
pub(super) fn product_work(form: Activations, weight: &Matrix, rows: usize, read: usize) -> Work {
    let macs = (rows * weight.rows()) as f64 * weight.cols() as f64;
    let planes = match weight.format().has_integer_codes() {
        true => form.kind().planes(),
        false => 0,
    };
    Work {
        bytes: (read * weight.bytes()) as f64,
        integer_macs: planes as f64 * macs,
        float_macs: if planes == 0 { macs } else { 0.0 },
    }
}

/// Rows in the form that weights of integers read.
pub(super) fn quantize(runner: &mut Runner<'_>) -> Result<(), Error> {
    let options = runner.options();
    let dim = options.sizes.intermediate;
    let weight = WeightFormat::Q4_0.pack(1, dim)?;
    let forms = options.activations(WeightFormat::Q4_0);
    for form in forms.into_iter().filter(|form| *form != Activations::F32) {
        for &rows in &options.rows {
            let x = random(rows, dim)?;
            let mut buffer = ActivationBuffer::new(rows, dim, form.kind(), &Device::Cpu)?;
            let labels = Labels {
                shape: dim.to_string(),
                activations: Some(form.name()),
                rows,
                ..Labels::default()
            };
            let bytes = (rows * dim * size_of::<f32>() + buffer.bytes()) as f64;
            let work = Work { bytes, ..Work::default() };
            runner.time(Operator::Quantize, labels, work, |_| {
                buffer.prepare(&x, rows, &[&weight])?;
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// A weight for each head, as queries are brought to the width of a latent.
pub(super) fn heads(runner: &mut Runner<'_>) -> Result<(), Error> {
    let options = runner.options();
    let sizes = options.sizes;
    // Queries have a part that positions do not turn, three times as wide as the one they do.
    let (heads, outputs) = (sizes.latent_heads, sizes.latent_dim);
    let inputs = (3 * sizes.rope_dim).next_multiple_of(64);
    for &format in options.formats() {
        let copies = runner.copies(format.bytes(heads, (outputs, inputs))?);
        let layers = (0..copies).map(|_| format.pack_all(heads, (outputs, inputs)));
        let layers: Vec<Vec<Matrix>> = layers.collect::<Result<_, Error>>()?;
        for &rows in &options.rows {
            let (x, out) = (random(rows, heads * inputs)?, random(rows, heads * outputs)?);
            let labels = Labels {
                shape: format!("{heads} of {outputs}x{inputs}"),
                format: Some(format.name()),
                activations: Some(Activations::F32.name()),
                rows,
                depth: None,
            };
            let one = product_work(Activations::F32, &layers[0][0], rows, heads);
            let work = Work { float_macs: heads as f64 * one.float_macs, ..one };
            runner.time(Operator::HeadMatmul, labels, work, |call| {
                Ok(head_matmul(&out, &x, &layers[call % layers.len()], rows)?)
            })?;
        }
    }
    Ok(())
}
