//! Quantized directories: they hold what a quantizing load holds, and appear whole or not at all.
//!
//! That MLX-LM loads them too is checked by `tests/reference/mlx_check.py`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/directory.rs"]
mod directory;
#[path = "support/gguf.rs"]
mod gguf;
#[path = "support/stepping.rs"]
mod stepping;

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors};
use sconce_models::quantize::{QuantizeProgress, QuantizeSummary, quantize};
use sconce_models::{Error, LoadOptions, Precision, QuantizeFormat, estimate};
use serde_json::{Value, json};
use tempfile::TempDir;

use directory::{Entry, numbers, write};
use stepping::{feed, fixture, load, options};

/// One of each architecture, in types in which nothing of it is rounded on the way: shifted norms are
/// stored in the type of the source.
const FIXTURES: &[&str] = &[
    "llama_f32",
    "llama_bf16",
    "llama_f16",
    "llama_tied",
    "qwen3_f32",
    "qwen3_bf16",
    "gemma3_f32",
    "gemma3_multimodal",
    "qwen3_moe_f32",
    "qwen3_moe_bf16",
    "glm4_moe_lite_f32",
    "glm4_moe_lite_bf16",
    "qwen3_next_f32",
    "qwen3_5_f32",
    "qwen3_5_moe_f32",
];

const PROMPT: [u32; 9] = [3, 17, 90, 5, 44, 63, 7, 8, 31];

/// Quantizes without listening.
fn run(source: &Path, output: &Path, format: QuantizeFormat) -> Result<QuantizeSummary, Error> {
    quantize(source, output, format, &mut |_| ControlFlow::Continue(()))
}

/// The quantized fixture, in a folder that lives as long as this.
struct Quantized {
    _folder: TempDir,
    path: String,
    summary: QuantizeSummary,
}

fn quantized(name: &str, format: QuantizeFormat) -> Quantized {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("model");
    let summary = run(Path::new(&fixture(name)), &output, format)
        .unwrap_or_else(|error| panic!("{name} {format}: {error}"));
    let path = output.to_str().unwrap().to_string();
    Quantized { _folder: folder, path, summary }
}

/// Logits after the prompt, bytes of weights and fingerprint.
fn outcome(path: &str, options: &LoadOptions) -> (Vec<f32>, u64, u64) {
    let mut model = load(path, options);
    let id = model.state_mut().open().unwrap();
    let logits = feed(model.as_mut(), id, &PROMPT);
    (logits, model.footprint().weights_bytes, model.info().fingerprint)
}

#[test]
fn a_directory_and_a_quantizing_load_give_the_same_logits_bit_for_bit() {
    for name in FIXTURES {
        let source = fixture(name);
        let plain = options(Precision::Exact);
        let (unquantized, unquantized_bytes, fingerprint) = outcome(&source, &plain);
        let mut fingerprints = BTreeSet::from([fingerprint]);
        let mut changed = 0;
        for format in QuantizeFormat::ALL {
            let output = quantized(name, format);
            let quantizing = LoadOptions { quantize: Some(format), ..plain.clone() };
            let (expected, expected_bytes, _) = outcome(&output.path, &plain);
            let (found, bytes, fingerprint) = outcome(&source, &quantizing);
            assert_eq!(found, expected, "{name} {format}");
            if output.summary.quantized > 0 {
                changed += 1;
                assert_ne!(found, unquantized, "{name} {format} changed nothing");
                assert!(bytes < unquantized_bytes, "{name} {format}: {bytes} bytes");
            }
            assert_eq!(bytes, expected_bytes, "{name} {format}");
            assert_eq!(bytes, estimate(&source, &quantizing).unwrap().weights_bytes);
            assert!(fingerprints.insert(fingerprint), "{name} {format}: fingerprint of another");
        }
        // Groups of 64 may be wider than all rows of a fixture; the smaller ones are not.
        assert!(changed >= 3, "{name}: {changed} formats have weights to quantize");
    }
}

#[test]
fn what_is_not_of_the_text_model_is_left_out_and_named() {
    let format = QuantizeFormat::Nvfp4;
    let output = quantized("qwen3_5_moe_multimodal", format);
    assert!(!output.summary.left_out.is_empty());
    for name in &output.summary.left_out {
        assert!(name.starts_with("vision.") || name.starts_with("mtp."), "{name}");
    }
    let source = fixture("qwen3_5_moe_multimodal");
    let plain = options(Precision::Exact);
    let quantizing = LoadOptions { quantize: Some(format), ..plain.clone() };
    let bytes = |path: &str, options| estimate(path, options).unwrap().weights_bytes;
    assert_eq!(bytes(&output.path, &plain), bytes(&source, &quantizing));
    outcome(&output.path, &plain);
}

