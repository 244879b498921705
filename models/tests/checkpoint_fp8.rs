//! FP8 directories: scales of blocks of any size, stacks of experts, and tensors that do not fit.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/directory.rs"]
mod directory;
#[path = "support/packed.rs"]
mod packed;

use directory::{Entry, counted, numbers, open};
use safetensors::tensor::Dtype as SafeDtype;
use sconce_kernels::{CodedRows, ScaleType};
use sconce_models::Error;
use sconce_models::checkpoint::{MatrixRows, RowSelection};
use serde_json::{Value, json};

const E4M3: SafeDtype = SafeDtype::F8_E4M3;

fn config(block: Value) -> Value {
    let settings = json!({"quant_method": "fp8", "weight_block_size": block});
    json!({"model_type": "qwen3", "quantization_config": settings})
}

/// A weight whose bytes run through all E4M3 numbers but the NaN.
fn weight(name: &str, shape: &[usize]) -> Entry {
    let mut entry = counted(name, E4M3, shape);
    entry.3.iter_mut().filter(|byte| **byte & 0x7f == 0x7f).for_each(|byte| *byte &= 0x80);
    entry
}

/// A power of two for each block, so that the order of products does not matter.
fn scale(block: usize) -> f32 {
    f32::powi(2.0, (block % 9) as i32 - 4)
}

fn scales(name: &str, shape: &[usize]) -> Entry {
    let values: Vec<f32> = (0..shape.iter().product()).map(scale).collect();
    numbers(name, shape, &values)
}

/// The E4M3 number by its definition: sign, four bits of exponent, three of fraction.
fn e4m3(code: u8) -> f32 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f32::from(code & 7) / 8.0);
    let magnitude = match exponent {
        0 => fraction * 2f32.powi(-6),
        _ => (1.0 + fraction) * 2f32.powi(exponent - 7),
    };
    if code < 128 { magnitude } else { -magnitude }
}

/// What the weight holds: shape `[matrices, rows, cols]`, scales in blocks.
fn expected(entry: &Entry, [rows, cols]: [usize; 2], [down, across]: [usize; 2]) -> Vec<f32> {
    let (blocks_down, blocks) = (rows.div_ceil(down), cols.div_ceil(across));
    let value = |(index, code): (usize, &u8)| {
        let (matrix, row, col) = (index / (rows * cols), index / cols % rows, index % cols);
        let block = (matrix * blocks_down + row / down) * blocks + col / across;
        e4m3(*code) * scale(block)
    };
    entry.3.iter().enumerate().map(value).collect()
}

#[test]
fn blocks_that_divide_the_columns_or_not_hold_the_same_values() {
    // Rows, columns, block, group of the matrix: none where no group fits.
    for (shape, block, group) in [
        ([256, 256], [128, 128], Some(128)),
        ([130, 192], [128, 128], Some(64)),
        ([3, 96], [128, 128], Some(32)),
        ([5, 48], [2, 16], Some(16)),
        ([5, 512], [4, 512], Some(128)),
        ([4, 40], [128, 128], None),
        ([4, 96], [2, 24], None),
    ] {
        let [rows, cols]: [usize; 2] = shape;
        let blocks = [rows.div_ceil(block[0]), cols.div_ceil(block[1])];
        let weight = weight("m.weight", &shape);
        let expected = expected(&weight, shape, block);
        let tensors = [weight, scales("m.weight_scale_inv", &blocks)];
        let checkpoint = open(&config(json!(block)), &tensors);
        let weight = checkpoint.weight("m.weight").unwrap();
        weight.expect_shape(&shape).unwrap();
        assert_eq!(weight.to_f32().unwrap(), expected, "{shape:?} {block:?}");
        let source = weight.matrix_rows(RowSelection::all()).unwrap();
        assert_eq!(packed::values(&source), expected, "{shape:?} {block:?} packed");
        match (source, group) {
            (MatrixRows::Coded(source), Some(group)) => {
                assert_eq!(source.format().group_size, group, "{shape:?} {block:?}");
            }
            (source, group) => {
                assert!(matches!(source, MatrixRows::Dense(_)) && group.is_none(), "{shape:?}");
            }
        }
    }
}

#[test]
fn stacked_experts_have_scales_of_their_own() {
    let (name, shape) = ("model.layers.0.mlp.experts.gate_up_proj", [3, 6, 64]);
    let weight = weight(name, &shape);
    let expected = expected(&weight, [6, 64], [4, 32]);
    let tensors = [weight, scales(&format!("{name}_scale_inv"), &[3, 2, 2])];
    let checkpoint = open(&config(json!([4, 32])), &tensors);
    let weight = checkpoint.weight(name).unwrap();
    assert_eq!((weight.shape(), weight.parts().count()), (&shape[..], 2));
    assert_eq!(weight.format_name(), "fp8 4x32");
    let rows = weight.matrix_rows(RowSelection::range(9..15)).unwrap();
    assert_eq!(packed::values(&rows), expected[9 * 64..15 * 64]);
    assert_eq!(checkpoint.weights().count(), 1);
}

