//! Checkpoints: files of weights on disk, seen as one thing whatever format they are in.
//!
//! A [`Checkpoint`] answers in the vocabulary of `transformers`: keys of `config.json`, names of
//! tensors, rows first. GGUF files are translated when they are opened. Nothing here computes.

pub mod config;
mod conventions;
pub mod describe;
pub mod dtype;
mod fingerprint;
mod float8;
mod fp8;
pub mod generation;
pub mod gguf;
mod hugging_face;
pub mod map;
mod mlx;
mod names;
mod quantization;
pub mod rope;
pub mod rows;
pub mod safetensors;
mod selection;
pub mod tensor;
pub mod tokenizer;
mod weight;
mod weights;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

pub use config::ModelConfig;
pub use conventions::Conventions;
pub use describe::Description;
pub use dtype::Dtype;
pub use generation::GenerationConfig;
pub use rope::{Rope, RopeScaling, Yarn};
pub use rows::{AffineWeight, CodedWeight, DenseWeight, MatrixRows};
pub use selection::RowSelection;
pub use tensor::{RowMap, TensorView};
pub use tokenizer::{
    ChatTemplates, GgufTokenizer, HuggingFaceTokenizer, SpecialTokens, TokenizerSource,
};
pub use weight::Weight;

use serde_json::Value;

use crate::error::Error;
use gguf::Gguf;
use hugging_face::Directory;
use map::MappedFile;
use quantization::Quantization;

/// What [`Checkpoint::open`] looks for, for messages.
const LOOKED_FOR: &str = "a GGUF file, or a directory with config.json and model.safetensors or \
     model.safetensors.index.json";

/// An opened checkpoint. Its weights are mapped, not read; see [`map::MappedFile`] for what happens
/// when somebody changes the files meanwhile.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    format: Format,
    config: ModelConfig,
    generation: GenerationConfig,
    files: Vec<MappedFile>,
    tensors: TensorTable,
    quantization: Quantization,
    conventions: Conventions,
}

/// What a checkpoint was opened from.
#[derive(Debug)]
enum Format {
    Gguf(Box<Gguf>),
    HuggingFace(Directory),
    /// Nothing but a configuration: weights are random, by this seed.
    Random(u64),
}

/// Tensors by canonical name.
type TensorTable = BTreeMap<String, TensorEntry>;

/// A tensor of the table; its range lies inside its file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct TensorEntry {
    name_in_file: String,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Index in `Checkpoint::files`.
    file: usize,
    range: Range<usize>,
    row_map: RowMap,
}

impl Checkpoint {
    /// Opens the GGUF file or the Hugging Face directory at `path`, whichever it is.
    ///
    /// # Errors
    /// [`Error::NotACheckpoint`] if it is neither, [`Error::Io`] if a file cannot be read, and
    /// [`Error::Format`] or [`Error::Config`] if one is damaged.
    pub fn open(path: impl AsRef<Path>) -> Result<Checkpoint, Error> {
        let path = path.as_ref();
        let metadata = std::fs::metadata(path).map_err(Error::io(path))?;
        if metadata.is_dir() { Self::open_directory(path) } else { Self::open_file(path) }
    }

    fn open_directory(path: &Path) -> Result<Checkpoint, Error> {
        let directory = Directory::open(path)?;
        let config = directory.model_config()?;
        let generation = directory.generation_config(&config)?;
        let quantization = Quantization::read(&config)?;
        let (files, tensors) = directory.tensors()?;
        let mut tensors = names::rename(tensors, &path.display().to_string())?;
        let conventions = Conventions::settle(&mut tensors);
        let format = Format::HuggingFace(directory);
        let path = path.to_path_buf();
        let checkpoint = Checkpoint {
            path,
            format,
            config,
            generation,
            files,
            tensors,
            quantization,
            conventions,
        };
        checkpoint.refuse_lone_scales()?;
        Ok(checkpoint)
    }

    fn open_file(path: &Path) -> Result<Checkpoint, Error> {
        let file = MappedFile::open(path)?;
        if !file.bytes().starts_with(&gguf::MAGIC) {
            let start = &file.bytes()[..file.bytes().len().min(gguf::MAGIC.len())];
            return Err(Error::NotACheckpoint {
                path: path.to_path_buf(),
                expected: LOOKED_FOR,
                found: format!("a file that starts with {}", start.escape_ascii()),
            });
        }
        let gguf = Gguf::parse(file.bytes(), &path.display().to_string())?;
        let tensors = gguf.tensor_table()?;
        let divisors = gguf.rope_divisors(file.bytes())?;
        let config = gguf.model_config(divisors)?;
        let generation = gguf.generation_config(&config)?;
        let conventions = Conventions::of_gguf(gguf.architecture()?);
        Ok(Checkpoint {
            path: path.to_path_buf(),
            format: Format::Gguf(Box::new(gguf)),
            config,
            generation,
            files: vec![file],
            tensors,
            quantization: Quantization::None,
            conventions,
        })
    }

