//! Products of many rows on the tensor cores of 9.0 by their own instructions, against the same by
//! those of 8.0: which are to be used is decided by these rows (docs/KERNELS.md). Other GPUs have none.

use std::slice;

use sconce_kernels::{ActivationBuffer, ActivationType, Mode, gpu, matmul};

use super::clock::{Side, median, median_ratio};
use super::table::time;
use super::{Bench, Outcome, Row, experts, make};

/// Rows of a step at most, as models cut them.
const ROWS: usize = 2048;

/// Products with weights, then a mixture of experts, in one block of rows and in few.
pub(crate) fn compare(bench: &mut Bench) -> Outcome<()> {
    if !gpu::has_wgmma(&bench.device) {
        return Ok(());
    }
    let most = ROWS.min(bench.sizes.prefill);
    for rows in [most, most.min(64)] {
        for outputs in bench.sizes.outputs.clone() {
            let row = product(bench, rows, outputs)?;
            bench.table.push(row);
        }
    }
    let row = experts::compare(bench, most)?;
    bench.table.push(row);
    Ok(())
}

/// A weight of 4 bits times rows, rounding of the rows included.
fn product(bench: &Bench, rows: usize, outputs: usize) -> Outcome<Row> {
    let (device, inputs) = (&bench.device, bench.sizes.hidden);
    let weight = make::weight(outputs, inputs, 0, device)?;
    let x = make::rows(rows, inputs, 7, device)?;
    let side = |wgmma| {
        let out = make::zeros((rows, outputs), device)?;
        let mut buffer = ActivationBuffer::new(rows, inputs, ActivationType::Int8, device)?;
        let (x, weight) = (&x, &weight);
        let step = move || {
            gpu::step(device, || {
                let x = buffer.prepare(x, rows, slice::from_ref(&weight))?;
                Ok(matmul(&out, &x, weight, Mode::Store)?)
            })
        };
        Ok(by(bench, wgmma, step)) as Outcome<_>
    };
    let (mut with, mut without) = (side(true)?, side(false)?);
    let work = format!("int4 product, {rows} x {inputs} x {outputs}");
    let flops = 2.0 * (rows * outputs) as f64 * inputs as f64;
    row(bench, work, flops, [&mut with, &mut without])
}

/// Work with `wgmma` or without.
pub(crate) fn by<'a>(
    bench: &Bench,
    wgmma: bool,
    mut body: impl FnMut() -> Outcome<()> + 'a,
) -> super::clock::Work<'a> {
    bench.clock.work(&bench.device, 1, move || gpu::with_wgmma(wgmma, &mut body))
}

/// The row of both sides.
pub(crate) fn row(
    bench: &Bench,
    work: String,
    flops: f64,
    sides: [&mut dyn Side; 2],
) -> Outcome<Row> {
    let [with, without] = bench.clock.in_turn(sides)?;
    let told = |name: &str, seconds: &[f64]| {
        format!("{name} {}, {:.0} TFLOP/s", time(median(seconds)), flops / median(seconds) / 1e12)
    };
    let row = Row::told(work, told("wgmma", &with), told("mma.sync", &without));
    Ok(row.ratio(median_ratio(&without, &with), None))
}
