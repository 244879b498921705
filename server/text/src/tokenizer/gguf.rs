//! A tokenizer from the vocabulary lists of a GGUF file (`tokenizer.ggml.*`): byte-level BPE
//! (`gpt2`) or SentencePiece BPE (`llama`). Reading the file is not done here.

use std::collections::HashSet;
use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};
use tokenizers::models::bpe::BPE;
use tokenizers::{AddedToken, AddedVocabulary, ModelWrapper, NormalizerWrapper};

use crate::error::TextError;
use crate::tokenizer::marks::Tokens;
use crate::tokenizer::pipeline::Pipeline;
use crate::tokenizer::pre_tokenizer::PreTokenizer;
use crate::tokenizer::sentencepiece::SentencePiece;
use crate::tokenizer::vocabulary::{Spelling, Vocabulary, byte_token_value};
use crate::tokenizer::{Encoder, Tokenizer, patterns};

/// Most tokens that a vocabulary may have; real ones stay below 2^18.
pub const MAX_GGUF_TOKENS: usize = 1 << 22;

/// Vocabulary facts as a GGUF file states them. Absent keys are `None` or empty.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GgufVocabulary {
    /// `tokenizer.ggml.model`: `gpt2` or `llama`.
    pub model: String,
    /// `tokenizer.ggml.pre`: the pre-tokenizer of a `gpt2` vocabulary.
    pub pre: Option<String>,
    /// `tokenizer.ggml.tokens`, by id.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.scores`, by id; needed for `llama`.
    pub scores: Vec<f32>,
    /// `tokenizer.ggml.token_type`, by id: 1 normal, 2 unknown, 3 control, 4 user-defined,
    /// 5 unused, 6 byte. Empty means all normal.
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.merges`: two tokens and a space between, best first; needed for `gpt2`.
    pub merges: Vec<String>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos_token_id: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos_token_id: Option<u32>,
    /// `tokenizer.ggml.eot_token_id`: the end of a chat turn.
    pub eot_token_id: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`.
    pub unknown_token_id: Option<u32>,
    /// `tokenizer.ggml.padding_token_id`.
    pub padding_token_id: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`.
    pub add_bos_token: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`.
    pub add_eos_token: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`: `llama` only, true unless stated.
    pub add_space_prefix: Option<bool>,
}

/// How SentencePiece writes a space.
pub(super) const WORD_MARK: &str = "\u{2581}";

pub(super) const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
pub(super) const USER_DEFINED: i32 = 4;
pub(super) const UNUSED: i32 = 5;
const BYTE: i32 = 6;

fn contradiction(message: String) -> TextError {
    TextError::Vocabulary(message)
}

/// Builds the tokenizer of a GGUF checkpoint.
pub(crate) fn build(facts: &GgufVocabulary) -> Result<Tokenizer, TextError> {
    check(facts)?;
    match facts.model.as_str() {
        "gpt2" => build_byte_level(facts),
        "llama" => build_sentencepiece(facts),
        other => Err(TextError::UnknownModel {
            found: other.to_owned(),
            known: "gpt2, llama".to_owned(),
        }),
    }
}

impl GgufVocabulary {
    pub(super) fn kind(&self, id: usize) -> i32 {
        self.token_types.get(id).copied().unwrap_or(NORMAL)
    }

    /// What stands for text that no token spells.
    pub(super) fn unknown_id(&self) -> Option<u32> {
        self.unknown_token_id.or_else(|| {
            (0..self.tokens.len()).find(|&id| self.kind(id) == UNKNOWN).map(|id| id as u32)
        })
    }

    fn vocabulary(&self, spelling: Spelling, strip_leading_space: bool) -> Vocabulary {
        let mut vocabulary = Vocabulary::new(strip_leading_space);
        for (id, token) in self.tokens.iter().enumerate() {
            let kind = self.kind(id);
            let bytes = match (kind, spelling) {
                // Only text that was learned is spelled in the byte alphabet.
                (CONTROL | USER_DEFINED | UNKNOWN, Spelling::ByteLevel) => token.as_bytes().into(),
                (kind, Spelling::SentencePiece { .. }) => {
                    Spelling::SentencePiece { byte_tokens: kind == BYTE }.bytes(token)
                }
                _ => spelling.bytes(token),
            };
            vocabulary.push(token, &bytes, matches!(kind, CONTROL | UNKNOWN));
        }
        vocabulary
    }

    /// Tokens that are found in the text before anything else, as (id, text, special).
    pub(super) fn atomic_tokens(&self) -> impl Iterator<Item = (u32, &str, bool)> {
        self.tokens.iter().enumerate().filter_map(|(id, token)| match self.kind(id) {
            _ if token.is_empty() => None,
            CONTROL | UNKNOWN => Some((id as u32, token.as_str(), true)),
            USER_DEFINED => Some((id as u32, token.as_str(), false)),
            _ => None,
        })
    }

    /// The tokens before and after a prompt, where the file asks for them and says which they are.
    pub(super) fn frame(&self, default_bos: bool) -> (Option<u32>, Option<u32>) {
        let bos = self.add_bos_token.unwrap_or(default_bos);
        let eos = self.add_eos_token.unwrap_or(false);
        (self.bos_token_id.filter(|_| bos), self.eos_token_id.filter(|_| eos))
    }

    fn finish(&self, tokenizer: Tokenizer, default_bos: bool) -> Result<Tokenizer, TextError> {
        let frame = |add: bool, id: Option<u32>, name: &str| match (add, id) {
            (false, _) => Ok(Vec::new()),
            (true, Some(id)) => Ok(vec![id]),
            (true, None) => Err(contradiction(format!(
                "add_{name}_token is true, but there is no {name}_token_id"
            ))),
        };
        let add_bos = self.add_bos_token.unwrap_or(default_bos && self.bos_token_id.is_some());
        let prefix = frame(add_bos, self.bos_token_id, "bos")?;
        let suffix = frame(self.add_eos_token.unwrap_or(false), self.eos_token_id, "eos")?;
        Ok(tokenizer.with_frame(prefix, suffix).with_ends(self.bos_token_id, self.eos_token_id))
    }
}

fn check(facts: &GgufVocabulary) -> Result<(), TextError> {
    let size = facts.tokens.len();
    if size == 0 || size > MAX_GGUF_TOKENS {
        return Err(contradiction(format!("{size} tokens, expected 1 to {MAX_GGUF_TOKENS}")));
    }
    for (name, length) in [("scores", facts.scores.len()), ("token types", facts.token_types.len())]
    {
        if length != 0 && length != size {
            return Err(contradiction(format!("{length} {name} for {size} tokens")));
        }
    }
    if let Some(id) = facts.token_types.iter().position(|kind| !(0..=BYTE).contains(kind)) {
        let kind = facts.token_types[id];
        return Err(contradiction(format!("token {id} has type {kind}, expected 0 to {BYTE}")));
    }
    if let Some(id) = facts.scores.iter().position(|score| score.is_nan()) {
        return Err(contradiction(format!("the score of token {id} is not a number")));
    }
    for (name, id) in [
        ("bos", facts.bos_token_id),
        ("eos", facts.eos_token_id),
        ("eot", facts.eot_token_id),
        ("unknown", facts.unknown_token_id),
        ("padding", facts.padding_token_id),
    ] {
        if let Some(id) = id.filter(|&id| id as usize >= size) {
            return Err(contradiction(format!("{name}_token_id {id}, expected less than {size}")));
        }
    }
    let mut seen = HashSet::with_capacity(size);
    for (id, token) in facts.tokens.iter().enumerate() {
        if !seen.insert(token.as_str()) {
            return Err(contradiction(format!("token {id} repeats the text {token:?}")));
        }
    }
    Ok(())
}

fn build_byte_level(facts: &GgufVocabulary) -> Result<Tokenizer, TextError> {
    let named = patterns::named(facts.pre.as_deref().unwrap_or_default())?;
    let pre_tokenizer = PreTokenizer::byte_level(named.patterns)
        .map_err(|e| contradiction(format!("pre-tokenizer: {e}")))?;
    let ids: std::collections::HashMap<&str, u32> =
        facts.tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id as u32)).collect();
    let mut merges = Vec::with_capacity(facts.merges.len());
    if facts.merges.is_empty() {
        return Err(contradiction("no merges, expected some for model \"gpt2\"".to_owned()));
    }
    for (rank, merge) in facts.merges.iter().enumerate() {
        // A token may be a space itself, so the separator is not the first character.
        let cut = merge.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
        let Some((left, right)) = cut.map(|at| (&merge[..at], &merge[at + 1..])) else {
            return Err(contradiction(format!("merge {rank} is {merge:?}, expected two tokens")));
        };
        for token in [left, right, &format!("{left}{right}")] {
            if !ids.contains_key(token) {
                return Err(contradiction(format!(
                    "merge {rank} needs {token:?}, which is no token"
                )));
            }
        }
        merges.push((left.to_owned(), right.to_owned()));
    }
    let ids: Vec<(String, u32)> = ids.into_iter().map(|(t, id)| (t.to_owned(), id)).collect();
    let model = BPE::builder()
        // See `Words`.
        .cache_capacity(0)
        .vocab_and_merges(ids.into_iter().collect::<tokenizers::models::bpe::Vocab>(), merges)
        .ignore_merges(named.ignore_merges)
        .build()
        .map_err(|e| contradiction(e.to_string()))?;
    let added = facts
        .atomic_tokens()
        .map(|(_, text, special)| AddedToken::from(text, special).normalized(false));
    let mut added_vocabulary = AddedVocabulary::new();
    let model = ModelWrapper::from(model);
    added_vocabulary
        .add_tokens(added, &model, None::<&NormalizerWrapper>)
        .map_err(|e| contradiction(e.to_string()))?;
    let pipeline = Pipeline::new(added_vocabulary, None, pre_tokenizer, model);
    let vocabulary = facts.vocabulary(Spelling::ByteLevel, false);
    let tokenizer = Tokenizer::new(vocabulary, Encoder::Pipeline(Box::new(pipeline)));
    facts.finish(tokenizer, named.add_bos)
}

fn build_sentencepiece(facts: &GgufVocabulary) -> Result<Tokenizer, TextError> {
    if facts.scores.is_empty() {
        return Err(contradiction(
            "no scores, expected one for each token of model \"llama\"".to_owned(),
        ));
    }
    let unknown = facts.unknown_id();
    let mut pieces = SentencePiece::new(unknown);
    for (id, token) in facts.tokens.iter().enumerate() {
        match facts.kind(id) {
            BYTE => {
                let byte = byte_token_value(token).ok_or_else(|| {
                    contradiction(format!("byte token {id} is {token:?}, expected <0xNN>"))
                })?;
                pieces.add_byte(byte, id as u32);
            }
            CONTROL | UNKNOWN => {}
            _ if token.is_empty() => {}
            kind => {
                pieces.add(token, id as u32, facts.scores[id], kind == UNUSED);
            }
        }
    }
    if let Some(byte) = pieces.missing_byte()
        && unknown.is_none()
    {
        return Err(contradiction(format!("no token for byte 0x{byte:02X} and no unknown token")));
    }
    let add_space_prefix = facts.add_space_prefix.unwrap_or(true);
    let (special, user_defined): (Vec<_>, Vec<_>) =
        facts.atomic_tokens().partition(|(_, _, special)| *special);
    let special = special.into_iter().map(|(id, text, _)| (id, text.to_owned())).collect();
    // Some converters write the word mark in these as a space, some do not.
    let user_defined =
        user_defined.into_iter().map(|(id, text, _)| (id, text.replace(' ', WORD_MARK))).collect();
    let encoder = SentencePieceEncoder {
        pieces,
        special: AtomicTokens::new(special)?,
        user_defined: AtomicTokens::new(user_defined)?,
        add_space_prefix,
    };
    let spelling = Spelling::SentencePiece { byte_tokens: true };
    let vocabulary = facts.vocabulary(spelling, add_space_prefix);
    let tokenizer = Tokenizer::new(vocabulary, Encoder::SentencePiece(Box::new(encoder)));
    facts.finish(tokenizer, true)
}

/// SentencePiece with the tokens that are cut out of the text first.
#[derive(Debug)]
pub(crate) struct SentencePieceEncoder {
    pieces: SentencePiece,
    special: AtomicTokens,
    user_defined: AtomicTokens,
    add_space_prefix: bool,
}

impl SentencePieceEncoder {
    /// The ids of `text`, without BOS and EOS. A space is put before the text (before a
    /// user-defined token too, as SentencePiece does it) and before text that follows a special
    /// token (as llama.cpp does it; SentencePiece knows no special tokens in text).
    pub(crate) fn encode(&self, text: &str, parse_special: bool) -> Tokens {
        let mut tokens = Tokens::default();
        let mut done = 0;
        if parse_special {
            for (from, to, id) in self.special.find(text) {
                self.encode_plain(text, done..from, &mut tokens);
                tokens.push(id, to);
                done = to;
            }
        }
        self.encode_plain(text, done..text.len(), &mut tokens);
        tokens
    }

    /// Appends the tokens of a part of `whole` without special tokens.
    fn encode_plain(&self, whole: &str, part: Range<usize>, tokens: &mut Tokens) {
        if part.is_empty() {
            return;
        }
        let prefix = if self.add_space_prefix { WORD_MARK } else { "" };
        let text = format!("{prefix}{}", whole[part.clone()].replace(' ', WORD_MARK));
        let before = tokens.ends.len();
        let mut done = 0;
        let plain = |text: &str, start: usize, tokens: &mut Tokens| {
            let before = tokens.ends.len();
            self.pieces.encode(text, tokens);
            tokens.ends[before..].iter_mut().for_each(|end| *end += start);
        };
        for (from, to, id) in self.user_defined.find(&text) {
            plain(&text[done..from], done, tokens);
            tokens.push(id, to);
            done = to;
        }
        plain(&text[done..], done, tokens);
        without_word_marks(&whole[part.clone()], prefix, &mut tokens.ends[before..]);
        tokens.ends[before..].iter_mut().for_each(|end| *end += part.start);
    }
}

/// Turns ascending places in the text with `prefix` and word marks for spaces into those in `text`.
fn without_word_marks(text: &str, prefix: &str, ends: &mut [usize]) {
    let mut chars = text.chars();
    // How far both texts are read.
    let (mut marked, mut plain) = (prefix.len(), 0);
    for end in ends {
        while marked < *end
            && let Some(c) = chars.next()
        {
            marked += if c == ' ' { WORD_MARK.len() } else { c.len_utf8() };
            plain += c.len_utf8();
        }
        *end = plain;
    }
}

/// Finds whole tokens in text, the leftmost and then the longest.
#[derive(Debug)]
struct AtomicTokens {
    search: AhoCorasick,
    ids: Vec<u32>,
}

impl AtomicTokens {
    fn new(tokens: Vec<(u32, String)>) -> Result<Self, TextError> {
        let (ids, texts): (Vec<_>, Vec<_>) = tokens.into_iter().unzip();
        let search = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(texts)
            .map_err(|e| contradiction(format!("special tokens: {e}")))?;
        Ok(Self { search, ids })
    }

    fn find(&self, text: &str) -> impl Iterator<Item = (usize, usize, u32)> {
        let token = |found: aho_corasick::Match| {
            (found.start(), found.end(), self.ids[found.pattern().as_usize()])
        };
        self.search.find_iter(text).map(token)
    }
}
