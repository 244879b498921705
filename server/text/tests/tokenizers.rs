//! Real tokenizers against golden ids of Hugging Face's tokenizers (Python), and for the GGUF
//! vocabularies of SmolLM2 and Gemma 3 against llama.cpp too. The vocabularies are fetched, not kept.

#![allow(clippy::unwrap_used, reason = "a failed test panics")]

mod support;

use std::collections::HashSet;

use sconce_text::{DetokenizeOptions, EncodeOptions, GgufVocabulary, Tokenizer, TokenizerConfig};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Corpus {
    texts: Vec<String>,
    long: Vec<(String, usize)>,
}

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
    /// Ids of each long text, as runs of one id.
    long: Vec<Vec<(u32, usize)>>,
}

#[derive(Deserialize)]
struct Case {
    ids: Vec<u32>,
    /// With BOS and EOS, where that differs.
    framed: Option<Vec<u32>>,
    /// With special tokens as plain text, where that differs.
    plain: Option<Vec<u32>>,
    decoded: String,
    /// Each id's bytes in hexadecimal.
    pieces: Option<Vec<String>>,
}

const FRAMED: EncodeOptions =
    EncodeOptions { add_special_tokens: true, parse_special_tokens: true };
const PLAIN: EncodeOptions =
    EncodeOptions { add_special_tokens: false, parse_special_tokens: false };

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn stream(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let options = DetokenizeOptions { skip_special: false, start_of_text: true };
    let mut detokenizer = tokenizer.detokenizer(options);
    let mut text: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
    text.push_str(&detokenizer.finish());
    text
}

/// Checks ids both ways, pieces and text on the whole corpus; `lossless` tells the texts that
/// come back as they were.
fn check(name: &str, tokenizer: &Tokenizer, lossless: impl Fn(&str) -> bool) {
    let corpus: Corpus = support::fixture("corpus.json");
    let golden: Golden = support::fixture(&format!("tokens_{name}.json"));
    assert_eq!(corpus.texts.len(), golden.cases.len());
    for (text, case) in corpus.texts.iter().zip(&golden.cases) {
        let ids = tokenizer.encode(text, EncodeOptions::CHAT).unwrap();
        assert_eq!(ids, case.ids, "{name}: {text:?}");
        let framed = tokenizer.encode(text, FRAMED).unwrap();
        assert_eq!(&framed, case.framed.as_ref().unwrap_or(&case.ids), "{name}: {text:?}");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), case.decoded, "{name}: {text:?}");
        assert_eq!(stream(tokenizer, &ids), case.decoded, "{name}: {text:?}");
        if lossless(text) {
            assert_eq!(tokenizer.pieces(&ids).unwrap().concat(), text.as_bytes(), "{name}");
        }
        if let Some(pieces) = &case.pieces {
            let ours: Vec<_> = tokenizer.pieces(&ids).unwrap().iter().map(|p| hex(p)).collect();
            assert_eq!(&ours, pieces, "{name}: {text:?}");
            let plain = tokenizer.encode(text, PLAIN).unwrap();
            assert_eq!(&plain, case.plain.as_ref().unwrap_or(&case.ids), "{name}: {text:?}");
        }
    }
    for ((unit, count), runs) in corpus.long.iter().zip(&golden.long) {
        let ids = tokenizer.encode(&unit.repeat(*count), EncodeOptions::CHAT).unwrap();
        let expected: Vec<u32> =
            runs.iter().flat_map(|&(id, times)| std::iter::repeat_n(id, times)).collect();
        assert!(ids == expected, "{name}: {unit:?} {count} times");
    }
}

/// A mebibyte of one thing costs about four times a quarter of it, in tokens and in text.
fn check_long_runs(tokenizer: &Tokenizer) {
    for unit in [" ", "a", "\n", " \n", "7", "\u{1f600}"] {
        let text = unit.repeat((1 << 20) / unit.len());
        let ids = tokenizer.encode(&text, EncodeOptions::CHAT).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text, "{unit:?}");
    }
}

#[test]
fn smollm2_from_gguf_equals_tokenizers_and_llama_cpp() {
    let Some((tokenizer, _)) = support::smollm2() else { return };
    assert_eq!(tokenizer.vocab_size(), 49_152);
    assert_eq!(tokenizer.bos_id(), tokenizer.token_to_id("<|im_start|>"));
    assert!(tokenizer.bos_id().is_some());
    assert!(tokenizer.is_special(tokenizer.token_to_id("<|im_end|>").unwrap()));
    // Its vocabulary has no token for some bytes; the references leave them out too.
    check("smollm2", &tokenizer, |text| !text.contains('\u{4}'));
    check_long_runs(&tokenizer);
}

