//! Directories that MLX quantized: every mode against its own values, and tensors that do not fit.
//!
//! `tests/reference/mlx_blocks.py` makes the fixture.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/directory.rs"]
mod directory;
#[path = "support/packed.rs"]
mod packed;

use directory::{Entry, counted, numbers, open};
use safetensors::tensor::Dtype as SafeDtype;
use sconce_models::checkpoint::{MatrixRows, RowSelection};
use sconce_models::{Checkpoint, Error};
use serde_json::{Value, json};

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/mlx_blocks");

/// Modules of the fixture: the matrices and stacks of its script.
const CASES: usize = 18 + 3 + 5 + 1;

#[test]
fn every_mode_holds_the_values_of_mlx() {
    let checkpoint = Checkpoint::open(FIXTURE).unwrap();
    let mut cases = 0;
    for weight in checkpoint.weights().map(Result::unwrap) {
        let Some(case) = weight.name().strip_prefix("model.layers.0.") else { continue };
        let case = case.strip_suffix(".weight").unwrap();
        let golden = checkpoint.weight(&format!("golden.{case}")).unwrap();
        weight.expect_shape(golden.shape()).unwrap();
        let (golden, values) = (golden.to_f32().unwrap(), weight.to_f32().unwrap());
        let rows = weight.matrix_rows(RowSelection::all()).unwrap();
        // A scale of the whole is divided first here, and last there.
        let tolerance = if case.ends_with("global") { 2e-7 } else { 0.0 };
        for (index, golden) in golden.iter().enumerate() {
            let value = values[index];
            let close = (value - golden).abs() <= tolerance * golden.abs();
            assert!(close, "{case} element {index}: {value} is not {golden}");
        }
        assert_eq!(packed::values(&rows), values, "{case} packed");
        cases += 1;
    }
    assert_eq!(cases, CASES);
}

#[test]
fn a_weight_has_its_logical_shape_its_format_and_its_parts() {
    let checkpoint = Checkpoint::open(FIXTURE).unwrap();
    let weight = checkpoint.weight("model.layers.0.stack_affine_3_32.weight").unwrap();
    assert_eq!(weight.shape(), [3, 2, 128]);
    assert_eq!(weight.format_name(), "affine 3-bit g32");
    assert!(weight.name_in_file().starts_with("language_model.model."));
    let parts: Vec<&str> = weight.parts().collect();
    let named = |part: &str| format!("model.layers.0.stack_affine_3_32.{part}");
    assert_eq!(parts, [named("weight"), named("scales"), named("biases")]);
    assert_eq!(weight.bytes_in_file(), 6 * (128 * 3 / 8 + 2 * 4 * 4));
    let weight = checkpoint.weight("model.layers.0.stack_nvfp4_global.weight").unwrap();
    assert_eq!((weight.format_name().as_str(), weight.parts().count()), ("nvfp4", 3));
    let bytes: u64 = checkpoint.weights().map(|weight| weight.unwrap().bytes_in_file()).sum();
    assert_eq!(bytes, checkpoint.bytes());
    let description = checkpoint.describe().unwrap();
    assert_eq!(description.parameters, 2 * (21 * 512 + 6 * 768));
}

#[test]
fn experts_are_selected_by_their_rows() {
    let checkpoint = Checkpoint::open(FIXTURE).unwrap();
    for case in ["stack_affine_4_64", "stack_mxfp8_8_32", "stack_nvfp4_global"] {
        let weight = checkpoint.weight(&format!("model.layers.0.{case}.weight")).unwrap();
        let all = weight.to_f32().unwrap();
        let rows = weight.matrix_rows(RowSelection::ranges(vec![4..6, 1..2])).unwrap();
        assert_eq!((rows.rows(), rows.cols()), (3, 128));
        assert_eq!(packed::values(&rows), [&all[4 * 128..], &all[128..256]].concat(), "{case}");
        let error = weight.matrix_rows(RowSelection::range(4..7)).unwrap_err().to_string();
        assert!(error.ends_with("expected rows 4 to 7, found 6 rows"), "{error}");
    }
}

fn config(settings: Value) -> Value {
    json!({"model_type": "llama", "quantization": settings})
}

fn four_bits() -> Value {
    config(json!({"group_size": 64, "bits": 4}))
}