#[test]
fn a_directory_has_what_stands_beside_the_weights_and_an_index() {
    let folder = tempfile::tempdir().unwrap();
    let (source, output) = (folder.path().join("source"), folder.path().join("model"));
    std::fs::create_dir(&source).unwrap();
    for file in std::fs::read_dir(fixture("llama_f32")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), source.join(file.file_name())).unwrap();
    }
    std::fs::write(source.join("tokenizer.json"), "{}").unwrap();
    std::fs::write(source.join("notes.txt"), "not of the model").unwrap();
    let summary = run(&source, &output, QuantizeFormat::Mxfp4).unwrap();
    let files: BTreeSet<String> = std::fs::read_dir(&output)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let expected = [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ];
    assert_eq!(files, BTreeSet::from(expected.map(String::from)));
    let data = std::fs::read(output.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&data).unwrap();
    let index = std::fs::read_to_string(output.join("model.safetensors.index.json")).unwrap();
    let index: Value = serde_json::from_str(&index).unwrap();
    let names: BTreeSet<&str> = tensors.names().into_iter().collect();
    let indexed: BTreeSet<&str> =
        index["weight_map"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names, indexed);
    assert_eq!(index["metadata"]["total_size"], json!(summary.bytes_after));
    assert!(summary.quantized < summary.tensors && summary.bytes_after < summary.bytes_before);
}

