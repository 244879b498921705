//! A GGUF vocabulary as the `tokenizer.json` that means the same, for programs that read only that.

use serde_json::{Map, Value, json};

use crate::error::TextError;
use crate::tokenizer::gguf::{GgufVocabulary, WORD_MARK};
use crate::tokenizer::patterns;

impl GgufVocabulary {
    /// The `tokenizer.json` that cuts every text as [`Tokenizer::from_gguf`] does, if there is one:
    /// byte-level vocabularies (`gpt2`) have the same parts in both forms, and SentencePiece's (`llama`)
    /// become merges of pairs where ranks can say what its scores do.
    ///
    /// [`Tokenizer::from_gguf`]: crate::Tokenizer::from_gguf
    ///
    /// # Errors
    /// [`TextError::UnknownPreTokenizer`].
    pub fn tokenizer_json(&self) -> Result<Option<Value>, TextError> {
        match self.model.as_str() {
            "gpt2" => self.byte_level_json().map(Some),
            "llama" => Ok(self.sentencepiece_json()),
            _ => Ok(None),
        }
    }

    /// Whether a prompt begins with BOS and ends with EOS: what the file says, or what its kind does.
    ///
    /// # Errors
    /// [`TextError::UnknownPreTokenizer`].
    pub fn framed(&self) -> Result<(bool, bool), TextError> {
        let (bos, eos) = self.frame(self.adds_bos()?);
        Ok((bos.is_some(), eos.is_some()))
    }

    fn adds_bos(&self) -> Result<bool, TextError> {
        match self.model.as_str() {
            "gpt2" => Ok(patterns::named(self.pre.as_deref().unwrap_or_default())?.add_bos),
            kind => Ok(kind == "llama"),
        }
    }

    fn byte_level_json(&self) -> Result<Value, TextError> {
        let named = patterns::named(self.pre.as_deref().unwrap_or_default())?;
        let byte_level = json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false
        });
        let mut cuts: Vec<_> = named.patterns.iter().map(|pattern| split(pattern)).collect();
        cuts.push(byte_level.clone());
        Ok(json!({
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
                "vocab": self.ids(), "merges": self.merge_pairs(),
            },
        }))
    }

    fn sentencepiece_json(&self) -> Option<Value> {
        let add_space_prefix = self.add_space_prefix.unwrap_or(true);
        // What puts the space before the text would put one before each of these, too.
        if add_space_prefix && self.atomic_tokens().any(|(.., special)| !special) {
            return None;
        }
        let merges = self.ranked_merges()?;
        let mut normalizers = vec![replace(" ", WORD_MARK)];
        let mut decoders = vec![
            replace(WORD_MARK, " "),
            json!({ "type": "ByteFallback" }),
            json!({ "type": "Fuse" }),
        ];
        if add_space_prefix {
            normalizers.insert(0, json!({ "type": "Prepend", "prepend": WORD_MARK }));
            decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        }
        Some(json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.added_tokens(),
            "normalizer": { "type": "Sequence", "normalizers": normalizers },
            "pre_tokenizer": null,
            "post_processor": self.post_processor(true),
            "decoder": { "type": "Sequence", "decoders": decoders },
            "model": {
                "type": "BPE", "dropout": null, "unk_token": self.unknown_id().map(|id| self.text(id)),
                "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": false, "byte_fallback": true, "ignore_merges": false,
                "vocab": self.ids(), "merges": merges,
            },
        }))
    }

    fn ids(&self) -> Map<String, Value> {
        self.tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect()
    }

    fn added_tokens(&self) -> Vec<Value> {
        // SentencePiece looks for what users define after spaces became word marks.
        let in_marked_text = self.model == "llama";
        let added = self.atomic_tokens();
        let entry = |(id, content, special): (u32, &str, bool)| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": in_marked_text && !special, "special": special
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

/// Writes one text for another, in a normalizer or a decoder.
fn replace(text: &str, by: &str) -> Value {
    json!({ "type": "Replace", "pattern": { "String": text }, "content": by })
}
