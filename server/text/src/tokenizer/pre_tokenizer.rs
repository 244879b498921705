//! The pre-tokenizer: the steps that cut normalized text into the words BPE works on. Wraps the
//! library's steps and replaces those that use its backtracking regular expressions.

use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::split::SplitPattern;
use tokenizers::{
    PreTokenizedString, PreTokenizer as _, PreTokenizerWrapper, SplitDelimiterBehavior,
};

use crate::tokenizer::splitter::{GPT2_PATTERN, Splitter};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Steps in order; each cuts every part that the steps before it left.
#[derive(Debug, Default)]
pub(crate) struct PreTokenizer {
    steps: Vec<Step>,
}

#[derive(Debug)]
enum Step {
    /// A step of the library that needs no regular expression with look-ahead.
    Library(Box<PreTokenizerWrapper>),
    /// A space in front of every part that has none.
    PrefixSpace,
    Split {
        splitter: Box<Splitter>,
        behavior: SplitDelimiterBehavior,
        invert: bool,
    },
}

impl PreTokenizer {
    /// Byte-level BPE's steps: cut by each pattern in turn, then spell bytes as characters.
    pub(crate) fn byte_level(patterns: &[&str]) -> Result<Self, BoxError> {
        let mut steps = Vec::with_capacity(patterns.len() + 1);
        for pattern in patterns {
            steps.push(Step::Split {
                splitter: Box::new(Splitter::new(pattern)?),
                behavior: SplitDelimiterBehavior::Isolated,
                invert: false,
            });
        }
        steps.push(spell_bytes());
        Ok(Self { steps })
    }

    /// The steps that `tokenizer.json` declares.
    pub(crate) fn from_library(declared: Option<&PreTokenizerWrapper>) -> Result<Self, BoxError> {
        let mut steps = Vec::new();
        if let Some(declared) = declared {
            flatten(declared, &mut steps)?;
        }
        Ok(Self { steps })
    }

    pub(crate) fn apply(&self, text: &mut PreTokenizedString) -> Result<(), BoxError> {
        for step in &self.steps {
            match step {
                Step::Library(step) => step.pre_tokenize(text)?,
                Step::PrefixSpace => text.normalize(|part| {
                    if !part.get().starts_with(' ') {
                        part.prepend(" ");
                    }
                    Ok(())
                })?,
                Step::Split { splitter, behavior, invert: false } => {
                    text.split(|_, part| part.split(&**splitter, *behavior))?;
                }
                Step::Split { splitter, behavior, invert: true } => {
                    let inverted = || tokenizers::tokenizer::pattern::Invert(&**splitter);
                    text.split(|_, part| part.split(inverted(), *behavior))?;
                }
            }
        }
        Ok(())
    }
}

fn spell_bytes() -> Step {
    Step::Library(Box::new(PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, false))))
}

fn flatten(declared: &PreTokenizerWrapper, steps: &mut Vec<Step>) -> Result<(), BoxError> {
    match declared {
        PreTokenizerWrapper::Sequence(sequence) => {
            for step in sequence.as_ref() {
                flatten(step, steps)?;
            }
        }
        PreTokenizerWrapper::Split(split) => {
            let pattern = match &split.pattern {
                SplitPattern::Regex(pattern) => pattern.clone(),
                SplitPattern::String(text) => regex::escape(text),
            };
            let splitter = Box::new(Splitter::new(&pattern)?);
            steps.push(Step::Split { splitter, behavior: split.behavior, invert: split.invert });
        }
        PreTokenizerWrapper::ByteLevel(level) => {
            if level.add_prefix_space {
                steps.push(Step::PrefixSpace);
            }
            if level.use_regex {
                steps.push(Step::Split {
                    splitter: Box::new(Splitter::new(GPT2_PATTERN)?),
                    behavior: SplitDelimiterBehavior::Isolated,
                    invert: false,
                });
            }
            steps.push(spell_bytes());
        }
        other => steps.push(Step::Library(Box::new(other.clone()))),
    }
    Ok(())
}
