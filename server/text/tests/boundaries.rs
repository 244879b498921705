//! Where messages end among the tokens of real models' prompts, and marks in any text: they never
//! change ids, and the tokens before a mark are the text before it.

#![allow(clippy::unwrap_used, reason = "a failed test panics")]

mod support;

use proptest::prelude::*;
use sconce_text::{
    ChatRequest, ChatTemplate, EncodeOptions, GgufVocabulary, MarkedPrompt, Tokenizer,
};
use serde::Deserialize;
use serde_json::{Value, json};

const FRAMED: EncodeOptions =
    EncodeOptions { add_special_tokens: true, parse_special_tokens: true };

/// Renders a conversation that waits for the assistant, and checks every boundary in its tokens.
/// Gives what the boundaries cut the prompt into.
fn parts(
    (tokenizer, source): &(Tokenizer, String),
    messages: &[Value],
    tools: &[Value],
) -> Vec<String> {
    let text = |id: Option<u32>| {
        let piece = id.map_or(Vec::new(), |id| tokenizer.piece(id).unwrap().to_vec());
        String::from_utf8(piece).unwrap()
    };
    let special = [("bos_token", tokenizer.bos_id()), ("eos_token", tokenizer.eos_id())];
    let special: Vec<_> = special.map(|(name, id)| (name.to_owned(), text(id))).into();
    let template = ChatTemplate::new(&[("default".into(), source.clone())], &special).unwrap();
    let request = ChatRequest {
        messages: messages.to_vec(),
        tools: tools.to_vec(),
        add_generation_prompt: true,
        ..ChatRequest::default()
    };
    let MarkedPrompt { text, boundaries } = template.render_marked(&request).unwrap();
    assert_eq!(text, template.render(&request).unwrap());
    let marked = tokenizer.encode_marked(&text, EncodeOptions::CHAT, &boundaries).unwrap();
    assert_eq!(marked.ids, tokenizer.encode(&text, EncodeOptions::CHAT).unwrap());
    for (&at, &offset) in boundaries.iter().zip(&marked.offsets) {
        let before = tokenizer.decode(&marked.ids[..offset], false).unwrap();
        assert_eq!(before, text[..at], "{offset} tokens");
    }
    let starts = [0].into_iter().chain(boundaries.iter().copied());
    let ends = boundaries.iter().copied().chain([text.len()]);
    starts.zip(ends).map(|(start, end)| text[start..end].to_owned()).collect()
}

