//! Loading: progress, cancellation, estimates, and checkpoints whose tensors do not fit.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/fixtures.rs"]
mod fixtures;
#[path = "support/gguf.rs"]
mod gguf;
#[path = "support/golden.rs"]
mod golden;
#[path = "support/stepping.rs"]
mod stepping;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize_to_file};
use sconce_models::{Error, LoadOptions, LoadProgress, LoadStage, Precision, estimate, load};
use serde_json::{Value, json};
use tempfile::TempDir;

use stepping::{fixture, options, quantized_llama, smollm2};

/// A tensor to be written: type, shape, bytes.
type Tensor = (Dtype, Vec<usize>, Vec<u8>);

/// A copy of the fixture `llama_f32` with changes to its configuration and its tensors.
fn changed(config: Value, change: impl FnOnce(&mut BTreeMap<String, Tensor>)) -> TempDir {
    let source = fixture("llama_f32");
    let source = Path::new(&source);
    let bytes = std::fs::read(source.join("model.safetensors")).unwrap();
    let mut tensors: BTreeMap<String, Tensor> = SafeTensors::deserialize(&bytes)
        .unwrap()
        .iter()
        .map(|(name, view)| {
            (name.to_string(), (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        })
        .collect();
    change(&mut tensors);
    let folder = tempfile::tempdir().unwrap();
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    serialize_to_file(views, None, &folder.path().join("model.safetensors")).unwrap();
    let text = std::fs::read_to_string(source.join("config.json")).unwrap();
    let mut json: Value = serde_json::from_str(&text).unwrap();
    json.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
    std::fs::write(folder.path().join("config.json"), json.to_string()).unwrap();
    folder
}

fn try_load(folder: &TempDir, options: &LoadOptions) -> Result<(), Error> {
    let path = folder.path().to_str().unwrap();
    load(path, options, &mut |_| ControlFlow::Continue(())).map(|_| ())
}

/// The error of loading a changed copy.
fn refused(config: Value, change: impl FnOnce(&mut BTreeMap<String, Tensor>)) -> Error {
    try_load(&changed(config, change), &options(Precision::Exact)).unwrap_err()
}

fn small() -> Tensor {
    (Dtype::F32, vec![2], vec![0; 8])
}

#[test]
fn progress_goes_through_every_stage_and_counts_every_tensor() {
    let mut heard: Vec<LoadProgress> = Vec::new();
    let mut listen = |progress| {
        heard.push(progress);
        ControlFlow::Continue(())
    };
    load(&fixture("llama_sharded"), &options(Precision::Fast), &mut listen).unwrap();
    assert!(heard.is_sorted_by_key(|progress| progress.stage));
    let mut stages: Vec<LoadStage> = heard.iter().map(|progress| progress.stage).collect();
    stages.dedup();
    let expected = [LoadStage::Open, LoadStage::Weights, LoadStage::WarmUp, LoadStage::Ready];
    assert_eq!(stages, expected);
    let weights: Vec<_> = heard.iter().filter(|p| p.stage == LoadStage::Weights).collect();
    assert!(weights.is_sorted_by_key(|p| (p.tensors_done, p.bytes_done)));
    let last = weights.last().unwrap();
    assert!(last.tensors_total > 10 && last.bytes_total > 0);
    assert_eq!((last.tensors_done, last.bytes_done), (last.tensors_total, last.bytes_total));
}

#[test]
fn a_load_can_be_stopped_at_every_report() {
    let (path, options) = (fixture("llama_f32"), options(Precision::Fast));
    let mut reports = 0;
    load(&path, &options, &mut |_| {
        reports += 1;
        ControlFlow::Continue(())
    })
    .unwrap();
    for stop_at in 0..reports {
        let mut heard = 0;
        let result = load(&path, &options, &mut |_| {
            heard += 1;
            if heard > stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(matches!(result, Err(Error::Cancelled)), "report {stop_at}");
        assert_eq!(heard, stop_at + 1, "the load went on after report {stop_at}");
    }
}

#[test]
fn what_was_estimated_is_what_a_loaded_model_holds() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = folder.path().join("tiny.gguf");
    std::fs::write(&tiny, quantized_llama()).unwrap();
    let mut paths: Vec<String> =
        fixtures::all().iter().map(|fixture| fixture.path.to_str().unwrap().to_string()).collect();
    paths.push(tiny.to_str().unwrap().to_string());
    paths.extend(smollm2());
    for path in paths {
        for precision in Precision::ALL {
            let options = options(precision);
            let foreseen = estimate(&path, &options).unwrap();
            let model = stepping::load(&path, &options);
            let (held, state) = (model.footprint(), model.state().layout());
            assert_eq!(foreseen.weights_bytes, held.weights_bytes, "{path}");
            assert_eq!(foreseen.workspace_bytes, held.workspace_bytes, "{path}");
            assert_eq!(foreseen.state_bytes_per_token, state.bytes_per_token(), "{path}");
            assert_eq!(foreseen.state_bytes_max, state.bytes_max(), "{path}");
            assert_eq!(foreseen.pages_max, state.pages_max, "{path}");
            assert_eq!(foreseen.context_length, model.info().context_length, "{path}");
            let pages = state.pages_for(foreseen.context_length) as u64;
            let bytes = pages * state.bytes_per_page() + state.bytes_per_sequence();
            assert_eq!(foreseen.state_bytes_at_context, bytes, "{path}");
        }
    }
}

#[test]
fn a_missing_a_wrong_and_a_superfluous_tensor_are_told_apart() {
    const NORM: &str = "model.norm.weight";
    let error = refused(json!({}), |tensors| {
        tensors.remove(NORM);
    });
    assert!(matches!(&error, Error::MissingTensor { tensor, .. } if tensor == NORM), "{error}");

    let error = refused(json!({}), |tensors| {
        tensors.insert(NORM.into(), small());
    });
    assert!(
        matches!(&error, Error::Shape { tensor, found, .. } if tensor == NORM && found == &[2]),
        "{error}"
    );

    let error = refused(json!({}), |tensors| {
        tensors.insert("model.layers.0.mlp.experts.weight".into(), small());
    });
    assert!(matches!(&error, Error::UnexpectedTensor { .. }), "{error}");
    assert!(error.to_string().contains("model.layers.0.mlp.experts.weight"), "{error}");
}

#[test]
fn a_tensor_of_another_type_is_told_from_one_of_another_shape() {
    const NORM: &str = "model.norm.weight";
    let error = refused(json!({}), |tensors| {
        let (_, shape, data) = tensors[NORM].clone();
        tensors.insert(NORM.into(), (Dtype::I32, shape, data));
    });
    assert!(matches!(&error, Error::UnsupportedDtype { tensor, .. } if tensor == NORM), "{error}");
    let text = error.to_string();
    assert!(text.contains("model.safetensors") && text.contains("I32"), "{text}");
}

/// The last tensor that is read is wrong, or one is too many: nothing was packed by then.
#[test]
fn what_does_not_fit_is_refused_before_any_weight_is_packed() {
    for name in ["lm_head.weight", "model.layers.0.self_attn.q_norm.weight"] {
        let folder = changed(json!({"tie_word_embeddings": false}), |tensors| {
            tensors.insert(name.into(), small());
        });
        let mut stages = Vec::new();
        let outcome = load(
            folder.path().to_str().unwrap(),
            &options(Precision::Exact),
            &mut |progress: LoadProgress| {
                stages.push(progress.stage);
                ControlFlow::Continue(())
            },
        );
        let error = outcome.map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::Shape { .. } | Error::UnexpectedTensor { .. }), "{error}");
        assert_eq!(stages, [LoadStage::Open], "{error}");
    }
}

#[test]
fn biases_that_the_configuration_does_not_know_are_not_ignored() {
    let error = refused(json!({}), |tensors| {
        tensors.insert("model.layers.0.self_attn.q_proj.bias".into(), small());
    });
    assert!(matches!(error, Error::UnexpectedTensor { .. }), "{error}");
    let error = refused(json!({"attention_bias": true}), |_| {});
    assert!(matches!(error, Error::MissingTensor { .. }), "{error}");
}

#[test]
fn frequencies_that_old_checkpoints_store_are_no_obstacle() {
    let folder = changed(json!({}), |tensors| {
        tensors.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), small());
    });
    try_load(&folder, &options(Precision::Exact)).unwrap();
}

