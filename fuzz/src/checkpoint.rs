//! Checkpoints of strangers: small ones of every architecture, with another header, or with other
//! words beside their weights. One is refused, or it loads, takes the memory that was foreseen, and
//! can be stepped.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use sconce_models::checkpoint::gguf::Gguf;
use sconce_models::{
    Batch, Checkpoint, DeviceChoice, LoadOptions, Model, Precision, estimate, load, threads,
};
use sconce_server::models::ModelText;

/// Where the checkpoints lie.
const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tests/fixtures");

/// Files whose header is replaced. The first byte of an input is an index of this list, so it only
/// grows.
const GGUF: [&str; 10] = [
    "gguf_llama_q4_0.gguf",
    "gguf_llama_f32.gguf",
    "gguf_gemma3_q8_0.gguf",
    "gguf_qwen3_f32.gguf",
    "gguf_qwen3_k_quants.gguf",
    "gguf_qwen3moe_mxfp4.gguf",
    "gguf_qwen3next_q8_0.gguf",
    "gguf_qwen35_f32.gguf",
    "gguf_qwen35moe_iq4_nl.gguf",
    "gguf_deepseek2_q4_1.gguf",
];

/// Directories whose JSON files are replaced; as [`GGUF`].
const DIRECTORIES: [&str; 18] = [
    "llama_f32",
    "llama_sharded",
    "llama_llama3",
    "llama_yarn",
    "gemma3_f32",
    "gemma3_mlx_4bit",
    "gemma3_multimodal",
    "glm4_moe_lite_f32",
    "glm4_moe_lite_mlx_mxfp4",
    "glm4_moe_lite_yarn",
    "qwen3_f32",
    "qwen3_fp8",
    "qwen3_mlx_8bit",
    "qwen3_moe_mlx_mixed",
    "qwen3_next_f32",
    "qwen3_5_f32",
    "qwen3_5_moe_mlx_mxfp8",
    "qwen3_5_multimodal",
];

/// Files of a directory that an input brings, with a byte of zero between them. An empty one is not
/// there.
const TEXTS: [&str; 4] = [
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "model.safetensors.index.json",
];

/// A vocabulary, without which `tokenizer_config.json` says little.
const TOKENIZER: &str = r#"{"version": "1.0", "added_tokens": [], "normalizer": null,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
    "post_processor": null, "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}}"#;

/// Where the data of a GGUF file begins, unless it says otherwise: at a multiple of this.
const ALIGNMENT: usize = 32;

/// Most bytes that a load may take. The files have a hundredth of it.
const BYTES_MAX: u64 = 64 << 20;
/// Most bytes of the state of sequences; more are not foreseen then.
const STATE_BYTES_MAX: u64 = 4 << 20;

/// What comes after the first two bytes: which checkpoint, and how exactly it computes.
fn parts(bytes: &[u8]) -> Option<(usize, Precision, &[u8])> {
    let [which, precision, rest @ ..] = bytes else { return None };
    let precision = Precision::ALL[usize::from(*precision) % Precision::ALL.len()];
    Some((usize::from(*which), precision, rest))
}

pub(crate) fn gguf(bytes: &[u8]) {
    let Some((which, precision, header)) = parts(bytes) else { return };
    let (_, data) = gguf_parts(GGUF[which % GGUF.len()]);
    let mut file = header.to_vec();
    file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
    file.extend_from_slice(&data);
    let folder = tempfile::tempdir().expect("a temporary directory");
    let path = folder.path().join("fuzz.gguf");
    std::fs::write(&path, file).expect("room for the file");
    check(&path, precision);
}

/// The headers as they are.
pub(crate) fn gguf_seeds() -> Vec<Vec<u8>> {
    let seed = |(index, name): (usize, &&str)| {
        let (header, _) = gguf_parts(name);
        [&[index as u8, index as u8], header.as_slice()].concat()
    };
    GGUF.iter().enumerate().map(seed).collect()
}

/// Header and data of a file.
fn gguf_parts(name: &str) -> (Vec<u8>, Vec<u8>) {
    let mut header = std::fs::read(Path::new(FIXTURES).join(name)).expect("a fixture");
    let gguf = Gguf::parse(&header, name).expect("a fixture is right");
    let start = gguf.tensors().iter().map(|tensor| tensor.range.start).min();
    let data = header.split_off(start.expect("a fixture has tensors"));
    (header, data)
}

