//! The pre-tokenizers that GGUF files name (`tokenizer.ggml.pre`), as regular expressions applied
//! one after another. The names are llama.cpp's; the expressions are those of the original
//! `tokenizer.json` files, not of llama.cpp's approximations.

use crate::error::TextError;
use crate::tokenizer::splitter::GPT2_PATTERN;

/// How a named byte-level tokenizer cuts and merges.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NamedPreTokenizer {
    /// The names that files use for it.
    names: &'static [&'static str],
    /// Cuts, in order.
    pub(crate) patterns: &'static [&'static str],
    /// A word that is a token as it stands is not merged from its bytes.
    pub(crate) ignore_merges: bool,
    /// Prompts begin with BOS unless the file says otherwise.
    pub(crate) add_bos: bool,
}

const EACH_NUMERAL: &str = r"\p{N}";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED_CODER: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK_V3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const CJK_RUN: &str = r"[\x{4e00}-\x{9fa5}\x{3040}-\x{309f}\x{30a0}-\x{30ff}]+";

macro_rules! named {
    ($names:expr, $patterns:expr) => {
        NamedPreTokenizer {
            names: &$names,
            patterns: &$patterns,
            ignore_merges: false,
            add_bos: false,
        }
    };
}

const NAMED: &[NamedPreTokenizer] = &[
    named!(
        [
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "exaone4",
            "mellum",
            "modern-bert",
            "a.x-4.0",
            "gigachat",
            "trillion",
            "granite-docling"
        ],
        [GPT2_PATTERN]
    ),
    named!(
        [
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2"
        ],
        [EACH_NUMERAL, GPT2_PATTERN]
    ),
    NamedPreTokenizer {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
        ],
        patterns: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
    },
    named!(["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"], [LLAMA3]),
    named!(
        [
            "qwen2",
            "deepseek-r1-qwen",
            "stablelm2",
            "megrez",
            "hunyuan",
            "grok-2",
            "solar-open",
            "kormo"
        ],
        [QWEN2]
    ),
    named!(["qwen35"], [QWEN35]),
    named!(["seed-coder"], [SEED_CODER]),
    NamedPreTokenizer {
        names: &["tekken"],
        patterns: &[TEKKEN],
        ignore_merges: true,
        add_bos: true,
    },
    named!(["gpt-4o", "llama4", "kanana2", "minimax-m2"], [GPT4O]),
    named!(["deepseek-v3", "hunyuan-dense", "joyai-llm"], [r"\p{N}{1,3}", CJK_RUN, DEEPSEEK_V3]),
    named!(
        ["deepseek-coder"],
        [
            r"[\r\n]",
            r"\s?\p{L}+",
            r"\s?\p{P}+",
            r"[\x{4e00}-\x{9fa5}\x{0800}-\x{4e00}\x{ac00}-\x{d7ff}]+",
            EACH_NUMERAL
        ]
    ),
    named!(["falcon"], [r"[\p{P}$+<=>^~|`]+", GPT2_PATTERN, r"[0-9][0-9][0-9]"]),
    named!(["default", ""], [r"[\p{P}$+<=>^~|]+", GPT2_PATTERN, r"\p{N}+", r"[0-9][0-9][0-9]"]),
];

/// The pre-tokenizer with this name; none at all is llama.cpp's `default`.
pub(crate) fn named(name: &str) -> Result<NamedPreTokenizer, TextError> {
    NAMED.iter().find(|entry| entry.names.contains(&name)).copied().ok_or_else(|| {
        let known = NAMED.iter().flat_map(|entry| entry.names).filter(|name| !name.is_empty());
        TextError::UnknownPreTokenizer {
            found: name.to_owned(),
            known: known.copied().collect::<Vec<_>>().join(", "),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::pre_tokenizer::PreTokenizer;

    #[test]
    fn every_named_pre_tokenizer_compiles_and_no_name_is_given_twice() {
        let mut seen = std::collections::HashSet::new();
        for entry in NAMED {
            PreTokenizer::byte_level(entry.patterns).unwrap();
            for name in entry.names {
                assert!(seen.insert(name), "{name}");
                assert_eq!(named(name).unwrap().patterns, entry.patterns);
            }
        }
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_known_ones() {
        let message = named("esperanto").unwrap_err().to_string();
        assert!(message.contains("\"esperanto\"") && message.contains("llama-bpe"), "{message}");
    }
}