#[test]
fn a_run_that_is_stopped_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("model");
    let mut reports: Vec<QuantizeProgress> = Vec::new();
    let error = quantize(
        Path::new(&fixture("llama_f32")),
        &output,
        QuantizeFormat::Int4,
        &mut |progress| {
            reports.push(progress);
            if reports.len() < 5 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        },
    );
    assert!(matches!(error, Err(Error::Cancelled)), "{error:?}");
    assert_eq!(reports.len(), 5);
    assert!(reports.is_sorted_by_key(|report| report.bytes_done));
    assert!(reports.iter().all(|report| report.bytes_done < report.bytes_total));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn an_output_that_exists_is_refused_and_stays() {
    let folder = tempfile::tempdir().unwrap();
    let error = run(Path::new(&fixture("llama_f32")), folder.path(), QuantizeFormat::Int4);
    assert!(matches!(error, Err(Error::OutputExists { .. })), "{error:?}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn what_is_quantized_is_not_quantized_again() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("model");
    let once = quantized("llama_f32", QuantizeFormat::Mxfp4);
    let error = run(Path::new(&once.path), &output, QuantizeFormat::Int4).unwrap_err().to_string();
    assert!(error.contains("config.json: key quantization: expected full precision"), "{error}");
    let gguf = fixture("gguf_llama_q4_0.gguf");
    let error = run(Path::new(&gguf), &output, QuantizeFormat::Int4).unwrap_err().to_string();
    assert!(error.contains("found a GGUF file"), "{error}");
    assert!(!output.exists());

    let format = Some(QuantizeFormat::Nvfp4);
    let quantizing = LoadOptions { quantize: format, ..options(Precision::Exact) };
    for path in [&once.path, &gguf] {
        let error = estimate(path, &quantizing).unwrap_err();
        let Error::AlreadyQuantized { place, .. } = &error else { panic!("{error}") };
        assert!(place.starts_with("tensor model."), "{error}");
    }
    // Plain numbers in a GGUF file are as good as any.
    outcome(&fixture("gguf_llama_bf16.gguf"), &quantizing);
    let error = estimate("sim:", &quantizing).unwrap_err().to_string();
    assert!(error.contains("option quantize") && error.contains("simulated"), "{error}");
}

/// A configuration with one layer of experts; the writer needs no more of it.
fn experts_config() -> Value {
    json!({"model_type": "qwen3_moe", "num_hidden_layers": 1, "tie_word_embeddings": true})
}

/// Values that tell their place.
fn values(first: usize, len: usize) -> Vec<f32> {
    (first..first + len).map(|value| ((value * 37 % 101) as f32 - 50.0) / 16.0).collect()
}

const HIDDEN: usize = 32;
const INNER: usize = 16;
const EXPERTS: usize = 3;

/// The weights of each expert: gate, up, down.
fn expert(number: usize) -> [Vec<f32>; 3] {
    [0, 1, 2].map(|part| values((3 * number + part) * 1000, HIDDEN * INNER))
}

fn single_experts() -> Vec<Entry> {
    let mut tensors = vec![embedding()];
    for number in 0..EXPERTS {
        let [gate, up, down] = expert(number);
        let name = |leaf: &str| format!("model.layers.0.mlp.experts.{number}.{leaf}.weight");
        tensors.push(numbers(&name("gate_proj"), &[INNER, HIDDEN], &gate));
        tensors.push(numbers(&name("up_proj"), &[INNER, HIDDEN], &up));
        tensors.push(numbers(&name("down_proj"), &[HIDDEN, INNER], &down));
    }
    tensors
}

fn stacked_experts() -> Vec<Entry> {
    let experts = (0..EXPERTS).map(expert);
    let (mut gate_up, mut down) = (Vec::new(), Vec::new());
    for [gate, up, wide] in experts {
        gate_up.extend(gate.into_iter().chain(up));
        down.extend(wide);
    }
    let name = |leaf: &str| format!("model.layers.0.mlp.experts.{leaf}");
    vec![
        embedding(),
        numbers(&name("gate_up_proj"), &[EXPERTS, 2 * INNER, HIDDEN], &gate_up),
        numbers(&name("down_proj"), &[EXPERTS, HIDDEN, INNER], &down),
    ]
}

fn embedding() -> Entry {
    numbers("model.embed_tokens.weight", &[8, HIDDEN], &values(7, 8 * HIDDEN))
}

/// The weights file that becomes of these tensors.
fn written(tensors: &[Entry], format: QuantizeFormat) -> Result<Vec<u8>, Error> {
    let source = write(&experts_config(), tensors);
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("model");
    run(source.path(), &output, format)?;
    Ok(std::fs::read(output.join("model.safetensors")).unwrap())
}

#[test]
fn experts_become_the_same_stacks_however_they_were_stored() {
    for format in QuantizeFormat::ALL {
        let single = written(&single_experts(), format).unwrap();
        assert_eq!(single, written(&stacked_experts(), format).unwrap(), "{format}");
    }
    let data = written(&stacked_experts(), QuantizeFormat::Mxfp4).unwrap();
    let tensors = SafeTensors::deserialize(&data).unwrap();
    let shape = |leaf: &str| {
        let tensor = tensors.tensor(&format!("model.layers.0.mlp.switch_mlp.{leaf}")).unwrap();
        (tensor.dtype(), tensor.shape().to_vec())
    };
    assert_eq!(shape("up_proj.weight"), (Dtype::U32, vec![EXPERTS, INNER, HIDDEN / 8]));
    assert_eq!(shape("up_proj.scales"), (Dtype::U8, vec![EXPERTS, INNER, 1]));
    // Rows of 16 are no whole groups of 32.
    assert_eq!(shape("down_proj.weight"), (Dtype::F32, vec![EXPERTS, HIDDEN, INNER]));
}

#[test]
fn stacks_with_gaps_and_tensors_of_no_use_are_refused_by_name() {
    let refusal = |tensors: &[Entry]| written(tensors, QuantizeFormat::Nvfp4).unwrap_err();
    let missing = |tensors: Vec<Entry>| match refusal(&tensors) {
        Error::MissingTensor { tensor, .. } => tensor,
        other => panic!("{other}"),
    };
    let mut gap = single_experts();
    gap.retain(|(name, ..)| !name.contains("experts.1.up_proj"));
    assert_eq!(missing(gap), "model.layers.0.mlp.experts.1.up_proj.weight");

    let mut odd = single_experts();
    odd.push(numbers("score.weight", &[2, HIDDEN], &values(0, 2 * HIDDEN)));
    let error = refusal(&odd);
    assert!(matches!(&error, Error::UnexpectedTensor { tensor, .. } if tensor == "score.weight"));

    let mut uneven = single_experts();
    uneven[4].2 = vec![HIDDEN, INNER];
    assert!(refusal(&uneven).to_string().contains("experts.1.gate_proj"), "{}", refusal(&uneven));

    let mut wild = single_experts();
    wild[2].3[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let error = refusal(&wild).to_string();
    assert!(error.contains("switch_mlp.up_proj.weight: expected finite values"), "{error}");
}

#[test]
fn an_architecture_without_a_known_layout_is_refused_with_those_that_have_one() {
    let source = write(&json!({"model_type": "bloom", "num_hidden_layers": 1}), &[embedding()]);
    let folder = tempfile::tempdir().unwrap();
    let error = run(source.path(), &folder.path().join("model"), QuantizeFormat::Int4);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("bloom") && error.contains("qwen3_next"), "{error}");
}