/// Tensors of a matrix `[2, 128]` in four bits and groups of 64.
fn module() -> Vec<Entry> {
    vec![
        counted("m.weight", SafeDtype::U32, &[2, 16]),
        numbers("m.scales", &[2, 2], &[1.0; 4]),
        numbers("m.biases", &[2, 2], &[0.0; 4]),
    ]
}

/// The module with the tensor of that name replaced, or without it.
fn but(name: &str, entry: Option<Entry>) -> Vec<Entry> {
    let rest = module().into_iter().filter(|(other, ..)| other != name);
    rest.chain(entry).collect()
}

fn refusal(config: &Value, tensors: &[Entry]) -> Error {
    open(config, tensors).weight("m.weight").unwrap_err()
}

#[test]
fn the_undamaged_module_is_read() {
    let checkpoint = open(&four_bits(), &module());
    let weight = checkpoint.weight("m.weight").unwrap();
    let rows = weight.matrix_rows(RowSelection::all()).unwrap();
    assert!(matches!(&rows, MatrixRows::Affine(_)));
    // The bytes count up, and the low nibble comes first.
    assert_eq!(packed::values(&rows)[..6], [0.0, 0.0, 1.0, 0.0, 2.0, 0.0]);
}

#[test]
fn the_fingerprint_sees_codes_scales_biases_and_settings() {
    let original = open(&four_bits(), &module()).fingerprint();
    assert_eq!(open(&four_bits(), &module()).fingerprint(), original);
    let changed = |name: &str| {
        let mut tensors = module();
        let (_, _, _, bytes) = tensors.iter_mut().find(|(other, ..)| other == name).unwrap();
        bytes[2] ^= 1;
        open(&four_bits(), &tensors).fingerprint()
    };
    for name in ["m.weight", "m.scales", "m.biases"] {
        assert_ne!(changed(name), original, "{name}");
    }
    let plain = config(json!({"group_size": 64, "bits": 4, "other.module": false}));
    assert_ne!(open(&plain, &module()).fingerprint(), original);
}

#[test]
fn a_tensor_that_is_missing_is_named() {
    let error = refusal(&four_bits(), &but("m.biases", None));
    assert!(matches!(&error, Error::MissingTensor { tensor, .. } if tensor == "m.biases"));
    let error = refusal(&four_bits(), &but("m.scales", None));
    assert!(matches!(&error, Error::MissingTensor { tensor, .. } if tensor == "m.scales"));
    let directory = directory::write(&four_bits(), &but("m.weight", None));
    let error = Checkpoint::open(directory.path()).unwrap_err().to_string();
    assert!(error.contains("tensor m.scales: expected m.weight, to which it belongs"), "{error}");
}

#[test]
fn tensors_of_a_wrong_type_are_told_from_another_quantization() {
    let signed = counted("m.weight", SafeDtype::I32, &[2, 16]);
    let error = refusal(&four_bits(), &but("m.weight", Some(signed)));
    assert!(matches!(&error, Error::UnsupportedDtype { found: "I32", .. }), "{error}");
    let wide = counted("m.scales", SafeDtype::F64, &[2, 2]);
    let error = refusal(&four_bits(), &but("m.scales", Some(wide)));
    assert!(matches!(&error, Error::UnsupportedDtype { found: "F64", .. }), "{error}");
    let bytes = counted("m.scales", SafeDtype::U8, &[2, 2]);
    let error = refusal(&four_bits(), &but("m.scales", Some(bytes))).to_string();
    assert!(error.contains("m.scales is wrongly quantized: expected affine 4-bit g64"), "{error}");
    let mxfp4 = config(json!({"group_size": 32, "bits": 4, "mode": "mxfp4"}));
    let error = refusal(&mxfp4, &module()).to_string();
    assert!(error.contains("expected mxfp4 as config.json says, found scales of F32"), "{error}");
    let bytes = counted("m.scales", SafeDtype::U8, &[2, 4]);
    let error = refusal(&mxfp4, &but("m.scales", Some(bytes))).to_string();
    assert!(error.contains("m.biases is wrongly quantized"), "{error}");
}