#[test]
fn an_architecture_that_is_not_built_is_refused_with_those_that_are() {
    let error = refused(json!({"model_type": "gpt2"}), |_| {});
    assert!(matches!(&error, Error::UnsupportedArchitecture { found, .. } if found == "gpt2"));
    assert!(error.to_string().contains("supported are llama"), "{error}");
    let error = refused(json!({"architectures": ["LlamaForSequenceClassification"]}), |_| {});
    assert!(matches!(&error, Error::UnsupportedArchitecture { .. }), "{error}");
    let error = refused(json!({"architectures": ["Qwen3ForCausalLM"]}), |_| {});
    assert!(matches!(&error, Error::Config { key, .. } if key == "model_type"), "{error}");
}

#[test]
fn a_mistral_without_a_window_is_a_llama_and_one_with_a_window_is_not() {
    let folder = changed(json!({"model_type": "mistral", "sliding_window": null}), |_| {});
    try_load(&folder, &options(Precision::Exact)).unwrap();
    let error = refused(json!({"model_type": "mistral", "sliding_window": 4096}), |_| {});
    assert!(matches!(&error, Error::Config { key, .. } if key == "sliding_window"), "{error}");
}

#[test]
fn options_that_cannot_be_are_refused_by_load_and_estimate_alike() {
    let folder = changed(json!({}), |_| {});
    let plain = options(Precision::Exact);
    for (broken, name) in [
        (LoadOptions { step_tokens_max: 0, ..plain.clone() }, "step_tokens_max"),
        (LoadOptions { sequences_max: 0, ..plain.clone() }, "sequences_max"),
        (LoadOptions { step_tokens_max: usize::MAX, ..plain.clone() }, "step_tokens_max"),
        (LoadOptions { context_length: Some(1 << 30), ..plain.clone() }, "context_length"),
        (LoadOptions { state_bytes_max: Some(1), ..plain.clone() }, "state_bytes_max"),
    ] {
        for error in [
            try_load(&folder, &broken).unwrap_err(),
            estimate(folder.path().to_str().unwrap(), &broken).unwrap_err(),
        ] {
            assert!(matches!(&error, Error::Option { option, .. } if option == name), "{error}");
        }
    }
}

