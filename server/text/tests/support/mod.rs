//! What the golden tests share: fixtures, fetched files, and just enough of the GGUF container
//! to get a vocabulary out of it (this crate reads no files, so its tests bring their own).

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a failed test panics and speaks")]

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use sconce_text::{GgufVocabulary, Tokenizer, TokenizerConfig};
use serde::de::DeserializeOwned;

/// More than the metadata of any of the files.
const METADATA_BYTES_MAX: u64 = 32 << 20;

/// Reads a golden file made by `tests/reference/text_fixtures.py`.
pub fn fixture<T: DeserializeOwned>(name: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    serde_json::from_slice(&std::fs::read(&path).expect(name)).expect(name)
}

/// A file that `tests/reference/fetch.sh` fetches, or a line that says what is skipped.
pub fn fetched(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.models").join(name);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {name} is not there, run tests/reference/fetch.sh");
    None
}

/// The tokenizer and the chat template of the fetched SmolLM2.
pub fn smollm2() -> Option<(Tokenizer, String)> {
    let metadata = metadata("SmolLM2-135M-Instruct.Q4_1.gguf")?;
    let Some(Fact::Text(template)) = metadata.get("tokenizer.chat_template") else {
        panic!("no chat template")
    };
    Some((Tokenizer::from_gguf(&vocabulary(&metadata)).unwrap(), template.clone()))
}

/// The vocabulary of the fetched SmolLM2.
pub fn smollm2_vocabulary() -> Option<GgufVocabulary> {
    Some(vocabulary(&metadata("SmolLM2-135M-Instruct.Q4_1.gguf")?))
}

/// The tokenizer of the fetched Gemma 3 270M, a SentencePiece vocabulary without chat template.
pub fn gemma3_gguf() -> Option<Tokenizer> {
    Some(Tokenizer::from_gguf(&gemma3_vocabulary()?).unwrap())
}

/// The vocabulary of the fetched Gemma 3 270M.
pub fn gemma3_vocabulary() -> Option<GgufVocabulary> {
    Some(vocabulary(&metadata("gemma-3-270m-q4_k_m.gguf")?))
}

fn metadata(file: &str) -> Option<HashMap<String, Fact>> {
    let file = std::fs::File::open(fetched(file)?).unwrap();
    let mut head = Vec::new();
    file.take(METADATA_BYTES_MAX).read_to_end(&mut head).unwrap();
    Some(Gguf::metadata(&head))
}

fn vocabulary(metadata: &HashMap<String, Fact>) -> GgufVocabulary {
    let fact = |name: &str| metadata.get(&format!("tokenizer.ggml.{name}"));
    let strings = |name: &str| match fact(name) {
        Some(Fact::Strings(strings)) => strings.clone(),
        _ => Vec::new(),
    };
    let number = |name: &str| match fact(name) {
        Some(Fact::Number(number)) => Some(*number as u32),
        _ => None,
    };
    let text = |name: &str| match fact(name) {
        Some(Fact::Text(text)) => Some(text.clone()),
        _ => None,
    };
    let numbers = |name: &str| match fact(name) {
        Some(Fact::Numbers(numbers)) => numbers.clone(),
        _ => Vec::new(),
    };
    GgufVocabulary {
        model: text("model").unwrap(),
        pre: text("pre"),
        tokens: strings("tokens"),
        scores: numbers("scores").iter().map(|&bits| f32::from_bits(bits as u32)).collect(),
        token_types: numbers("token_type").iter().map(|&kind| kind as i32).collect(),
        merges: strings("merges"),
        bos_token_id: number("bos_token_id"),
        eos_token_id: number("eos_token_id"),
        unknown_token_id: number("unknown_token_id"),
        padding_token_id: number("padding_token_id"),
        add_bos_token: number("add_bos_token").map(|flag| flag != 0),
        add_eos_token: number("add_eos_token").map(|flag| flag != 0),
        add_space_prefix: number("add_space_prefix").map(|flag| flag != 0),
        ..GgufVocabulary::default()
    }
}

/// The tokenizer and the chat template of a fetched `tokenizer.json`.
pub fn packed(name: &str) -> Option<(Tokenizer, String)> {
    let json = std::fs::read(fetched(&format!("tokenizers/{name}/tokenizer.json"))?).unwrap();
    let config = fetched(&format!("tokenizers/{name}/tokenizer_config.json"))?;
    let config = TokenizerConfig::from_json(&std::fs::read(config).unwrap()).unwrap();
    let tokenizer = Tokenizer::from_tokenizer_json(&json, &config).unwrap();
    Some((tokenizer, config.chat_templates[0].1.clone()))
}

/// A metadata value, as far as a tokenizer needs it. Of an f32 the number is its bits.
enum Fact {
    Number(i64),
    Text(String),
    Numbers(Vec<i64>),
    Strings(Vec<String>),
    Other,
}

struct Gguf<'a> {
    rest: &'a [u8],
}

impl Gguf<'_> {
    fn metadata(bytes: &[u8]) -> HashMap<String, Fact> {
        assert_eq!(&bytes[..4], b"GGUF");
        let mut reader = Gguf { rest: &bytes[4..] };
        assert!(matches!(reader.number(4), 2 | 3), "a version that is read");
        reader.number(8);
        let count = reader.number(8);
        (0..count).map(|_| (reader.text(), reader.fact())).collect()
    }

    fn number(&mut self, width: usize) -> i64 {
        let (bytes, rest) = self.rest.split_at(width);
        self.rest = rest;
        bytes.iter().rev().fold(0, |value, &byte| value << 8 | i64::from(byte))
    }

    fn text(&mut self) -> String {
        let length = self.number(8) as usize;
        let (bytes, rest) = self.rest.split_at(length);
        self.rest = rest;
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    fn fact(&mut self) -> Fact {
        let kind = self.number(4);
        self.fact_of(kind)
    }

    fn fact_of(&mut self, kind: i64) -> Fact {
        match kind {
            0 | 1 | 7 => Fact::Number(self.number(1)),
            2 | 3 => Fact::Number(self.number(2)),
            4..=6 => Fact::Number(self.number(4)),
            10..=12 => Fact::Number(self.number(8)),
            8 => Fact::Text(self.text()),
            9 => {
                let (kind, count) = (self.number(4), self.number(8));
                let facts: Vec<Fact> = (0..count).map(|_| self.fact_of(kind)).collect();
                match facts.first() {
                    Some(Fact::Text(_)) => {
                        Fact::Strings(facts.into_iter().filter_map(text_of).collect())
                    }
                    Some(Fact::Number(_)) => {
                        Fact::Numbers(facts.into_iter().filter_map(number_of).collect())
                    }
                    _ => Fact::Other,
                }
            }
            other => panic!("metadata type {other}"),
        }
    }
}

fn text_of(fact: Fact) -> Option<String> {
    match fact {
        Fact::Text(text) => Some(text),
        _ => None,
    }
}

fn number_of(fact: Fact) -> Option<i64> {
    match fact {
        Fact::Number(number) => Some(number),
        _ => None,
    }
}