    /// A configuration without files, for weights that nobody trained: the tensors an architecture asks
    /// for are made from `seed` when it does. Norms count as stored with the one added.
    ///
    /// # Errors
    /// [`Error::Config`] if it is no configuration.
    pub fn random(config: Value, seed: u64) -> Result<Checkpoint, Error> {
        let name = format!("random weights {seed}");
        let config = ModelConfig::from_json(&name, config)?;
        Ok(Checkpoint {
            path: PathBuf::from(name),
            format: Format::Random(seed),
            config,
            generation: GenerationConfig::default(),
            files: Vec::new(),
            tensors: TensorTable::new(),
            quantization: Quantization::None,
            conventions: Conventions { norms_shifted: true, value_heads_tiled: false },
        })
    }

    /// The seed of weights that are not stored; none where they are.
    pub(crate) fn seed(&self) -> Option<u64> {
        match self.format {
            Format::Random(seed) => Some(seed),
            _ => None,
        }
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Configuration of the model, under the keys of `config.json`.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Stop ids and sampling defaults.
    pub fn generation_config(&self) -> &GenerationConfig {
        &self.generation
    }

    /// The header, if the checkpoint is a GGUF file.
    pub fn gguf(&self) -> Option<&Gguf> {
        match &self.format {
            Format::Gguf(gguf) => Some(gguf),
            Format::HuggingFace(_) | Format::Random(_) => None,
        }
    }

    /// Whether there is a tensor of this canonical name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Canonical names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// All tensors, in order of name.
    pub fn tensors(&self) -> impl Iterator<Item = TensorView<'_>> {
        self.tensors.iter().map(|(name, entry)| self.view(name, entry))
    }

    /// A tensor by canonical name.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>, Error> {
        match self.tensors.get_key_value(name) {
            Some((name, entry)) => Ok(self.view(name, entry)),
            None => Err(self.missing(name)),
        }
    }

    /// What a tokenizer can be built from; `None` where the checkpoint has none.
    ///
    /// # Errors
    /// [`Error::Config`] if the metadata that holds it is damaged.
    pub fn tokenizer_source(&self) -> Result<Option<TokenizerSource>, Error> {
        Ok(match &self.format {
            Format::Gguf(gguf) => {
                gguf.tokenizer()?.map(|source| TokenizerSource::Gguf(Box::new(source)))
            }
            Format::HuggingFace(directory) => {
                directory.tokenizer().map(TokenizerSource::HuggingFace)
            }
            Format::Random(_) => None,
        })
    }

    /// Texts of the special tokens that chat templates refer to.
    ///
    /// # Errors
    /// [`Error::Format`] or [`Error::Config`] if what holds them is damaged.
    pub fn special_tokens(&self) -> Result<SpecialTokens, Error> {
        match &self.format {
            Format::Gguf(gguf) => gguf.special_tokens(),
            Format::HuggingFace(directory) => directory.special_tokens(),
            Format::Random(_) => Ok(SpecialTokens::default()),
        }
    }

    /// The chat templates; empty where the checkpoint has none.
    ///
    /// # Errors
    /// [`Error::Format`] or [`Error::Config`] if what holds them is damaged.
    pub fn chat_templates(&self) -> Result<ChatTemplates, Error> {
        match &self.format {
            Format::Gguf(gguf) => gguf.chat_templates(),
            Format::HuggingFace(directory) => directory.chat_templates(),
            Format::Random(_) => Ok(ChatTemplates::default()),
        }
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.tensors.values().map(|entry| entry.range.len() as u64).sum()
    }

    /// What the writer of the checkpoint did to its weights.
    pub fn conventions(&self) -> Conventions {
        self.conventions
    }

    fn missing(&self, name: &str) -> Error {
        let file = self.path.display().to_string();
        Error::MissingTensor { file, tensor: name.to_string() }
    }

    fn view<'a>(&'a self, name: &'a str, entry: &'a TensorEntry) -> TensorView<'a> {
        let file = &self.files[entry.file];
        TensorView {
            name,
            name_in_file: &entry.name_in_file,
            dtype: entry.dtype,
            shape: &entry.shape,
            bytes: &file.bytes()[entry.range.clone()],
            file: file.path(),
            row_map: entry.row_map,
        }
    }
}
