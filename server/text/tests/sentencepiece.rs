//! SentencePiece BPE from scores against Python's sentencepiece and against llama.cpp, on a tiny
//! vocabulary of our own.

#![allow(clippy::unwrap_used, reason = "a failed test panics")]

mod support;

use proptest::prelude::*;
use sconce_text::{DetokenizeOptions, EncodeOptions, GgufVocabulary, Tokenizer, TokenizerConfig};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    tokens: Vec<String>,
    scores: Vec<f32>,
    token_types: Vec<i32>,
    texts: Vec<String>,
    /// By sentencepiece, which knows no special tokens in text.
    ids: Vec<Vec<u32>>,
    /// By llama.cpp with special tokens parsed.
    llama_cpp: Vec<Vec<u32>>,
    decoded: Vec<String>,
}

fn vocabulary(golden: &Golden) -> GgufVocabulary {
    GgufVocabulary {
        model: "llama".to_owned(),
        tokens: golden.tokens.clone(),
        scores: golden.scores.clone(),
        token_types: golden.token_types.clone(),
        bos_token_id: Some(1),
        eos_token_id: Some(2),
        unknown_token_id: Some(0),
        ..GgufVocabulary::default()
    }
}

fn golden() -> (Golden, Tokenizer) {
    let golden: Golden = support::fixture("sentencepiece.json");
    let tokenizer = Tokenizer::from_gguf(&vocabulary(&golden)).unwrap();
    (golden, tokenizer)
}

#[test]
fn ids_and_text_equal_those_of_sentencepiece() {
    let (golden, tokenizer) = golden();
    let plain = EncodeOptions { add_special_tokens: false, parse_special_tokens: false };
    for ((text, ids), decoded) in golden.texts.iter().zip(&golden.ids).zip(&golden.decoded) {
        assert_eq!(&tokenizer.encode(text, plain).unwrap(), ids, "{text:?}");
        assert_eq!(&tokenizer.decode(ids, true).unwrap(), decoded, "{text:?}");
    }
}

#[test]
fn ids_with_special_tokens_parsed_equal_those_of_llama_cpp() {
    let (golden, tokenizer) = golden();
    // Around user-defined tokens llama.cpp puts spaces where SentencePiece does not.
    let comparable = |text: &str| !text.contains("    ") && !text.contains("<think>");
    let mut compared = 0;
    for (text, ids) in golden.texts.iter().zip(&golden.llama_cpp).filter(|(t, _)| comparable(t)) {
        assert_eq!(&tokenizer.encode(text, EncodeOptions::CHAT).unwrap(), ids, "{text:?}");
        compared += 1;
    }
    assert!(compared > 60, "{compared} texts compared");
}

#[test]
fn a_prompt_begins_with_bos_unless_the_file_says_otherwise() {
    let (golden, tokenizer) = golden();
    let framed = |tokenizer: &Tokenizer| tokenizer.encode("x", EncodeOptions::default()).unwrap();
    assert_eq!(framed(&tokenizer)[0], 1);
    let facts = GgufVocabulary {
        add_bos_token: Some(false),
        add_eos_token: Some(true),
        ..vocabulary(&golden)
    };
    let ids = framed(&Tokenizer::from_gguf(&facts).unwrap());
    assert_ne!(ids[0], 1);
    assert_eq!(ids.last(), Some(&2));
}

#[test]
fn a_mebibyte_of_one_thing_is_encoded_and_comes_back() {
    let (_, tokenizer) = golden();
    for unit in ["a", " ", "\u{1f600}", "<think>"] {
        let text = unit.repeat((1 << 20) / unit.len());
        let ids = tokenizer.encode(&text, EncodeOptions::CHAT).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text, "{unit:?}");
    }
}

