//! The text of a model as files, in the form of a Hugging Face directory, for another program to
//! tokenize and render chats as this one does.

use std::path::Path;

use sconce_models::checkpoint::{ChatTemplates, Checkpoint, SpecialTokens, TokenizerSource};
use serde_json::{Map, Value, json};

use super::text::{self, vocabulary};
use super::workers::LARGE;
use super::{ReadyModel, sim, worker_failed};
use crate::error::CallError;

/// Files of a directory that are about text, beside `tokenizer.json`.
const DIRECTORY_FILES: &[&str] = &[
    "tokenizer_config.json",
    "special_tokens_map.json",
    "config.json",
    "generation_config.json",
    "chat_template.jinja",
];

/// A file by its name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextFile {
    /// Its name.
    pub name: &'static str,
    /// What is in it.
    pub bytes: Vec<u8>,
}

impl TextFile {
    fn json(name: &'static str, value: &Value) -> Self {
        Self { name, bytes: value.to_string().into_bytes() }
    }
}

impl ReadyModel {
    /// The files of its tokenizer and chat template.
    ///
    /// # Errors
    /// A checkpoint without a tokenizer, or with one that has no exact form in such files.
    pub async fn text_files(&self) -> Result<Vec<TextFile>, CallError> {
        let (path, workers) = (self.model.settings.path.clone(), self.workers.clone());
        let eos = self.model.info.eos_token_ids.clone();
        // As much work as a large text.
        let worker = workers.enter(LARGE).await?;
        let reading = tokio::task::spawn_blocking(move || {
            let _worker = worker;
            read(&path, &eos)
        });
        reading.await.map_err(worker_failed)?
    }
}

fn read(path: &str, eos: &[u32]) -> Result<Vec<TextFile>, CallError> {
    if sim::is_simulated(path) {
        return Ok(sim::files(eos));
    }
    let checkpoint = Checkpoint::open(Path::new(path)).map_err(unreadable)?;
    match checkpoint.tokenizer_source().map_err(unreadable)? {
        None => Err(CallError::not_offered("GetTokenizer of a checkpoint without a tokenizer")),
        Some(TokenizerSource::HuggingFace(files)) => of_directory(&files.tokenizer_json),
        Some(TokenizerSource::Gguf(metadata)) => {
            let vocabulary = vocabulary(*metadata);
            let Some(tokenizer) = vocabulary.tokenizer_json().map_err(unreadable)? else {
                let model = &vocabulary.model;
                let feature = format!(
                    "GetTokenizer of a GGUF file with this vocabulary of the kind `{model}`, which no \
                     tokenizer.json means the same as,"
                );
                return Err(CallError::not_offered(feature));
            };
            let special = checkpoint.special_tokens().map_err(unreadable)?;
            let templates = checkpoint.chat_templates().map_err(unreadable)?;
            let framed = vocabulary.framed().map_err(unreadable)?;
            Ok(of_gguf(framed, &tokenizer, special, templates, eos))
        }
    }
}

/// The files themselves.
fn of_directory(tokenizer_json: &Path) -> Result<Vec<TextFile>, CallError> {
    let mut files = vec![TextFile { name: "tokenizer.json", bytes: text::read(tokenizer_json)? }];
    for name in DIRECTORY_FILES {
        let path = tokenizer_json.with_file_name(name);
        if path.is_file() {
            files.push(TextFile { name, bytes: text::read(&path)? });
        }
    }
    Ok(files)
}

fn of_gguf(
    (add_bos, add_eos): (bool, bool),
    tokenizer: &Value,
    special: SpecialTokens,
    templates: ChatTemplates,
    eos: &[u32],
) -> Vec<TextFile> {
    let mut config = Map::new();
    let texts = [
        ("bos_token", special.bos),
        ("eos_token", special.eos),
        ("unk_token", special.unk),
        ("pad_token", special.pad),
    ];
    for (name, text) in texts {
        config.extend(text.map(|text| (name.to_owned(), text.into())));
    }
    config.insert("add_bos_token".to_owned(), add_bos.into());
    config.insert("add_eos_token".to_owned(), add_eos.into());
    config.insert("clean_up_tokenization_spaces".to_owned(), false.into());
    config.insert("tokenizer_class".to_owned(), "PreTrainedTokenizerFast".into());
    config.extend(chat_template(templates).map(|template| ("chat_template".to_owned(), template)));
    vec![
        TextFile::json("tokenizer.json", tokenizer),
        TextFile::json("tokenizer_config.json", &Value::Object(config)),
        generation_config(eos),
    ]
}

/// One template as text, several as a list with names.
fn chat_template(templates: ChatTemplates) -> Option<Value> {
    let ChatTemplates { default, named } = templates;
    if named.is_empty() {
        return default.map(Value::String);
    }
    let all = default.map(|source| ("default".to_owned(), source)).into_iter().chain(named);
    Some(all.map(|(name, template)| json!({ "name": name, "template": template })).collect())
}

pub(super) fn generation_config(eos: &[u32]) -> TextFile {
    TextFile::json("generation_config.json", &json!({ "eos_token_id": eos }))
}

fn unreadable(error: impl ToString) -> CallError {
    CallError::Internal { problem: format!("the tokenizer's files: {}", error.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::print_stdout, reason = "a test that is skipped says so")]
    fn a_gguf_file_of_sentencepiece_has_the_files_of_a_checkpoint_directory() {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.models");
        let path = models.join("gemma-3-270m-q4_k_m.gguf");
        if !path.exists() {
            println!("skipped: {} is not there, run tests/reference/fetch.sh", path.display());
            return;
        }
        let files = read(path.to_str().expect("is text"), &[1, 106]).expect("reads");
        let file = |name: &str| -> Value {
            let file = files.iter().find(|file| file.name == name).expect(name);
            serde_json::from_slice(&file.bytes).expect("is JSON")
        };
        let tokenizer = file("tokenizer.json");
        assert_eq!(tokenizer["model"]["vocab"]["\u{2581}the"], 506);
        assert_eq!(tokenizer["post_processor"]["special_tokens"]["<bos>"]["ids"], json!([2]));
        let config = file("tokenizer_config.json");
        assert_eq!(
            (&config["add_bos_token"], &config["bos_token"]),
            (&json!(true), &json!("<bos>"))
        );
        assert_eq!(file("generation_config.json"), json!({ "eos_token_id": [1, 106] }));
    }
}
