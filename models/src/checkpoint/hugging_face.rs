//! A Hugging Face model directory: which files it consists of, and what its JSON files say.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::config::{ModelConfig, excerpt, kind};
use super::generation::GenerationConfig;
use super::map::MappedFile;
use super::tensor::RowMap;
use super::tokenizer::{ChatTemplates, HuggingFaceTokenizer, SpecialTokens};
use super::{TensorEntry, TensorTable, safetensors};
use crate::error::Error;

/// Largest JSON or template file that is read into memory. `tokenizer.json` is not among them.
const TEXT_BYTES_MAX: u64 = 64 << 20;

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The files of a model directory besides its weights.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    tokenizer_config: Value,
}

impl Directory {
    /// Reads the tokenizer configuration of the model directory `path`.
    pub(super) fn open(path: &Path) -> Result<Directory, Error> {
        let tokenizer_config = read_json(&path.join("tokenizer_config.json"))?.unwrap_or_default();
        Ok(Directory { path: path.to_path_buf(), tokenizer_config })
    }

    pub(super) fn model_config(&self) -> Result<ModelConfig, Error> {
        let file = self.path.join("config.json");
        let json = read_json(&file)?.ok_or_else(|| Error::NotACheckpoint {
            path: self.path.clone(),
            expected: super::LOOKED_FOR,
            found: "a directory without config.json".into(),
        })?;
        ModelConfig::from_json(file.display().to_string(), json)
    }

    pub(super) fn generation_config(
        &self,
        config: &ModelConfig,
    ) -> Result<GenerationConfig, Error> {
        let file = self.path.join("generation_config.json");
        GenerationConfig::from_json(&file.display().to_string(), read_json(&file)?, config)
    }

    /// Maps all weight files and lists their tensors.
    pub(super) fn tensors(&self) -> Result<(Vec<MappedFile>, TensorTable), Error> {
        let index = self.path.join(INDEX);
        let single = self.path.join(WEIGHTS);
        if !single.is_file()
            && let Some(text) = read_text(&index)?
        {
            let file = index.display().to_string();
            return self.sharded(&safetensors::parse_index(&text, &file)?, &file);
        }
        if !single.is_file() {
            return Err(Error::NotACheckpoint {
                path: self.path.clone(),
                expected: super::LOOKED_FOR,
                found: format!("a directory with neither {WEIGHTS} nor {INDEX}"),
            });
        }
        let mut tensors = TensorTable::new();
        let file = MappedFile::open(&single)?;
        add_tensors(&mut tensors, &file, 0)?;
        Ok((vec![file], tensors))
    }

    fn sharded(
        &self,
        weight_map: &BTreeMap<String, String>,
        index: &str,
    ) -> Result<(Vec<MappedFile>, TensorTable), Error> {
        let mut numbers = BTreeMap::new();
        let mut files = Vec::new();
        let mut tensors = TensorTable::new();
        for shard in weight_map.values() {
            if !numbers.contains_key(shard) {
                let file = MappedFile::open(&self.path.join(shard))?;
                add_tensors(&mut tensors, &file, files.len())?;
                numbers.insert(shard, files.len());
                files.push(file);
            }
        }
        for (name, shard) in weight_map {
            let place = format!("weight_map of tensor {name}");
            match tensors.get(name) {
                Some(entry) if entry.file == numbers[shard] => {}
                Some(entry) => {
                    let found = format!("it in {}", files[entry.file].path().display());
                    return Err(Error::format(index, place, format!("it in {shard}"), found));
                }
                None => {
                    let expected = format!("the tensor in {shard}");
                    return Err(Error::format(index, place, expected, "no such tensor there"));
                }
            }
        }
        Ok((files, tensors))
    }

    /// Where the tokenizer can be built from; `None` without `tokenizer.json`.
    pub(super) fn tokenizer(&self) -> Option<HuggingFaceTokenizer> {
        let tokenizer_json = self.path.join("tokenizer.json");
        tokenizer_json.is_file().then(|| HuggingFaceTokenizer {
            tokenizer_json,
            tokenizer_config: self.tokenizer_config.clone(),
        })
    }

