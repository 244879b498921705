//! What the kernels reach: bytes a second where they read weights, multiply-adds a second where they
//! compute. `cargo bench -p sconce-kernels`; best of several repetitions, so that a busy machine
//! disturbs less.
#![expect(clippy::print_stdout, reason = "the output is the purpose")]
#![expect(clippy::unwrap_used, reason = "a benchmark may stop where it cannot go on")]

use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use sconce_kernels::{
    Activation, ActivationBuffer, ActivationType, AffineFormat, AffineRows, AttentionOptions, Isa,
    KvPages, Matrix, Mode, PageTable, Pool, ScaleType, Segment, gate_mul, latent_attention, matmul,
    paged_attention, rms_norm,
};

/// Codes and scales that cost nothing to make.
struct Source {
    rows: usize,
    cols: usize,
    format: AffineFormat,
}

impl AffineRows for Source {
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn format(&self) -> AffineFormat {
        self.format
    }
    fn read_row(&self, row: usize, codes: &mut [u8], scales: &mut [f32], biases: &mut [f32]) {
        for (col, code) in codes.iter_mut().enumerate() {
            *code = ((row * 31 + col * 7) % 16) as u8;
        }
        scales.fill(0.125);
        biases.fill(-1.0);
    }
}

/// Seconds of the fastest of `repetitions` calls.
fn best(repetitions: usize, mut call: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..repetitions {
        let start = Instant::now();
        call();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

fn rows(rows: usize, dim: usize) -> Tensor {
    Tensor::rand(-1.0_f32, 1.0, (rows, dim), &Device::Cpu).unwrap()
}

/// Several copies of a weight in turn, so that the caches do not hold it between calls.
fn products(name: &str, format: AffineFormat, kind: ActivationType, copies: usize) {
    for (outputs, cols) in [(576, 576), (1536, 576), (576, 1536), (49_152, 576)] {
        let copies = if outputs > 10_000 { 2 } else { copies };
        let pack = || Matrix::pack_affine(&Source { rows: outputs, cols, format }, &Device::Cpu);
        let weights: Vec<Matrix> = (0..copies).map(|_| pack().unwrap()).collect();
        for count in [1, 4, 8, 64, 512] {
            if outputs > 10_000 && count > 8 {
                continue;
            }
            let (x, out) = (rows(count, cols), rows(count, outputs));
            let mut buffer = ActivationBuffer::new(count, cols, kind, &Device::Cpu).unwrap();
            let mut next = 0;
            let seconds = best(if count > 8 { 8 } else { 200 }, || {
                next = (next + 1) % weights.len();
                let x = buffer.prepare(&x, count, &[&weights[next]]).unwrap();
                matmul(&out, &x, &weights[next], Mode::Store).unwrap();
            });
            let bytes = weights[0].bytes() as f64 / seconds / 1e9;
            let macs = (count * outputs * cols) as f64 / seconds / 1e9;
            println!(
                "{name} {kind:?} {outputs:>5}x{cols:<4} rows {count:>3}: {:>8.1} us {bytes:>6.1} GB/s {macs:>7.1} GMAC/s",
                seconds * 1e6
            );
        }
    }
}

fn attention() {
    let (heads, kv_heads, dim, page, pages) = (9, 3, 64, 64, 33);
    let shape = (pages, kv_heads, page, dim);
    let pool = || Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let layers: Vec<_> = (0..30).map(|_| (pool(), pool())).collect();
    let table: Vec<u32> = (0..pages as u32).collect();
    let options = AttentionOptions { scale: 0.125, window: None };
    for (first_position, len) in [(128, 1), (2047, 1), (0, 512), (1536, 512)] {
        let (q, out) = (rows(len, heads * dim), rows(len, heads * dim));
        let segment =
            Segment { first_row: 0, len, first_position, first_page: 0, page_count: pages };
        let table = PageTable { segments: &[segment], pages: &table };
        let mut next = 0;
        let seconds = best(60, || {
            next = (next + 1) % layers.len();
            let kv = KvPages { keys: &layers[next].0, values: &layers[next].1 };
            paged_attention(&out, &q, kv, table, options).unwrap();
        });
        let pairs = (len * first_position + len * (len + 1) / 2) * heads;
        println!(
            "attention {len:>3} rows at {first_position:>4}: {:>8.1} us {:>6.1} GB/s of keys and values {:>6.1} GMAC/s",
            seconds * 1e6,
            ((first_position + len) * kv_heads * dim * 8) as f64 / seconds / 1e9,
            (pairs * dim * 2) as f64 / seconds / 1e9,
        );
    }
}

/// The attention of GLM-4.7-Flash: 20 heads over one latent.
fn latent() {
    let (heads, latent_dim, rope_dim, page, pages) = (20, 512, 64, 64, 33);
    let pool = |dim| Tensor::zeros((pages, 1, page, dim), DType::F32, &Device::Cpu).unwrap();
    let layers: Vec<_> = (0..10).map(|_| (pool(rope_dim), pool(latent_dim))).collect();
    let table: Vec<u32> = (0..pages as u32).collect();
    let options = AttentionOptions { scale: 0.0625, window: None };
    for (first_position, len) in [(128, 1), (2047, 1), (0, 256), (1536, 256)] {
        let (q, out) = (rows(len, heads * latent_dim), rows(len, heads * latent_dim));
        let q_rope = rows(len, heads * rope_dim);
        let segment =
            Segment { first_row: 0, len, first_position, first_page: 0, page_count: pages };
        let table = PageTable { segments: &[segment], pages: &table };
        let mut next = 0;
        let seconds = best(20, || {
            next = (next + 1) % layers.len();
            let kv = KvPages { keys: &layers[next].0, values: &layers[next].1 };
            latent_attention(&out, &q, &q_rope, kv, table, options).unwrap();
        });
        let pairs = (len * first_position + len * (len + 1) / 2) * heads;
        println!(
            "latent attention {len:>3} rows at {first_position:>4}: {:>8.1} us {:>6.1} GB/s of latents {:>6.1} GMAC/s",
            seconds * 1e6,
            ((first_position + len) * (latent_dim + rope_dim) * 4) as f64 / seconds / 1e9,
            (pairs * (2 * latent_dim + rope_dim)) as f64 / seconds / 1e9,
        );
    }
}

fn small() {
    for count in [1, 512] {
        let (x, out) = (rows(count, 576), rows(count, 576));
        let weight = Tensor::ones(576, DType::F32, &Device::Cpu).unwrap();
        let norm = best(200, || rms_norm(&out, &x, &weight, 1e-5, count).unwrap());
        let (gate, up, out) = (rows(count, 1536), rows(count, 1536), rows(count, 1536));
        let silu = best(200, || gate_mul(&out, &gate, &up, Activation::Silu, count).unwrap());
        let mut buffer =
            ActivationBuffer::new(count, 1536, ActivationType::Int8, &Device::Cpu).unwrap();
        let format =
            AffineFormat { bits: 4, group_size: 32, zero_point: None, scales: ScaleType::F16 };
        let weight =
            Matrix::pack_affine(&Source { rows: 16, cols: 1536, format }, &Device::Cpu).unwrap();
        let quantize = best(200, || {
            buffer.prepare(&gate, count, &[&weight]).unwrap();
        });
        println!(
            "rows {count:>3}: rms_norm 576 {:.2} us, gate_mul 1536 {:.2} us, quantize 1536 {:.2} us",
            norm * 1e6,
            silu * 1e6,
            quantize * 1e6
        );
    }
    let fork = best(2000, || Pool::global().run(2, |_| {}));
    println!("an empty fork: {:.2} us", fork * 1e6);
}

fn main() {
    println!("{} on {} threads", Isa::current(), Pool::global().threads());
    small();
    attention();
    latent();
    let format =
        |bits, zero_point, scales| AffineFormat { bits, group_size: 32, zero_point, scales };
    let q4_1 = format(4, None, ScaleType::F16);
    products("Q4_1", q4_1, ActivationType::Int8, 60);
    products("Q4_1", q4_1, ActivationType::Int16, 60);
    products("Q4_1", q4_1, ActivationType::F32, 60);
    products("Q4_0", format(4, Some(8), ScaleType::F16), ActivationType::Int8, 60);
    products("Q8_0", format(8, Some(128), ScaleType::F16), ActivationType::Int8, 30);
}