#[test]
fn without_blocks_a_matrix_has_one_scale() {
    let single = [weight("m.weight", &[3, 32]), scales("m.weight_scale_inv", &[])];
    let stack = [weight("m.weight", &[3, 3, 32]), scales("m.weight_scale_inv", &[3, 1, 1])];
    for tensors in [single, stack] {
        let expected = expected(&tensors[0], [3, 32], [3, 32]);
        let checkpoint = open(&config(Value::Null), &tensors);
        assert_eq!(checkpoint.weight("m.weight").unwrap().to_f32().unwrap(), expected);
    }
}

#[test]
fn scales_keep_the_type_that_holds_them() {
    let bytes = |values: &[u16]| values.iter().flat_map(|it| it.to_le_bytes()).collect::<Vec<_>>();
    for (dtype, data, kept) in [
        (SafeDtype::BF16, bytes(&[0x3fc0]), ScaleType::Bf16),
        (SafeDtype::F16, bytes(&[0x3e00]), ScaleType::F16),
        (SafeDtype::F32, 1.5f32.to_le_bytes().to_vec(), ScaleType::F32),
        (SafeDtype::F8_E8M0, vec![128], ScaleType::E8m0),
    ] {
        let factor = if dtype == SafeDtype::F8_E8M0 { 2.0 } else { 1.5 };
        let weight = weight("m.weight", &[1, 32]);
        let expected: Vec<f32> = weight.3.iter().map(|code| factor * e4m3(*code)).collect();
        let tensors = [weight, ("m.weight_scale_inv".into(), dtype, vec![1, 1], data)];
        let checkpoint = open(&config(json!([128, 128])), &tensors);
        let source = checkpoint.weight("m.weight").unwrap().matrix_rows(RowSelection::all());
        let source = source.unwrap();
        assert_eq!(packed::values(&source), expected, "{dtype:?}");
        let MatrixRows::Coded(source) = source else { panic!("{dtype:?} is coded") };
        assert_eq!(source.format().scales, kept);
    }
}

#[test]
fn tensors_that_are_not_quantized_are_read_as_they_are() {
    let tensors = [numbers("model.norm.weight", &[2], &[1.0, 2.0])];
    let checkpoint = open(&config(json!([128, 128])), &tensors);
    let norm = checkpoint.weight("model.norm.weight").unwrap();
    assert_eq!((norm.format_name().as_str(), norm.to_f32().unwrap()), ("F32", vec![1.0, 2.0]));
}

#[test]
fn numbers_without_scales_are_refused() {
    let tensors = [weight("m.weight", &[2, 32])];
    let error = open(&config(json!([128, 128])), &tensors).weight("m.weight").unwrap_err();
    let missing = "m.weight_scale_inv";
    assert!(matches!(&error, Error::MissingTensor { tensor, .. } if tensor == missing), "{error}");

    let plain = json!({"model_type": "qwen3"});
    for dtype in [E4M3, SafeDtype::F8_E5M2] {
        let checkpoint = open(&plain, &[counted("m.weight", dtype, &[2, 32])]);
        let weight = checkpoint.weight("m.weight").unwrap();
        let error = weight.matrix_rows(RowSelection::all()).unwrap_err();
        assert!(matches!(&error, Error::UnsupportedDtype { .. }), "{error}");
        assert!(weight.to_f32().is_err());
    }
    let tensors = [weight("m.weight", &[2, 32]), scales("m.weight_scale_inv", &[1, 1])];
    let error = open(&plain, &tensors).weight("m.weight").unwrap_err().to_string();
    assert!(error.contains("key quantization_config: expected the block size"), "{error}");
}

#[test]
fn scales_that_do_not_fit_name_both_shapes() {
    let config = config(json!([128, 128]));
    for shape in [&[1, 2][..], &[2, 1], &[1], &[1, 1, 1], &[0, 1], &[]] {
        let tensors = [weight("m.weight", &[2, 32]), scales("m.weight_scale_inv", shape)];
        let error = open(&config, &tensors).weight("m.weight").unwrap_err();
        assert!(matches!(&error, Error::Format { .. }), "{error}");
        let expected = "a scale for each block of 128 x 128 of m.weight [2, 32]";
        assert!(error.to_string().contains(expected), "{error}");
        assert!(error.to_string().ends_with(&format!("found shape {shape:?}")), "{error}");
    }
    for shape in [&[32][..], &[0, 32], &[2, 0], &[]] {
        let tensors = [weight("m.weight", shape), scales("m.weight_scale_inv", &[1, 1])];
        let error = open(&config, &tensors).weight("m.weight").unwrap_err().to_string();
        assert!(error.contains("tensor m.weight: expected a matrix"), "{error}");
    }
    let words = counted("m.weight_scale_inv", SafeDtype::I32, &[1, 1]);
    let tensors = [weight("m.weight", &[2, 32]), words];
    let error = open(&config, &tensors).weight("m.weight").unwrap_err();
    assert!(matches!(&error, Error::UnsupportedDtype { found: "I32", .. }), "{error}");
}
