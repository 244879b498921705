//! Vocabularies of strangers: refused, or they encode and decode without a panic, with ids of their
//! own.

use arbitrary::{Result, Unstructured};
use sconce_text::{EncodeOptions, GgufVocabulary, Tokenizer, TokenizerConfig};
use serde_json::{Value, json};

use crate::text::{noises, perhaps, several, text};

/// What every vocabulary that builds has to encode.
const TEXTS: [&str; 6] = [
    "",
    "the quick fox",
    " a\n\n b\t",
    "\u{1f600}\u{301}<s>",
    "\u{2581}x\0",
    "aaaaaaaaaaaaaaaaaaaa",
];

pub(crate) fn json(bytes: &[u8]) {
    // As the file itself.
    if let Ok(tokenizer) = Tokenizer::from_tokenizer_json(bytes, &TokenizerConfig::default()) {
        exercise(&tokenizer, &TEXTS);
    }
    // As what decides the contents of one that is nearly right.
    let _ = made_json(&mut Unstructured::new(bytes));
}

pub(crate) fn json_seeds() -> Vec<Vec<u8>> {
    let mut seeds = noises(24, 200);
    let vocab = json!({"a": 0, "b": 1, "ab": 2, "<s>": 3});
    let simple = file(vocab, json!(["a b"]), Value::Null, &[(3, "<s>")]);
    seeds.push(simple.to_string().into_bytes());
    seeds
}

/// A `tokenizer.json` of byte-pair encoding.
fn file(vocab: Value, merges: Value, normalizer: Value, added: &[(u32, &str)]) -> Value {
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true
    });
    let added: Vec<Value> = added
        .iter()
        .map(|(id, content)| {
            json!({
                "id": id, "content": content, "special": true, "normalized": false,
                "single_word": false, "lstrip": false, "rstrip": false
            })
        })
        .collect();
    json!({
        "version": "1.0", "added_tokens": added, "normalizer": normalizer,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": { "type": "BPE", "vocab": vocab, "merges": merges },
    })
}

fn made_json(u: &mut Unstructured<'_>) -> Result<()> {
    let words = several(u, 24, |u| text(u, 6))?;
    let mut vocab = serde_json::Map::new();
    for word in &words {
        vocab.insert(word.clone(), json!(u.int_in_range(0..=words.len() as u32 + 2)?));
    }
    let merge = |u: &mut Unstructured<'_>| Ok(format!("{} {}", text(u, 3)?, text(u, 3)?));
    let merges = json!(several(u, 8, merge)?);
    let normalizers =
        [Value::Null, json!({"type": "NFC"}), json!({"type": "Prepend", "prepend": "\u{2581}"})];
    let normalizer = u.choose(&normalizers)?.clone();
    let added = several(u, 4, |u| Ok((u.int_in_range(0..=40)?, text(u, 8)?)))?;
    let added: Vec<(u32, &str)> = added.iter().map(|(id, text)| (*id, text.as_str())).collect();
    let file = file(Value::Object(vocab), merges, normalizer, &added).to_string();
    let config = TokenizerConfig {
        bos_token: perhaps(u, |u| text(u, 6))?,
        eos_token: perhaps(u, |u| text(u, 6))?,
        add_bos_token: u.arbitrary()?,
        add_eos_token: u.arbitrary()?,
        ..TokenizerConfig::default()
    };
    if let Ok(tokenizer) = Tokenizer::from_tokenizer_json(file.as_bytes(), &config) {
        let own = text(u, 200)?;
        exercise(&tokenizer, &[&TEXTS[..], &[&own]].concat());
    }
    Ok(())
}

pub(crate) fn gguf(bytes: &[u8]) {
    let _ = made_gguf(&mut Unstructured::new(bytes));
}

pub(crate) fn gguf_seeds() -> Vec<Vec<u8>> {
    noises(48, 300)
}

