//! Directories of tensors that need not fit each other: read or refused, never a panic.
//!
//! Headers are sound here, for `checkpoint_hostile.rs` damages those; types, shapes and settings are
//! drawn at random, with a seed, so that a failure repeats.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/directory.rs"]
mod directory;

use directory::{Entry, counted};
use safetensors::tensor::Dtype;
use sconce_kernels::{AffineRows, CodedRows, DenseRows};
use sconce_models::Checkpoint;
use sconce_models::checkpoint::{MatrixRows, RowSelection, Weight};
use serde_json::{Value, json};

const ROUNDS: usize = 1000;

/// Marsaglia's xorshift with 64 bits.
struct Random(u64);

impl Random {
    fn pick<T: Clone>(&mut self, list: &[T]) -> T {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        list[(self.0 >> 33) as usize % list.len()].clone()
    }
}

/// Shapes of small sizes, that fit each other by chance, and of absurd ones.
fn shape(random: &mut Random) -> Vec<usize> {
    if random.pick(&[false, false, false, true]) {
        return random.pick(&[vec![0], vec![0, 1 << 62], vec![2, 0], vec![0, 2, 16], vec![]]);
    }
    (0..random.pick(&[1, 2, 2, 2, 3, 4])).map(|_| random.pick(&[1, 2, 2, 4, 8, 16, 33])).collect()
}

/// A tensor of one of these types and a random shape, or of the shape that most fit.
fn tensor(random: &mut Random, name: &str, dtypes: &[Dtype], fitting: &[usize]) -> Option<Entry> {
    let shape = if random.pick(&[true, true, false]) { fitting.to_vec() } else { shape(random) };
    let present = random.pick(&[true, true, true, true, true, true, false]);
    present.then(|| counted(name, random.pick(dtypes), &shape))
}

fn mlx(random: &mut Random) -> (Value, Vec<Entry>) {
    const FLOATS: &[Dtype] = &[Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::BF16, Dtype::U8];
    let mode = random.pick(&["affine", "affine", "mxfp4", "mxfp8", "nvfp4"]);
    let (bits, group_size) = match mode {
        "affine" => (random.pick(&[2, 3, 4, 5, 6, 8]), random.pick(&[32, 64, 128])),
        "mxfp8" => (8, 32),
        "mxfp4" => (4, 32),
        _ => (4, 16),
    };
    let settings = json!({"group_size": group_size, "bits": bits, "mode": mode});
    let scales: &[Dtype] =
        if mode == "affine" { FLOATS } else { &[Dtype::U8, Dtype::U8, Dtype::F16] };
    let leading = random.pick(&[vec![2], vec![2, 2], vec![3, 2]]);
    let fitting = |last: usize| [&leading[..], &[last]].concat();
    let words: &[Dtype] = &[Dtype::U32, Dtype::U32, Dtype::U32, Dtype::U32, Dtype::I32, Dtype::F32];
    let tensors = [
        tensor(random, "m.weight", words, &fitting(128 * bits / 32)),
        tensor(random, "m.scales", scales, &fitting(128 / group_size)),
        tensor(random, "m.biases", FLOATS, &fitting(128 / group_size)).filter(|_| mode == "affine"),
        tensor(random, "m.global_scale", &[Dtype::F32], &leading[..leading.len() - 1])
            .filter(|_| mode == "nvfp4"),
    ];
    (
        json!({"model_type": "llama", "quantization": settings}),
        tensors.into_iter().flatten().collect(),
    )
}

fn fp8(random: &mut Random) -> (Value, Vec<Entry>) {
    let block = random.pick(&[json!([2, 16]), json!([128, 128]), json!([1, 5]), Value::Null]);
    let settings = json!({"quant_method": "fp8", "weight_block_size": block});
    let scales = [Dtype::F32, Dtype::BF16, Dtype::F8_E8M0, Dtype::I32];
    let blocks = random.pick(&[[2, 2], [1, 1], [4, 7]]);
    let tensors = [
        tensor(random, "m.weight", &[Dtype::F8_E4M3, Dtype::F8_E4M3, Dtype::F8_E5M2], &[4, 32]),
        tensor(random, "m.weight_scale_inv", &scales, &blocks),
    ];
    (
        json!({"model_type": "llama", "quantization_config": settings}),
        tensors.into_iter().flatten().collect(),
    )
}

/// Reads some rows of a weight, as packing does.
fn read(weight: &Weight<'_>, random: &mut Random) -> bool {
    let ends = [0, 0, 1, 2, 3, 4, 7, usize::MAX];
    let ranges = (0..2).map(|_| random.pick(&ends)..random.pick(&ends)).collect();
    let selection = random.pick(&[RowSelection::all(), RowSelection::ranges(ranges)]);
    let Ok(rows) = weight.matrix_rows(selection) else { return false };
    // No row, no columns: a tensor without elements may say that it has 2^62 of them.
    let cols = if rows.rows() == 0 { 0 } else { rows.cols() };
    for row in 0..rows.rows() {
        match &rows {
            MatrixRows::Affine(source) => {
                let groups = cols / source.format().group_size;
                let (mut scales, mut biases) = (vec![0.0; groups], vec![0.0; groups]);
                source.read_row(row, &mut vec![0; cols], &mut scales, &mut biases);
            }
            MatrixRows::Coded(source) => {
                let groups = cols / source.format().group_size;
                source.read_row(row, &mut vec![0; cols], &mut vec![0.0; groups]);
            }
            MatrixRows::Dense(source) => source.read_row(row, &mut vec![0.0; cols]),
        }
    }
    true
}

/// Opens many directories; how many weights were read, and how many refused.
fn torment(seed: u64, make: impl Fn(&mut Random) -> (Value, Vec<Entry>)) -> (usize, usize) {
    let mut random = Random(seed);
    let (mut readable, mut refused) = (0, 0);
    for _ in 0..ROUNDS {
        let (config, tensors) = make(&mut random);
        let directory = directory::write(&config, &tensors);
        let Ok(checkpoint) = Checkpoint::open(directory.path()) else {
            refused += 1;
            continue;
        };
        checkpoint.describe().unwrap();
        checkpoint.fingerprint();
        for weight in checkpoint.weights() {
            let read = weight.is_ok_and(|weight| {
                if let Ok(values) = weight.to_f32() {
                    assert_eq!(values.len(), weight.elements());
                }
                read(&weight, &mut random)
            });
            readable += usize::from(read);
            refused += usize::from(!read);
        }
    }
    (readable, refused)
}

#[test]
fn tensors_of_mlx_that_do_not_fit_are_refused() {
    let (readable, refused) = torment(1, mlx);
    assert!(readable > ROUNDS / 20 && refused > ROUNDS / 4, "{readable} read, {refused} refused");
}

#[test]
fn scales_of_fp8_that_do_not_fit_are_refused() {
    let (readable, refused) = torment(2, fp8);
    assert!(readable > ROUNDS / 20 && refused > ROUNDS / 4, "{readable} read, {refused} refused");
}
