//! Rules of tokenizers that need no real vocabulary: frames, special tokens in text, holes.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// A byte-level `tokenizer.json` with every byte, some merges and two added tokens.
fn file(post_processor: &Value) -> String {
    let alphabet = (0..0x144).filter_map(char::from_u32);
    let alphabet = alphabet.filter(|c| byte_level::char_to_byte(*c).is_some());
    let mut vocab: serde_json::Map<String, Value> =
        alphabet.enumerate().map(|(id, c)| (c.to_string(), json!(id))).collect();
    assert_eq!(vocab.len(), 256);
    for (id, token) in [(256, "he"), (257, "ll"), (258, "hell"), (262, "\u{120}\u{120}")] {
        vocab.insert(token.to_owned(), json!(id));
    }
    let added = |id: u32, content: &str, special: bool| {
        json!({"id": id, "content": content, "special": special, "single_word": false,
               "lstrip": false, "rstrip": false, "normalized": false})
    };
    json!({
        "version": "1.0",
        "added_tokens": [added(260, "<s>", true), added(261, "\u{ff5c}end\u{ff5c}", false)],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": post_processor,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": [["h", "e"], ["l", "l"], ["he", "ll"], ["\u{120}", "\u{120}"]]},
    })
    .to_string()
}

fn tokenizer(post_processor: &Value, config: &TokenizerConfig) -> Tokenizer {
    Tokenizer::from_tokenizer_json(file(post_processor).as_bytes(), config).unwrap()
}

fn plain() -> Tokenizer {
    tokenizer(&Value::Null, &TokenizerConfig::default())
}

fn with_bos() -> TokenizerConfig {
    TokenizerConfig {
        bos_token: Some("<s>".to_owned()),
        add_bos_token: Some(true),
        ..TokenizerConfig::default()
    }
}

#[test]
fn the_post_processor_decides_the_frame_and_the_config_where_there_is_none() {
    let framing = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                   {"SpecialToken": {"id": "<s>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [260], "tokens": ["<s>"]}}});
    let ids = |tokenizer: &Tokenizer| tokenizer.encode("hell", EncodeOptions::default()).unwrap();
    assert_eq!(ids(&tokenizer(&framing, &with_bos())), [260, 258, 260]);
    assert_eq!(ids(&tokenizer(&Value::Null, &with_bos())), [260, 258]);
    assert_eq!(ids(&plain()), [258]);
    let chat = tokenizer(&framing, &with_bos()).encode("hell", EncodeOptions::CHAT).unwrap();
    assert_eq!(chat, [258]);
}

#[test]
fn a_bos_token_that_is_no_token_is_refused_only_where_it_is_needed() {
    let config = TokenizerConfig { bos_token: Some("<none>".to_owned()), ..with_bos() };
    let error = Tokenizer::from_tokenizer_json(file(&Value::Null).as_bytes(), &config).unwrap_err();
    assert!(error.to_string().contains("\"<none>\""), "{error}");
    let config = TokenizerConfig { add_bos_token: None, ..config };
    assert_eq!(tokenizer(&Value::Null, &config).bos_id(), None);
}

#[test]
fn special_tokens_in_text_are_parsed_or_not_as_asked() {
    let tokenizer = plain();
    let text = "he<s>\u{ff5c}end\u{ff5c}";
    let options =
        |parse_special_tokens| EncodeOptions { add_special_tokens: true, parse_special_tokens };
    assert_eq!(tokenizer.encode(text, options(true)).unwrap(), [256, 260, 261]);
    let plain = tokenizer.encode(text, options(false)).unwrap();
    assert_eq!((plain.len(), plain[0], plain[4]), (5, 256, 261));
    assert_eq!(tokenizer.decode(&plain, true).unwrap(), text);
    assert_eq!(tokenizer.decode(&[256, 260, 261], true).unwrap(), "he\u{ff5c}end\u{ff5c}");
}

#[test]
fn ids_without_a_token_stand_for_nothing_and_ids_outside_are_errors() {
    let tokenizer = plain();
    assert_eq!((tokenizer.vocab_size(), tokenizer.unused_ids()), (263, 1));
    assert_eq!(tokenizer.piece(259).unwrap(), b"");
    assert_eq!(tokenizer.decode(&[256, 259], false).unwrap(), "he");
    assert_eq!(
        tokenizer.decode(&[263], false),
        Err(TextError::UnknownToken { id: 263, size: 263 })
    );
    assert_eq!(tokenizer.pieces(&[258, 262]).unwrap(), [b"hell".to_vec(), b"  ".to_vec()]);
}

#[test]
fn gguf_vocabularies_of_one_family_give_the_same_ids_as_the_library_file() {
    let from_file = plain();
    let name = |id: u32| {
        let byte = |c: &char| byte_level::char_to_byte(*c).is_some();
        match id {
            0..256 => (0..0x144)
                .filter_map(char::from_u32)
                .filter(byte)
                .nth(id as usize)
                .unwrap()
                .to_string(),
            256 => "he".to_owned(),
            257 => "ll".to_owned(),
            258 => "hell".to_owned(),
            259 => "<hole>".to_owned(),
            260 => "<s>".to_owned(),
            261 => "\u{ff5c}end\u{ff5c}".to_owned(),
            _ => "\u{120}\u{120}".to_owned(),
        }
    };
    let mut token_types = vec![1; 263];
    (token_types[259], token_types[260], token_types[261]) = (5, 3, 4);
    let vocabulary = GgufVocabulary {
        model: "gpt2".to_owned(),
        pre: Some("gpt-2".to_owned()),
        tokens: (0..263).map(name).collect(),
        token_types,
        merges: ["h e", "l l", "he ll", "\u{120} \u{120}"].map(str::to_owned).to_vec(),
        bos_token_id: Some(260),
        ..GgufVocabulary::default()
    };
    let from_gguf = Tokenizer::from_gguf(&vocabulary).unwrap();
    for text in ["hello   he'll\n", "<s>\u{e9}\u{1f600}\u{ff5c}end\u{ff5c}", ""] {
        let options = EncodeOptions::default();
        assert_eq!(from_gguf.encode(text, options), from_file.encode(text, options), "{text:?}");
    }
    assert!(from_gguf.is_special(260));
}

proptest! {
    #[test]
    fn any_text_comes_back_and_random_ids_stream_as_they_decode(
        text: String,
        ids in prop::collection::vec(0_u32..263, 0..80),
        skip_special: bool,
    ) {
        let tokenizer = plain();
        let encoded = tokenizer.encode(&text, EncodeOptions::CHAT).unwrap();
        prop_assert_eq!(tokenizer.pieces(&encoded).unwrap().concat(), text.as_bytes());

        let options = DetokenizeOptions { skip_special, start_of_text: true };
        let mut detokenizer = tokenizer.detokenizer(options);
        let mut streamed: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
        streamed.push_str(&detokenizer.finish());
        prop_assert_eq!(tokenizer.decode(&ids, skip_special).unwrap(), streamed);
    }
}