#[test]
fn a_vocabulary_that_contradicts_itself_is_refused() {
    let good = vocabulary(&golden().0);
    let refused = |change: &dyn Fn(&mut GgufVocabulary), expected: &str| {
        let mut bad = good.clone();
        change(&mut bad);
        let message = Tokenizer::from_gguf(&bad).unwrap_err().to_string();
        assert!(message.contains(expected), "{message:?} does not say {expected:?}");
    };
    refused(&|v| v.tokens[9] = v.tokens[10].clone(), "repeats");
    refused(&|v| v.scores.truncate(5), "5 scores for");
    refused(&|v| v.scores.clear(), "no scores");
    refused(&|v| v.scores[7] = f32::NAN, "not a number");
    refused(&|v| v.token_types[3] = 99, "type 99");
    refused(&|v| v.bos_token_id = Some(u32::MAX), "bos_token_id 4294967295");
    refused(&|v| v.token_types[500] = 6, "byte token 500");
    refused(&|v| v.tokens.clear(), "0 tokens");
    refused(&|v| v.model = "bert".to_owned(), "\"bert\"");
    refused(&|v| v.model = "gpt2".to_owned(), "no merges");
    refused(&|v| (v.model, v.pre) = ("gpt2".to_owned(), Some("x".to_owned())), "\"x\"");
    let merged = |v: &mut GgufVocabulary| {
        v.model = "gpt2".to_owned();
        v.merges = vec!["nowhere tobefound".to_owned()];
    };
    refused(&merged, "merge 0 needs \"nowhere\"");
}

/// The vocabulary of the golden file without user-defined tokens and, as Gemma's, with or without the
/// space before the text.
fn without_user_defined(add_space_prefix: bool) -> GgufVocabulary {
    const CONTROL: i32 = 3;
    const USER_DEFINED: i32 = 4;
    let mut facts = vocabulary(&golden().0);
    facts.add_space_prefix = Some(add_space_prefix);
    for kind in &mut facts.token_types {
        *kind = if *kind == USER_DEFINED { CONTROL } else { *kind };
    }
    facts
}

/// Both forms of a vocabulary.
fn both_forms(facts: &GgufVocabulary) -> [Tokenizer; 2] {
    let written = facts.tokenizer_json().unwrap().expect("its scores are ranks");
    let json = serde_json::to_vec(&written).unwrap();
    let read = Tokenizer::from_tokenizer_json(&json, &TokenizerConfig::default()).unwrap();
    [Tokenizer::from_gguf(facts).unwrap(), read]
}

#[test]
fn with_the_space_before_the_text_user_defined_tokens_have_no_form_in_tokenizer_json() {
    let (golden, _) = golden();
    assert_eq!(vocabulary(&golden).tokenizer_json().unwrap(), None);
}

#[test]
fn written_as_tokenizer_json_it_cuts_every_text_the_same() {
    for add_space_prefix in [true, false] {
        let [own, read] = both_forms(&without_user_defined(add_space_prefix));
        for text in golden().0.texts.iter().filter(|text| !text.contains('\u{2581}')) {
            let options = EncodeOptions::default();
            let (expected, found) = (own.encode(text, options), read.encode(text, options));
            assert_eq!(found.unwrap(), expected.unwrap(), "{text:?}");
        }
    }
}

proptest! {
    #[test]
    fn written_as_tokenizer_json_it_cuts_random_texts_the_same(
        text in r"([a-r \u{e9}\u{4f60}\u{1f600}\n<>]|aa|ab|ba|the|<s>|<\|im_end\|>){0,80}",
        add_space_prefix: bool,
    ) {
        let [own, read] = both_forms(&without_user_defined(add_space_prefix));
        let ids = own.encode(&text, EncodeOptions::CHAT).unwrap();
        prop_assert_eq!(&read.encode(&text, EncodeOptions::CHAT).unwrap(), &ids);
        prop_assert_eq!(read.decode(&ids, true).unwrap(), own.decode(&ids, true).unwrap());
    }

    #[test]
    fn text_comes_back_and_random_ids_stream_as_they_decode(
        text in r"[a-r \u{e9}\u{4f60}\u{1f600}\n<>]{0,80}",
        ids in prop::collection::vec(0_u32..710, 0..60),
        skip_special: bool,
    ) {
        let (_, tokenizer) = golden();
        let encoded = tokenizer.encode(&text, EncodeOptions::CHAT).unwrap();
        prop_assert_eq!(tokenizer.decode(&encoded, false).unwrap(), text);

        let options = DetokenizeOptions { skip_special, start_of_text: true };
        let mut detokenizer = tokenizer.detokenizer(options);
        let mut streamed: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
        streamed.push_str(&detokenizer.finish());
        let known: Vec<u32> = ids.iter().copied().filter(|&id| tokenizer.piece(id).is_ok()).collect();
        prop_assert_eq!(tokenizer.decode(&known, skip_special).unwrap(), streamed);
    }
}
