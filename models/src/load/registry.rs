//! Which architecture a checkpoint is of: the names that configurations have for each.

use super::plan::Loader;
use crate::checkpoint::Checkpoint;
use crate::error::Error;
use crate::gemma3::Gemma3;
use crate::glm4_moe_lite::Glm4MoeLite;
use crate::llama::Llama;
use crate::qwen3::Qwen3;
use crate::qwen3_5::{Qwen3_5, Qwen3_5Moe};
use crate::qwen3_moe::Qwen3Moe;
use crate::qwen3_next::Qwen3Next;

/// An architecture with the names it goes by.
struct Entry {
    /// Values of `model_type`, the canonical one first.
    model_types: &'static [&'static str],
    /// Values of `architectures`.
    classes: &'static [&'static str],
    loader: Loader,
}

const ENTRIES: &[Entry] = &[
    Entry {
        // Mistral without a sliding window has Llama's block to the last bit.
        model_types: &["llama", "mistral"],
        classes: &["LlamaForCausalLM", "MistralForCausalLM"],
        loader: Loader::of::<Llama>(),
    },
    Entry {
        model_types: &["qwen3"],
        classes: &["Qwen3ForCausalLM"],
        loader: Loader::of::<Qwen3>(),
    },
    Entry {
        model_types: &["qwen3_moe"],
        classes: &["Qwen3MoeForCausalLM"],
        loader: Loader::of::<Qwen3Moe>(),
    },
    Entry {
        model_types: &["gemma3_text", "gemma3"],
        classes: &["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"],
        loader: Loader::of::<Gemma3>(),
    },
    Entry {
        model_types: &["glm4_moe_lite"],
        classes: &["Glm4MoeLiteForCausalLM", "GLM4MoeLite"],
        loader: Loader::of::<Glm4MoeLite>(),
    },
    Entry {
        model_types: &["qwen3_next"],
        classes: &[
            "Qwen3NextForCausalLM",
            "Qwen3NextForConditionalGeneration",
            "Qwen3NextMoeForCausalLM",
            "Qwen3NextMoeForConditionalGeneration",
        ],
        loader: Loader::of::<Qwen3Next>(),
    },
    Entry {
        model_types: &["qwen3_5", "qwen3_5_text"],
        classes: &["Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"],
        loader: Loader::of::<Qwen3_5>(),
    },
    Entry {
        model_types: &["qwen3_5_moe", "qwen3_5_moe_text"],
        classes: &["Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration"],
        loader: Loader::of::<Qwen3_5Moe>(),
    },
];

/// The loader of a checkpoint, by the first of its `architectures` and its `model_type`. Whichever of
/// the two there is must be known, and both must mean the same.
///
/// # Errors
/// [`Error::UnsupportedArchitecture`] with the names of those that are supported, [`Error::Config`] for
/// names that contradict each other.
pub(crate) fn find(checkpoint: &Checkpoint) -> Result<Loader, Error> {
    let config = checkpoint.config();
    let classes = config.strings("architectures")?.unwrap_or_default();
    let (class, model_type) = (classes.first().copied(), config.string("model_type")?);
    let known = |name: Option<&str>, find: fn(&Entry, &str) -> bool| match name {
        None => Ok(None),
        Some(name) => match ENTRIES.iter().position(|entry| find(entry, name)) {
            None => Err(unsupported(checkpoint, name)),
            found => Ok(found),
        },
    };
    let by_class = known(class, |entry, name| entry.classes.contains(&name))?;
    let by_type = known(model_type, |entry, name| entry.model_types.contains(&name))?;
    match (by_class, by_type) {
        (Some(class), Some(of_type)) if class != of_type => {
            let expected = format!("one of {}", ENTRIES[class].model_types.join(", "));
            Err(config.error("model_type", expected, model_type.unwrap_or_default()))
        }
        (Some(index), _) | (None, Some(index)) => Ok(ENTRIES[index].loader),
        (None, None) => Err(config.error("model_type", "an architecture", "nothing")),
    }
}

fn unsupported(checkpoint: &Checkpoint, found: &str) -> Error {
    let names = |entry: &'static Entry| entry.model_types.iter().chain(entry.classes).copied();
    let supported: Vec<&str> = ENTRIES.iter().flat_map(names).collect();
    Error::UnsupportedArchitecture {
        file: checkpoint.path().display().to_string(),
        found: found.to_string(),
        supported: supported.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_means_one_architecture() {
        let names = |entry: &'static Entry| entry.model_types.iter().chain(entry.classes).copied();
        let mut all: Vec<&str> = ENTRIES.iter().flat_map(names).collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn every_documented_name_is_known_and_no_other() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/MODELS.md");
        let text = std::fs::read_to_string(path).unwrap();
        let table = text.split("## ").find(|part| part.starts_with("Architectures")).unwrap();
        for name in ENTRIES.iter().flat_map(|entry| entry.classes) {
            let documented = table.contains(&format!("`{name}`"))
                || name.ends_with("ForConditionalGeneration")
                    && table.contains(&name.replace("ForConditionalGeneration", "ForCausalLM"));
            assert!(documented, "{name} is not in docs/MODELS.md");
        }
        for word in table.split('`').skip(1).step_by(2).filter(|word| word.ends_with("LM")) {
            assert!(ENTRIES.iter().any(|entry| entry.classes.contains(&word)), "{word}");
        }
    }
}