pub(crate) fn directory(bytes: &[u8]) {
    let Some((which, precision, texts)) = parts(bytes) else { return };
    let source = Path::new(FIXTURES).join(DIRECTORIES[which % DIRECTORIES.len()]);
    let folder = tempfile::tempdir().expect("a temporary directory");
    for weights in weights(&source) {
        let name = weights.file_name().expect("a file has a name");
        std::os::unix::fs::symlink(&weights, folder.path().join(name)).expect("a link");
    }
    for (name, text) in TEXTS.iter().zip(texts.split(|byte| *byte == 0)) {
        if !text.is_empty() {
            std::fs::write(folder.path().join(name), text).expect("room for the file");
        }
    }
    std::fs::write(folder.path().join("tokenizer.json"), TOKENIZER).expect("room for the file");
    check(folder.path(), precision);
}

/// The files as they are, and one of what no fixture has.
pub(crate) fn directory_seeds() -> Vec<Vec<u8>> {
    let seed = |(index, name): (usize, &&str)| {
        let text = |file| std::fs::read(Path::new(FIXTURES).join(name).join(file));
        let texts = TEXTS.map(|file| text(file).unwrap_or_default());
        [vec![index as u8, index as u8], texts.join(&0)].concat()
    };
    let mut seeds: Vec<_> = DIRECTORIES.iter().enumerate().map(seed).collect();
    let mut texts = TEXTS.map(|_| Vec::new());
    texts[0] = std::fs::read(Path::new(FIXTURES).join("llama_f32/config.json")).expect("a fixture");
    texts[1] = br#"{"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95,
        "min_p": 0.1, "repetition_penalty": 1.1, "eos_token_id": [1, 2]}"#
        .to_vec();
    texts[2] = br#"{"bos_token": {"content": "a"}, "eos_token": "b", "add_bos_token": true,
        "chat_template": [{"name": "default", "template": "{{ messages }}"}]}"#
        .to_vec();
    seeds.push([vec![0, 0], texts.join(&0)].concat());
    seeds
}

/// The files of weights in a directory.
fn weights(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a fixture");
    let paths = entries.map(|entry| entry.expect("a fixture").path());
    paths.filter(|path| path.extension().is_some_and(|end| end == "safetensors")).collect()
}

fn check(path: &Path, precision: Precision) {
    threads::configure(crate::COMPUTE_THREADS).expect("all targets ask for as many");
    let text = path.to_str().expect("a path of ours is text");
    // Independent of whether the weights are of any use.
    drop(ModelText::open(text));
    let Ok(checkpoint) = Checkpoint::open(path) else { return };
    drop(checkpoint.describe());
    for weight in checkpoint.weights().flatten() {
        if let Ok(values) = weight.to_f32() {
            assert_eq!(values.len(), weight.elements(), "{}", weight.name());
        }
    }
    let options = LoadOptions {
        device: DeviceChoice::Cpu,
        precision,
        step_tokens_max: 8,
        sequences_max: 2,
        state_bytes_max: Some(STATE_BYTES_MAX),
        ..LoadOptions::default()
    };
    let go_on = &mut |_| ControlFlow::Continue(());
    let Ok(foreseen) = estimate(text, &options) else {
        assert!(load(text, &options, go_on).is_err(), "what cannot be estimated loads");
        return;
    };
    assert!(foreseen.state_bytes_max <= STATE_BYTES_MAX, "{foreseen:?}");
    if foreseen.weights_bytes.saturating_add(foreseen.workspace_bytes) > BYTES_MAX {
        return;
    }
    let Ok(mut model) = load(text, &options, go_on) else { return };
    let held = model.footprint();
    assert_eq!(foreseen.weights_bytes, held.weights_bytes);
    assert_eq!(foreseen.workspace_bytes, held.workspace_bytes);
    assert_eq!(foreseen.context_length, model.info().context_length);
    assert_eq!(foreseen.state_bytes_max, model.state().layout().bytes_max());
    step(model.as_mut());
}

/// Several tokens of one sequence, the last of the vocabulary among them, and one more.
fn step(model: &mut dyn Model) {
    let last = model.info().vocab_size as u32 - 1;
    let tokens = [0, last, last / 2];
    if model.info().context_length <= tokens.len() {
        return;
    }
    let state = model.state_mut();
    let sequence = state.open().expect("no sequence is open");
    state.reserve(sequence, tokens.len() + 1).expect("a page is free");
    for (first, tokens) in [(0, &tokens[..]), (tokens.len(), &[last])] {
        let mut batch = Batch::default();
        batch.push(sequence, first, tokens, true);
        let vocab_size = model.info().vocab_size;
        let mut logits = model.forward(&batch).expect("a model that loads can be stepped");
        assert_eq!(logits.row(0).expect("is asked for").len(), vocab_size);
    }
    model.state_mut().close(sequence).expect("is open");
}