#[test]
fn other_settings_are_told_from_a_wrong_shape() {
    let eight = config(json!({"group_size": 64, "bits": 8}));
    let error = refusal(&eight, &module());
    assert!(matches!(&error, Error::Quantization { .. }), "{error}");
    let fitting = "which fit affine 2-bit g128 or affine 4-bit g64 or affine 8-bit g32";
    assert!(error.to_string().ends_with(fitting), "{error}");

    // Half the columns with twice the bits: words and groups fit, the columns of the model do not.
    let eight = config(json!({"group_size": 32, "bits": 8}));
    let checkpoint = open(&eight, &module());
    let weight = checkpoint.weight("m.weight").unwrap();
    assert_eq!(weight.shape(), [2, 64]);
    let error = weight.expect_shape(&[2, 128]).unwrap_err();
    assert!(matches!(&error, Error::Quantization { .. }), "{error}");
    assert!(error.to_string().ends_with("128 columns as affine 4-bit g64"), "{error}");
    assert!(matches!(weight.expect_shape(&[2, 96]), Err(Error::Shape { .. })));
    assert!(matches!(weight.expect_shape(&[3, 128]), Err(Error::Shape { .. })));

    for shape in [&[2, 3][..], &[3, 2], &[4], &[2, 2, 1], &[2, 0]] {
        let scales = numbers("m.scales", shape, &vec![1.0; shape.iter().product()]);
        let error = refusal(&four_bits(), &but("m.scales", Some(scales)));
        assert!(matches!(&error, Error::Format { .. }), "{error}");
        assert!(error.to_string().contains("tensor m.scales: expected"), "{error}");
    }
    let biases = numbers("m.biases", &[2, 1], &[1.0; 2]);
    let error = refusal(&four_bits(), &but("m.biases", Some(biases))).to_string();
    assert!(error.contains("m.biases: expected the shape of the scales, [2, 2]"), "{error}");
    for shape in [&[32][..], &[0, 16], &[2, 0]] {
        let weight = counted("m.weight", SafeDtype::U32, shape);
        let error = refusal(&four_bits(), &but("m.weight", Some(weight))).to_string();
        assert!(error.contains("tensor m.weight: expected a matrix"), "{error}");
    }
}

#[test]
fn a_module_that_is_said_to_be_plain_may_have_no_scales() {
    let plain = config(json!({"group_size": 64, "bits": 4, "m": false}));
    let error = refusal(&plain, &module()).to_string();
    assert!(error.contains("wrongly quantized: expected plain numbers"), "{error}");
    let floats = vec![numbers("m.weight", &[2, 2], &[1.0, 2.0, 3.0, 4.0])];
    for config in [plain, four_bits()] {
        let checkpoint = open(&config, &floats);
        assert_eq!(checkpoint.weight("m.weight").unwrap().to_f32().unwrap(), [1.0, 2.0, 3.0, 4.0]);
    }
}

#[test]
fn packed_tensors_need_settings() {
    let error = refusal(&json!({"model_type": "llama"}), &module()).to_string();
    assert!(error.contains("key quantization: expected bits and group_size"), "{error}");
    let gptq = json!({"model_type": "llama", "quantization_config": {"quant_method": "gptq"}});
    let error = refusal(&gptq, &module()).to_string();
    assert!(error.contains("quantization_config.quant_method"), "{error}");
}

#[test]
fn two_prefixes_of_one_name_are_refused() {
    let tensors = [
        numbers("model.norm.weight", &[1], &[1.0]),
        numbers("language_model.model.norm.weight", &[1], &[1.0]),
    ];
    let directory = directory::write(&json!({"model_type": "llama"}), &tensors);
    let error = Checkpoint::open(directory.path()).unwrap_err().to_string();
    assert!(error.contains("expected one tensor of a kind, found "), "{error}");
    assert!(error.contains("language_model.model.norm.weight"), "{error}");
}

#[test]
fn convolutions_tell_whether_norms_are_shifted() {
    let name = "model.layers.0.linear_attn.conv1d.weight";
    for (shape, shifted) in [([2, 1, 4], false), ([2, 4, 1], true)] {
        let values = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];
        let tensors = [numbers(name, &shape, &values)];
        let checkpoint = open(&json!({"model_type": "qwen3_next"}), &tensors);
        assert_eq!(checkpoint.conventions().norms_shifted, shifted);
        let weight = checkpoint.weight(name).unwrap();
        weight.expect_shape(&[2, 4]).unwrap();
        assert_eq!(weight.to_f32().unwrap(), values);
    }
}