fn made_gguf(u: &mut Unstructured<'_>) -> Result<()> {
    let mut facts = u.choose(&vocabularies())?.clone();
    for _ in 0..u.int_in_range(0..=8)? {
        let index = u.choose_index(facts.tokens.len())?;
        match u.int_in_range(0..=9)? {
            0 => facts.tokens[index] = text(u, 8)?,
            1 => facts.scores.push(u.arbitrary()?),
            2 if !facts.scores.is_empty() => {
                let index = u.choose_index(facts.scores.len())?;
                facts.scores[index] = u.arbitrary()?;
            }
            3 if !facts.token_types.is_empty() => {
                let index = u.choose_index(facts.token_types.len())?;
                facts.token_types[index] = u.int_in_range(-1..=7)?;
            }
            4 => facts.merges.push(format!("{} {}", text(u, 3)?, text(u, 3)?)),
            5 => facts.bos_token_id = perhaps(u, |u| u.int_in_range(0..=400))?,
            6 => {
                facts.pre = perhaps(u, |u| {
                    Ok((*u.choose(&["default", "llama-bpe", "qwen2", "x"])?).to_owned())
                })?
            }
            7 => facts.add_space_prefix = u.arbitrary()?,
            8 => facts.unknown_token_id = perhaps(u, |u| u.int_in_range(0..=400))?,
            9 => facts.tokens.truncate(index.max(1)),
            _ => {}
        }
    }
    facts.add_bos_token = u.arbitrary()?;
    facts.add_eos_token = u.arbitrary()?;
    if let Ok(tokenizer) = Tokenizer::from_gguf(&facts) {
        let own = text(u, 200)?;
        exercise(&tokenizer, &[&TEXTS[..], &[&own]].concat());
    }
    Ok(())
}

/// A vocabulary of each kind, small and whole.
pub(crate) fn vocabularies() -> Vec<GgufVocabulary> {
    let mut pieces: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    let mut types = vec![2, 3, 3];
    for byte in 0..=u8::MAX {
        pieces.push(format!("<0x{byte:02X}>"));
        types.push(6);
    }
    for word in ["\u{2581}", "\u{2581}the", "t", "h", "e", "th", "the", "\u{2581}t", "\u{1f600}"] {
        pieces.push(word.to_owned());
        types.push(1);
    }
    let scores = (0..pieces.len()).map(|index| -(index as f32)).collect();
    let sentencepiece = GgufVocabulary {
        model: "llama".to_owned(),
        tokens: pieces,
        scores,
        token_types: types,
        bos_token_id: Some(1),
        eos_token_id: Some(2),
        unknown_token_id: Some(0),
        ..GgufVocabulary::default()
    };
    let mut tokens: Vec<String> = ('!'..='~').map(String::from).collect();
    tokens.extend(
        ["\u{120}", "\u{10a}", "th", "the", "\u{120}the", "\u{f0}", "\u{129}"].map(str::to_owned),
    );
    tokens.push("<|end|>".to_owned());
    let mut types = vec![1; tokens.len()];
    *types.last_mut().expect("it has tokens") = 3;
    let byte_level = GgufVocabulary {
        model: "gpt2".to_owned(),
        pre: Some("default".to_owned()),
        eos_token_id: Some(tokens.len() as u32 - 1),
        token_types: types,
        merges: ["t h", "th e", "\u{120} the"].map(str::to_owned).to_vec(),
        tokens,
        ..GgufVocabulary::default()
    };
    vec![sentencepiece, byte_level]
}

fn exercise(tokenizer: &Tokenizer, texts: &[&str]) {
    for text in texts {
        for options in [EncodeOptions::default(), EncodeOptions::CHAT] {
            let Ok(ids) = tokenizer.encode(text, options) else { continue };
            for &id in &ids {
                assert!(tokenizer.piece(id).is_ok(), "{id} of {text:?} is not in the vocabulary");
            }
            assert!(tokenizer.decode(&ids, false).is_ok(), "{ids:?} of {text:?}");
            let marks: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
            if let Ok(marked) = tokenizer.encode_marked(text, options, &marks) {
                assert_eq!(marked.ids, ids, "{text:?}");
            }
        }
    }
    let beyond = tokenizer.vocab_size() as u32;
    assert!(tokenizer.decode(&[0, u32::MAX], true).is_err() || beyond == u32::MAX);
}
