//! What coded weights and mixtures of experts reach, in the terms of `roofline.rs`. `cargo bench -p
//! sconce-kernels --bench experts`.
#![expect(clippy::print_stdout, reason = "the output is the purpose")]
#![expect(clippy::unwrap_used, reason = "a benchmark may stop where it cannot go on")]

use std::time::Instant;

use candle_core::{Device, Tensor};
use sconce_kernels::{
    ActivationBuffer, ActivationType, Code, CodedFormat, CodedRows, Isa, Matrix, Mode, PairInput,
    Pool, RouterOptions, Routing, ScaleType, Scoring, expert_matmul, matmul,
};

/// Codes and scales that cost nothing to make.
struct Source {
    rows: usize,
    cols: usize,
    format: CodedFormat,
}

impl CodedRows for Source {
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn format(&self) -> CodedFormat {
        self.format
    }
    fn read_row(&self, row: usize, codes: &mut [u8], scales: &mut [f32]) {
        for (col, code) in codes.iter_mut().enumerate() {
            *code = ((row * 31 + col * 7) % 16) as u8;
        }
        scales.fill(0.125);
    }
}

fn pack(rows: usize, cols: usize, format: CodedFormat) -> Matrix {
    Matrix::pack_coded(&Source { rows, cols, format }, &Device::Cpu).unwrap()
}

fn random(rows: usize, dim: usize) -> Tensor {
    Tensor::rand(-1.0_f32, 1.0, (rows, dim), &Device::Cpu).unwrap()
}

/// Prints the fastest of several calls.
fn report(name: &str, (bytes, macs): (usize, usize), repetitions: usize, mut call: impl FnMut()) {
    let mut best = f64::INFINITY;
    for _ in 0..repetitions {
        let start = Instant::now();
        call();
        best = best.min(start.elapsed().as_secs_f64());
    }
    println!(
        "{name}: {:>9.1} us {:>6.1} GB/s {:>7.1} GMAC/s",
        best * 1e6,
        bytes as f64 / best / 1e9,
        macs as f64 / best / 1e9
    );
}

/// Several copies of a weight in turn, so that the caches do not hold it between calls.
fn products(name: &str, format: CodedFormat, kind: ActivationType) {
    let (outputs, cols) = (1536, 576);
    let weights: Vec<Matrix> = (0..60).map(|_| pack(outputs, cols, format)).collect();
    for count in [1, 8, 64] {
        let (x, out) = (random(count, cols), random(count, outputs));
        let mut buffer = ActivationBuffer::new(count, cols, kind, &Device::Cpu).unwrap();
        let mut next = 0;
        let work = (weights[0].bytes(), count * outputs * cols);
        report(&format!("{name} {kind:?} rows {count:>3}"), work, 1600 / count, || {
            next = (next + 1) % weights.len();
            let x = buffer.prepare(&x, count, &[&weights[next]]).unwrap();
            matmul(&out, &x, &weights[next], Mode::Store).unwrap();
        });
    }
}

/// One projection of 64 experts of which each row chooses 8.
fn experts(format: CodedFormat, kind: ActivationType) {
    let (count, choices, outputs, cols) = (64, 8, 768, 2048);
    let stack: Vec<Matrix> = (0..count).map(|_| pack(outputs, cols, format)).collect();
    let options = RouterOptions {
        scoring: Scoring::Softmax,
        experts_per_token: choices,
        groups: 1,
        groups_per_token: 1,
        renormalize: true,
        scale: 1.0,
    };
    for rows in [1, 8, 64, 256] {
        let (x, out) = (random(rows, cols), random(rows * choices, outputs));
        let mut routing = Routing::new(rows, count, choices);
        routing.route(&random(rows, count), None, &options, rows).unwrap();
        let mut chosen = vec![false; count];
        (0..rows).flat_map(|row| routing.choices(row).0).for_each(|id| chosen[*id as usize] = true);
        let read = chosen.iter().filter(|chosen| **chosen).count();
        let mut buffer = ActivationBuffer::new(rows, cols, kind, &Device::Cpu).unwrap();
        let work = (read * stack[0].bytes(), rows * choices * outputs * cols);
        let name = format!("experts {kind:?} rows {rows:>3}, {read:>2} experts");
        report(&name, work, 800 / rows, || {
            let x = buffer.prepare_experts(&x, rows, &[&stack]).unwrap();
            expert_matmul(&out, &x, &stack, &routing, PairInput::Rows).unwrap();
        });
    }
}

fn main() {
    println!("{} on {} threads", Isa::current(), Pool::global().threads());
    let format = |code, group_size, scales| CodedFormat { code, group_size, scales };
    let mxfp4 = format(Code::E2m1, 32, ScaleType::E8m0);
    for kind in [ActivationType::F32, ActivationType::Int16] {
        products("MXFP4 ", mxfp4, kind);
        products("NVFP4 ", format(Code::E2m1, 16, ScaleType::Bf16), kind);
        products("IQ4_NL", format(Code::Iq4Nl, 32, ScaleType::F16), kind);
        experts(mxfp4, kind);
    }
    products("MXFP8 ", format(Code::E4m3, 32, ScaleType::E8m0), ActivationType::F32);
}
