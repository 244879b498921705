//! A GGUF vocabulary as the `tokenizer.json` that means the same, for programs that read only that.

use serde_json::{Map, Value, json};

use crate::error::TextError;
use crate::tokenizer::gguf::GgufVocabulary;
use crate::tokenizer::patterns;

impl GgufVocabulary {
    /// The `tokenizer.json` that cuts every text as [`Tokenizer::from_gguf`] does, if there is one:
    /// byte-level vocabularies (`gpt2`) have the same parts in both forms. SentencePiece's (`llama`)
    /// joins by score and `tokenizer.json` by the rank of a pair, which differ where two pairs join to
    /// one token.
    ///
    /// [`Tokenizer::from_gguf`]: crate::Tokenizer::from_gguf
    ///
    /// # Errors
    /// [`TextError::UnknownPreTokenizer`].
    pub fn tokenizer_json(&self) -> Result<Option<Value>, TextError> {
        if self.model != "gpt2" {
            return Ok(None);
        }
        let named = patterns::named(self.pre.as_deref().unwrap_or_default())?;
        let byte_level = json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false
        });
        let mut cuts: Vec<_> = named.patterns.iter().map(|pattern| split(pattern)).collect();
        cuts.push(byte_level.clone());
        let vocab: Map<_, _> =
            self.tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
        Ok(Some(json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.added_tokens(),
            "normalizer": null,
            "pre_tokenizer": { "type": "Sequence", "pretokenizers": cuts },
            "post_processor": self.post_processor(named.add_bos),
            "decoder": byte_level,
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": false, "byte_fallback": false, "ignore_merges": named.ignore_merges,
                "vocab": vocab, "merges": self.merge_pairs(),
            },
        })))
    }

    fn added_tokens(&self) -> Vec<Value> {
        let added = self.atomic_tokens();
        let entry = |(id, content, special): (u32, &str, bool)| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": special
            })
        };
        added.map(entry).collect()
    }

    /// Merges as two texts each, since a token may hold a space.
    fn merge_pairs(&self) -> Vec<[&str; 2]> {
        let cut = |merge: &str| {
            let mut spaces = merge.char_indices().skip(1).filter(|(_, c)| *c == ' ');
            spaces.next().map(|(at, _)| at)
        };
        let merges = self.merges.iter();
        merges.filter_map(|merge| cut(merge).map(|at| [&merge[..at], &merge[at + 1..]])).collect()
    }

    /// What puts BOS before a prompt and EOS after it; nothing if neither is wanted.
    fn post_processor(&self, default_bos: bool) -> Value {
        let (prefix, suffix) = self.frame(default_bos);
        if prefix.is_none() && suffix.is_none() {
            return Value::Null;
        }
        let special = |id: u32| json!({ "SpecialToken": { "id": self.text(id), "type_id": 0 } });
        let prompt = |name: &str| json!({ "Sequence": { "id": name, "type_id": 0 } });
        let (before, after) = (prefix.map(special), suffix.map(special));
        let single: Vec<_> =
            before.iter().cloned().chain([prompt("A")]).chain(after.iter().cloned()).collect();
        let pair: Vec<_> = single.iter().cloned().chain([prompt("B")]).chain(after).collect();
        let tokens: Map<_, _> = prefix
            .into_iter()
            .chain(suffix)
            .map(|id| {
                let text = self.text(id);
                (text.to_owned(), json!({ "id": text, "ids": [id], "tokens": [text] }))
            })
            .collect();
        json!({
            "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens
        })
    }

    fn text(&self, id: u32) -> &str {
        self.tokens.get(id as usize).map_or("", String::as_str)
    }
}

/// A cut as `tokenizer.json` writes it.
fn split(pattern: &str) -> Value {
    json!({
        "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false
    })
}