fn message(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

fn conversation() -> Vec<Value> {
    [
        ("system", "You answer in one word.\n\nAlways."),
        ("user", "Where is the Caf\u{e9}? \u{1f600}"),
        ("assistant", "Here."),
        ("user", "  And now\u{3000}?  "),
        ("assistant", "There. "),
        ("user", "12345 67"),
    ]
    .map(|(role, content)| message(role, content))
    .into()
}

fn tool() -> Value {
    let parameters = json!({"type": "object", "properties": {"place": {"type": "string"}}});
    let function = json!({"name": "look", "description": "Looks there.", "parameters": parameters});
    json!({"type": "function", "function": function})
}

fn chatml(role: &str, content: &str) -> String {
    format!("<|im_start|>{role}\n{content}<|im_end|>\n")
}

#[test]
fn every_message_of_smollm2_ends_at_a_boundary() {
    let Some(model) = support::smollm2() else { return };
    let messages = conversation();
    let content = |index: usize| messages[index]["content"].as_str().unwrap();
    let parts = parts(&model, &messages, &[]);
    assert_eq!(parts[0], chatml("system", content(0)));
    assert_eq!(parts[1], "<|im_start|>user\n");
    assert_eq!(parts[2], format!("{}<|im_end|>\n", content(1)));
    assert_eq!(parts[3], chatml("assistant", content(2)));
    assert_eq!(parts[6], chatml("user", content(5)));
    assert_eq!(parts[7..], ["<|im_start|>assistant\n"]);
}

#[test]
fn every_message_of_llama_3_1_ends_at_a_boundary() {
    let Some(model) = support::packed("llama3_1") else { return };
    let found = parts(&model, &conversation(), &[]);
    assert_eq!(found.len(), 8);
    assert!(found[0].ends_with("Always.<|eot_id|>"));
    assert_eq!(found[1], "<|start_header_id|>user<|end_header_id|>\n\n");
    assert!(found[6].ends_with("12345 67<|eot_id|>"));
    assert_eq!(found[7], "<|start_header_id|>assistant<|end_header_id|>\n\n");
}

#[test]
fn gemma_3_has_a_boundary_after_its_system_prompt_that_is_no_message() {
    let source = support::packed("gemma3");
    let gguf = support::gemma3_gguf().zip(source.as_ref().map(|(_, source)| source.clone()));
    for model in source.into_iter().chain(gguf) {
        let found = parts(&model, &conversation(), &[]);
        assert_eq!(found[0], "<bos>");
        assert_eq!(found[1], "<start_of_turn>user\nYou answer in one word.\n\nAlways.\n\n");
        assert_eq!(found[2], "Where is the Caf\u{e9}? \u{1f600}<end_of_turn>\n");
        assert_eq!(found[3], "<start_of_turn>model\nHere.<end_of_turn>\n");
        assert_eq!(found[6], "<start_of_turn>user\n12345 67<end_of_turn>\n");
        assert_eq!(found[7..], ["<start_of_turn>model\n"]);
    }
}

#[test]
fn qwen_3_has_boundaries_where_users_end_though_it_drops_earlier_reasoning() {
    let Some(model) = support::packed("qwen3") else { return };
    let thought = |words: &str| message("assistant", &format!("<think>\nHm.\n</think>\n\n{words}"));
    let mut messages = conversation();
    (messages[2], messages[4]) = (thought("Here."), thought("There."));
    let found = parts(&model, &messages, &[tool()]);
    assert!(found[0].contains("\"look\"") && found[0].contains("Always."), "{}", found[0]);
    assert_eq!(found[2], "Where is the Caf\u{e9}? \u{1f600}<|im_end|>\n");
    // What the assistant said goes on in the next part: alone it is written with its reasoning.
    let dropped = |words: &str, user: &str| chatml("assistant", words) + &chatml("user", user);
    assert_eq!(found[3], dropped("Here.", "  And now\u{3000}?  "));
    assert_eq!(found[4], dropped("There.", "12345 67"));
    assert_eq!(found[5..], ["<|im_start|>assistant\n"]);

    // Since the last user message nothing is dropped: calls and answers of tools have their ends.
    messages.push(thought("Let me look."));
    messages.push(message("tool", "It rains."));
    let found = parts(&model, &messages, &[tool()]);
    assert_eq!(found[4], dropped("There.", "12345 67"));
    assert_eq!(found[5], chatml("assistant", "<think>\nHm.\n</think>\n\nLet me look."));
    assert_eq!(found[6], chatml("user", "<tool_response>\nIt rains.\n</tool_response>"));
}

/// A small vocabulary of our own, with the tokens that frame a prompt.
fn sentencepiece(add_space_prefix: bool) -> Tokenizer {
    #[derive(Deserialize)]
    struct Pieces {
        tokens: Vec<String>,
        scores: Vec<f32>,
        token_types: Vec<i32>,
    }
    let pieces: Pieces = support::fixture("sentencepiece.json");
    let vocabulary = GgufVocabulary {
        model: "llama".to_owned(),
        tokens: pieces.tokens,
        scores: pieces.scores,
        token_types: pieces.token_types,
        bos_token_id: Some(1),
        eos_token_id: Some(2),
        add_eos_token: Some(true),
        unknown_token_id: Some(0),
        add_space_prefix: Some(add_space_prefix),
        ..GgufVocabulary::default()
    };
    Tokenizer::from_gguf(&vocabulary).unwrap()
}

/// Every tokenizer there is, with whether the bytes of its tokens are those of the text.
fn tokenizers() -> Vec<(Tokenizer, bool)> {
    let mut all = vec![(sentencepiece(true), false), (sentencepiece(false), true)];
    all.extend(support::smollm2().map(|(tokenizer, _)| (tokenizer, true)));
    all.extend(support::gemma3_gguf().map(|tokenizer| (tokenizer, true)));
    for (name, exact) in [("llama3_1", true), ("gemma3", true), ("qwen3", false)] {
        all.extend(support::packed(name).map(|(tokenizer, _)| (tokenizer, exact)));
    }
    all
}

/// The marks of `text` at all its characters, and what is true of them for `tokenizer`.
fn check(tokenizer: &Tokenizer, exact: bool, text: &str, options: EncodeOptions) {
    let marks: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
    let marked = tokenizer.encode_marked(text, options, &marks).unwrap();
    assert_eq!(marked.ids, tokenizer.encode(text, options).unwrap(), "{text:?}");
    assert_eq!(marked.offsets.len(), marks.len());
    assert!(marked.offsets.is_sorted(), "{text:?}: {:?}", marked.offsets);
    if !exact || options.add_special_tokens {
        return;
    }
    assert_eq!(marked.offsets.last(), Some(&marked.ids.len()), "{text:?}");
    let pieces = tokenizer.pieces(&marked.ids).unwrap();
    for (&mark, &offset) in marks.iter().zip(&marked.offsets) {
        let before = pieces[..offset].concat();
        assert!(text.as_bytes()[..mark].starts_with(&before), "{text:?} at {mark}");
        // The next token would go across the mark.
        let with_next = pieces.get(offset).map(|next| before.len() + next.len());
        assert!(with_next.is_none_or(|end| end > mark), "{text:?} at {mark}");
    }
}

#[test]
fn marks_change_no_ids_and_cut_any_text_where_they_are() {
    let tokenizers = tokenizers();
    // Pieces of prompts, also of such that tokens go across.
    let text = r"(\PC|[ \n\t]{1,3}|[a-z]{1,6}|[0-9]{1,4}|\u{e9}|e\u{301}|\u{1f600}|\u{3000}|\u{2581}|<bos>|<s>|<think>|<\|im_end\|>|<end_of_turn>\n|<\|eot_id\|>|<\|im_start\|>user\n){0,24}";
    proptest!(ProptestConfig::with_cases(32), |(text in text)| {
        for (tokenizer, exact) in &tokenizers {
            // SmolLM2 has no tokens for some characters, and leaves them out.
            let whole = tokenizer.encode(&text, EncodeOptions::CHAT).unwrap();
            let lossless = tokenizer.pieces(&whole).unwrap().concat() == text.as_bytes();
            for options in [EncodeOptions::CHAT, FRAMED] {
                check(tokenizer, *exact && lossless, &text, options);
            }
        }
    });
}

#[test]
fn marks_count_the_tokens_that_frame_a_prompt() {
    let tokenizer = sentencepiece(true);
    let text = "abc";
    let plain = tokenizer.encode_marked(text, EncodeOptions::CHAT, &[0, 3]).unwrap();
    let framed = tokenizer.encode_marked(text, FRAMED, &[0, 3]).unwrap();
    assert_eq!(framed.ids[1..=plain.ids.len()], plain.ids);
    assert_eq!((framed.ids[0], framed.ids.last()), (1, Some(&2)));
    // The end of the text is before EOS.
    assert_eq!(framed.offsets[1], plain.offsets[1] + 1);
    assert_eq!(framed.offsets[1], framed.ids.len() - 1);
}

#[test]
fn text_that_sentencepiece_moves_about_is_cut_where_it_was() {
    // Spaces are one byte in the text and three in the vocabulary, and one is put before it.
    let tokenizer = sentencepiece(true);
    let text = "a  b <think> \u{1f600} c";
    for mark in text.char_indices().map(|(at, _)| at).filter(|&at| at > 0) {
        let marked = tokenizer.encode_marked(text, EncodeOptions::CHAT, &[mark]).unwrap();
        let before = tokenizer.decode(&marked.ids[..marked.offsets[0]], false).unwrap();
        assert!(text[..mark].starts_with(&before), "{mark}: {before:?}");
        let inside_a_token = (6..12).contains(&mark);
        assert!(mark - before.len() <= 3 || inside_a_token, "{mark}: {before:?}");
    }
}

#[test]
fn a_long_run_of_one_thing_is_marked_without_quadratic_work() {
    for (tokenizer, exact) in tokenizers() {
        for unit in [" ", "a", "\u{1f600}"] {
            let text = unit.repeat((1 << 18) / unit.len());
            let middle = text.len() / 2;
            let marked = tokenizer.encode_marked(&text, EncodeOptions::CHAT, &[middle]).unwrap();
            let all = marked.ids.len();
            assert!(!exact || marked.offsets[0].abs_diff(all / 2) <= 2, "{:?}", marked.offsets);
        }
    }
}
