//! The tiny checkpoints of `tests/fixtures` that have golden answers, and how closely each is held to
//! them. How the answers were made is in `tests/reference`; how a model is stepped is not here.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::golden;

/// `model_type` of an architecture, and the name it has in GGUF files.
pub(crate) const ARCHITECTURES: &[(&str, &str)] = &[
    ("llama", "llama"),
    ("qwen3", "qwen3"),
    ("qwen3_moe", "qwen3moe"),
    ("gemma3", "gemma3"),
    ("glm4_moe_lite", "deepseek2"),
    ("qwen3_next", "qwen3next"),
    ("qwen3_5", "qwen35"),
    ("qwen3_5_moe", "qwen35moe"),
];

/// Weights as stored. The order is that of the table in `docs/MODELS.md`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Packing {
    /// A directory of unquantized weights.
    Plain(String),
    /// A directory of weights with one factor for each block.
    BlockFp8,
    /// A directory quantized by MLX.
    Mlx(String),
    /// A GGUF file.
    Gguf(String),
}

/// A checkpoint with golden answers.
#[derive(Debug)]
pub(crate) struct Fixture {
    /// Name of the folder or file.
    pub(crate) name: String,
    /// What to load.
    pub(crate) path: PathBuf,
    /// Golden answers.
    pub(crate) golden: Value,
    /// `model_type` of the text model.
    pub(crate) architecture: &'static str,
    pub(crate) packing: Packing,
}

impl Packing {
    /// What the packing is called in tables.
    pub(crate) fn label(&self) -> String {
        match self {
            Self::Plain(dtype) => dtype.clone(),
            Self::BlockFp8 => "FP8, blocks of 128 x 128".to_string(),
            Self::Mlx(parameters) => format!("MLX {parameters}"),
            Self::Gguf(kind) => format!("GGUF {kind}"),
        }
    }
}

impl Fixture {
    /// Largest difference of the log-probabilities of the five best tokens from those of the reference.
    /// Both sides compute in float32, in different orders.
    pub(crate) fn logprob_bound(&self) -> f64 {
        match self.architecture {
            // A recurrent state carries roundings on, and the random weights of fixtures amplify them.
            "qwen3_next" | "qwen3_5" | "qwen3_5_moe" => 1e-3,
            _ => 2e-4,
        }
    }

    /// The context to load with, if not the checkpoint's own: dynamic rope is tested where it differs
    /// from plain rope, past the trained context.
    pub(crate) fn context_length(&self) -> Option<usize> {
        (self.name == "llama_dynamic").then_some(48)
    }
}

/// Names the folder of fixtures on a machine where tests are carried to.
const FOLDER_VARIABLE: &str = "SCONCE_FIXTURES";

/// The folder of fixtures.
fn root() -> PathBuf {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    std::env::var_os(FOLDER_VARIABLE).map_or_else(built, PathBuf::from)
}

/// Every folder with a `golden.json` and every GGUF file beside its `.golden.json`, sorted by name.
pub(crate) fn all() -> Vec<Fixture> {
    let root = root();
    let mut found: Vec<Fixture> = std::fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter_map(|path| fixture(&path))
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(!found.is_empty(), "no fixture under {}", root.display());
    found
}

fn fixture(path: &Path) -> Option<Fixture> {
    let gguf = path.extension().is_some_and(|extension| extension == "gguf");
    let golden = if gguf { path.with_extension("golden.json") } else { path.join("golden.json") };
    if !golden.exists() {
        return None;
    }
    let name = path.file_name()?.to_str()?.to_string();
    let (architecture, packing) = if gguf {
        of_file(&name)
    } else {
        of_config(&golden::read(&path.join("config.json")), &name)
    };
    let golden = golden::read(&golden);
    Some(Fixture { name, path: path.to_path_buf(), golden, architecture, packing })
}

/// By the name of a GGUF file, `gguf_<architecture>_<type>.gguf`.
fn of_file(name: &str) -> (&'static str, Packing) {
    let parts = name.trim_end_matches(".gguf").splitn(3, '_').collect::<Vec<_>>();
    let known = ARCHITECTURES.iter().find(|(_, gguf)| parts[1] == *gguf);
    let (architecture, _) = known.unwrap_or_else(|| panic!("{name}: unknown architecture"));
    (architecture, Packing::Gguf(parts[2].to_uppercase()))
}

/// By the content of `config.json`.
fn of_config(config: &Value, name: &str) -> (&'static str, Packing) {
    let text = config.get("text_config").unwrap_or(config);
    let model_type = text["model_type"].as_str().unwrap().trim_end_matches("_text");
    let known = ARCHITECTURES.iter().find(|(architecture, _)| model_type == *architecture);
    let (architecture, _) = known.unwrap_or_else(|| panic!("{name}: unknown {model_type}"));
    let packing = match (config.get("quantization"), config.get("quantization_config")) {
        (Some(mlx), _) => Packing::Mlx(mlx_parameters(mlx)),
        (None, Some(_)) => Packing::BlockFp8,
        (None, None) => {
            let dtype = text.get("dtype").or(text.get("torch_dtype")).and_then(Value::as_str);
            Packing::Plain(match dtype {
                Some("float32") => "F32".to_string(),
                Some("float16") => "F16".to_string(),
                Some("bfloat16") => "BF16".to_string(),
                other => panic!("{name}: dtype {other:?}"),
            })
        }
    };
    (architecture, packing)
}

/// The parameters most modules have, and whether others than router gates have their own.
fn mlx_parameters(quantization: &Value) -> String {
    let (bits, group) = (&quantization["bits"], &quantization["group_size"]);
    let mut name = match quantization["mode"].as_str() {
        None | Some("affine") => format!("{bits}-bit, groups of {group}"),
        Some(mode) => mode.to_string(),
    };
    let modules: Vec<_> = quantization.as_object().unwrap().iter().filter(not_a_gate).collect();
    if modules.iter().any(|(_, own)| own["global_scale"] == true) {
        name += ", a scale for each expert";
    } else if !modules.is_empty() {
        name += ", mixed";
    }
    name
}

/// Whether an entry is that of a module which mlx-lm does not always quantize to 8 bits.
fn not_a_gate((path, value): &(&String, &Value)) -> bool {
    let gate = path.ends_with("mlp.gate") || path.ends_with("shared_expert_gate");
    !gate && (value.is_object() || value.is_boolean())
}
