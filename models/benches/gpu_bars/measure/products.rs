//! Few rows times weights of 4 bits, against the bandwidth of a copy; and a large product in bf16,
//! which is the measure of arithmetic.

use candle_core::Device;
use sconce_kernels::{
    ActivationBuffer, ActivationType, DenseRows, DenseType, Matrix, Mode, gpu, matmul,
};

use super::clock::{Side, Work, median, median_ratio};
use super::table::{bandwidth, moving};
use super::{Bar, Bench, Outcome, Row, make};

/// Rows that a GEMV takes.
const ROWS: [usize; 4] = [1, 2, 4, 8];

/// Products of few rows, with several weights of one shape in turn.
pub(crate) fn gemv(bench: &mut Bench) -> Outcome<()> {
    let inputs = bench.sizes.hidden;
    for outputs in bench.sizes.outputs.clone() {
        let bytes = make::weight(outputs, inputs, 0, &bench.device)?.bytes();
        let copies = make::copies(bench.sizes.cold_bytes, bytes);
        let weights = (0..copies as u64).map(|i| make::weight(outputs, inputs, i, &bench.device));
        let weights = weights.collect::<Outcome<Vec<_>>>()?;
        for rows in ROWS {
            let row = gemv_of(bench, &weights, rows)?;
            bench.table.push(row);
        }
    }
    Ok(())
}

fn gemv_of(bench: &Bench, weights: &[Matrix], rows: usize) -> Outcome<Row> {
    let device = &bench.device;
    let (inputs, outputs) = (weights[0].cols(), weights[0].rows());
    let x = make::rows(rows, inputs, 7, device)?;
    let out = make::zeros((rows, outputs), device)?;
    let mut buffer = ActivationBuffer::new(rows, inputs, ActivationType::Int8, device)?;
    let x = buffer.prepare(&x, rows, &[&weights[0]])?;
    let mut ours = bench.clock.work(device, weights.len(), || {
        gpu::step(device, || {
            weights.iter().try_for_each(|weight| Ok(matmul(&out, &x, weight, Mode::Store)?))
        })
    });
    let mut copy = super::peaks::copying(device, &bench.clock, bench.sizes.copied_bytes)?;
    let [found, copied] = bench.clock.in_turn([&mut ours, &mut copy as &mut dyn Side])?;
    let (bytes, copied_bytes) = (weights[0].bytes() as f64, 2.0 * bench.sizes.copied_bytes as f64);
    let ratio = median_ratio(&copied, &found) * bytes / copied_bytes;
    let bar = (rows == 1).then_some(Bar::AtLeast(0.7));
    let ours = moving(&ours, bytes, median(&found));
    let peer = format!("copy, {}", bandwidth(copied_bytes, median(&copied)));
    let work = format!("int4 GEMV, {inputs} x {outputs}, batch {rows}");
    Ok(Row::told(work, ours, peer).ratio(ratio, bar))
}

/// A weight of one number in bf16.
struct Ones(usize);

impl DenseRows for Ones {
    fn rows(&self) -> usize {
        self.0
    }

    fn cols(&self) -> usize {
        self.0
    }

    fn format(&self) -> DenseType {
        DenseType::Bf16
    }

    fn read_row(&self, _: usize, values: &mut [f32]) {
        values.fill(0.5);
    }
}

/// Our own product of `size` rows with a bf16 weight of as many rows and columns, to look at where no
/// peer multiplies.
pub(crate) fn own_square<'a>(bench: &Bench, size: usize, device: &'a Device) -> Outcome<Work<'a>> {
    let weight = Matrix::pack_dense(&Ones(size), device)?;
    let (x, out) = (make::rows(size, size, 8, device)?, make::zeros((size, size), device)?);
    let mut buffer = ActivationBuffer::new(size, size, ActivationType::Int8, device)?;
    Ok(bench.clock.work(device, 1, move || {
        let x = buffer.prepare(&x, size, &[&weight])?;
        Ok(matmul(&out, &x, &weight, Mode::Store)?)
    }))
}