#[test]
fn smollm2_written_as_tokenizer_json_equals_tokenizers() {
    let Some(vocabulary) = support::smollm2_vocabulary() else { return };
    let written = vocabulary.tokenizer_json().unwrap().expect("a byte-level vocabulary has one");
    let json = serde_json::to_vec(&written).unwrap();
    let read = Tokenizer::from_tokenizer_json(&json, &TokenizerConfig::default()).unwrap();
    check("smollm2", &read, |text| !text.contains('\u{4}'));
    assert_eq!(read.vocab_size(), 49_152);
    assert!(read.is_special(read.token_to_id("<|im_end|>").unwrap()));

    // With a frame, and with what is spelled like a special token in another place.
    let framed = GgufVocabulary {
        add_bos_token: Some(true),
        add_eos_token: Some(true),
        ..vocabulary.clone()
    };
    let json = serde_json::to_vec(&framed.tokenizer_json().unwrap().unwrap()).unwrap();
    let read = Tokenizer::from_tokenizer_json(&json, &TokenizerConfig::default()).unwrap();
    let own = Tokenizer::from_gguf(&framed).unwrap();
    for text in ["", "x", "<|im_start|>x <|im_end|>", "a <|im_star"] {
        assert_eq!(read.encode(text, FRAMED).unwrap(), own.encode(text, FRAMED).unwrap(), "{text}");
    }
}

#[test]
fn gemma3_written_as_tokenizer_json_equals_tokenizers() {
    let Some(vocabulary) = support::gemma3_vocabulary() else { return };
    let written = vocabulary.tokenizer_json().unwrap().expect("its scores are ranks");
    // The merges are those of the file that Google made, but for runs that are cut out before.
    let official = support::fetched("tokenizers/gemma3/tokenizer.json").unwrap();
    let official: Value = serde_json::from_slice(&std::fs::read(official).unwrap()).unwrap();
    let pairs = |json: &Value| -> HashSet<String> {
        let merges = json["model"]["merges"].as_array().unwrap().iter();
        merges.map(|pair| pair.as_str().map_or_else(|| pair.to_string(), joined)).collect()
    };
    let (own, others) = (pairs(&written), pairs(&official));
    assert!(own.len() > 500_000 && own.is_subset(&others), "{} merges", own.len());

    let json = serde_json::to_vec(&written).unwrap();
    let read = Tokenizer::from_tokenizer_json(&json, &TokenizerConfig::default()).unwrap();
    check("gemma3", &read, |text| !text.contains('\u{2581}'));
    let gguf = Tokenizer::from_gguf(&vocabulary).unwrap();
    for text in ["", "x", " x  y   z", "\n\n\n a\t\t", "<start_of_turn>user\n  hi<end_of_turn>\n"] {
        assert_eq!(
            read.encode(text, FRAMED).unwrap(),
            gguf.encode(text, FRAMED).unwrap(),
            "{text}"
        );
    }
}

/// A merge that is written as one text, as one that is written as two.
fn joined(merge: &str) -> String {
    let (left, right) = merge.split_once(' ').unwrap();
    serde_json::json!([left, right]).to_string()
}

#[test]
fn a_vocabulary_of_another_kind_is_not_written_as_tokenizer_json() {
    let vocabulary = GgufVocabulary { model: "bert".to_owned(), ..GgufVocabulary::default() };
    assert_eq!(vocabulary.tokenizer_json().unwrap(), None);
}

#[test]
fn qwen3_from_tokenizer_json_equals_tokenizers() {
    let Some((tokenizer, _)) = support::packed("qwen3") else { return };
    // Its normalizer composes characters, so bytes may differ from the text.
    check("qwen3", &tokenizer, |_| false);
    assert_eq!(tokenizer.bos_id(), None);
    assert_eq!(tokenizer.eos_id(), tokenizer.token_to_id("<|im_end|>"));
}

#[test]
fn llama_3_1_from_tokenizer_json_equals_tokenizers() {
    let Some((tokenizer, _)) = support::packed("llama3_1") else { return };
    check("llama3_1", &tokenizer, |_| true);
    check_long_runs(&tokenizer);
    let framed = tokenizer.encode("x", FRAMED).unwrap();
    assert_eq!(framed[0], tokenizer.bos_id().unwrap());
}

#[test]
fn gemma3_from_tokenizer_json_equals_tokenizers() {
    let Some((tokenizer, _)) = support::packed("gemma3") else { return };
    check("gemma3", &tokenizer, |_| false);
    check_long_runs(&tokenizer);
}

#[test]
fn gemma3_from_gguf_equals_tokenizers_and_llama_cpp() {
    let Some(tokenizer) = support::gemma3_gguf() else { return };
    assert_eq!(tokenizer.vocab_size(), 262_144);
    assert_eq!(tokenizer.bos_id(), tokenizer.token_to_id("<bos>"));
    assert_eq!(tokenizer.eos_id(), tokenizer.token_to_id("<eos>"));
    assert!(tokenizer.is_special(tokenizer.token_to_id("<end_of_turn>").unwrap()));
    check("gemma3", &tokenizer, |text| !text.contains('\u{2581}'));
    check_long_runs(&tokenizer);
    let framed = tokenizer.encode("x", FRAMED).unwrap();
    assert_eq!(framed[0], tokenizer.bos_id().unwrap());
}

#[test]
fn special_tokens_are_left_out_of_the_text_unless_asked_for() {
    let Some((tokenizer, _)) = support::smollm2() else { return };
    let ids = tokenizer.encode("<|im_start|>user\nhi<|im_end|>", EncodeOptions::CHAT).unwrap();
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "user\nhi");
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), "<|im_start|>user\nhi<|im_end|>");
    assert!(tokenizer.decode(&[49_152], true).is_err());
}