#[test]
fn a_shorter_context_and_a_smaller_step_are_kept() {
    let asked =
        LoadOptions { context_length: Some(10), step_tokens_max: 4, ..options(Precision::Exact) };
    let mut model = stepping::load(&fixture("llama_f32"), &asked);
    assert_eq!((model.info().context_length, model.step_tokens_max()), (10, 4));
    assert!(model.info().context_length_trained > 10);
    let id = model.state_mut().open().unwrap();
    for _ in 0..2 {
        stepping::feed(model.as_mut(), id, &[1, 2, 3, 4]);
    }
    let mut batch = sconce_models::Batch::default();
    batch.push(id, 8, &[1, 2, 3], true);
    model.state_mut().reserve(id, 3).unwrap();
    let error = model.forward(&batch).unwrap_err().to_string();
    assert!(error.contains("within 10 tokens, found 11"), "{error}");
}

#[test]
fn the_same_weights_in_another_precision_are_another_model() {
    let path = fixture("llama_f32");
    let of = |path: &str, precision| stepping::load(path, &options(precision)).info().fingerprint;
    assert_eq!(of(&path, Precision::Fast), of(&path, Precision::Fast));
    assert_ne!(of(&path, Precision::Fast), of(&path, Precision::Exact));
    assert_ne!(of(&path, Precision::Fast), of(&fixture("llama_bf16"), Precision::Fast));
}