    /// Special tokens of `tokenizer_config.json`, or else of `special_tokens_map.json`.
    pub(super) fn special_tokens(&self) -> Result<SpecialTokens, Error> {
        let map = read_json(&self.path.join("special_tokens_map.json"))?.unwrap_or_default();
        let text = |key: &str| {
            [&self.tokenizer_config, &map].into_iter().find_map(|json| token_text(json.get(key)?))
        };
        Ok(SpecialTokens {
            bos: text("bos_token"),
            eos: text("eos_token"),
            unk: text("unk_token"),
            pad: text("pad_token"),
        })
    }

    /// Chat templates: `chat_template.jinja` before the field of `tokenizer_config.json`, which is
    /// one template or a list of named ones.
    pub(super) fn chat_templates(&self) -> Result<ChatTemplates, Error> {
        let mut templates = ChatTemplates::default();
        let file = || self.path.join("tokenizer_config.json").display().to_string();
        let refuse = |value: &Value| {
            let expected = "a template or a list of {name, template}";
            Error::format(file(), "chat_template", expected, excerpt(value))
        };
        match self.tokenizer_config.get("chat_template") {
            None | Some(Value::Null) => {}
            Some(Value::String(template)) => templates.default = Some(template.clone()),
            Some(Value::Array(list)) => {
                for item in list {
                    let text = |key: &str| item.get(key).and_then(Value::as_str);
                    match text("name").zip(text("template")) {
                        Some(("default", template)) => templates.default = Some(template.into()),
                        Some((name, template)) => {
                            templates.named.push((name.into(), template.into()));
                        }
                        None => return Err(refuse(item)),
                    }
                }
            }
            Some(other) => return Err(refuse(other)),
        }
        if let Some(template) = read_text(&self.path.join("chat_template.jinja"))? {
            templates.default = Some(template);
        }
        templates.named.sort();
        Ok(templates)
    }
}

/// Adds the tensors of a file, the `number`th of the checkpoint.
fn add_tensors(tensors: &mut TensorTable, file: &MappedFile, number: usize) -> Result<(), Error> {
    let name = file.path().display().to_string();
    for entry in safetensors::parse(file.bytes(), &name)? {
        let place = format!("tensor {}", entry.name);
        let tensor = TensorEntry {
            name_in_file: entry.name.clone(),
            dtype: entry.dtype,
            shape: entry.shape,
            file: number,
            range: entry.range,
            row_map: RowMap::Identity,
        };
        if tensors.insert(entry.name, tensor).is_some() {
            let found = "it in another file as well";
            return Err(Error::format(name, place, "each tensor in one file", found));
        }
    }
    Ok(())
}

/// A special token: its text, or an object with the text as `content`.
fn token_text(value: &Value) -> Option<String> {
    let text = match value {
        Value::Object(token) => token.get("content")?,
        other => other,
    };
    text.as_str().map(str::to_string)
}

/// The object in a JSON file; `None` if there is no such file.
fn read_json(path: &Path) -> Result<Option<Value>, Error> {
    let Some(text) = read_text(path)? else { return Ok(None) };
    match serde_json::from_str(&text) {
        Ok(json @ Value::Object(_)) => Ok(Some(json)),
        Ok(other) => Err(Error::format(path.display(), "file", "a JSON object", kind(&other))),
        Err(error) => Err(Error::format(path.display(), "file", "JSON", error)),
    }
}

/// The text of a file; `None` if there is no such file.
fn read_text(path: &Path) -> Result<Option<String>, Error> {
    // Before it is opened, for opening a pipe waits until somebody writes to it.
    if std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        return Err(Error::format(path.display(), "file", "a regular file", "something else"));
    }
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(path)(error)),
    };
    let mut text = String::new();
    file.take(TEXT_BYTES_MAX + 1).read_to_string(&mut text).map_err(Error::io(path))?;
    if text.len() as u64 > TEXT_BYTES_MAX {
        let expected = format!("at most {TEXT_BYTES_MAX} bytes");
        return Err(Error::format(path.display(), "file", expected, "more"));
    }
    Ok(Some(text))
}
