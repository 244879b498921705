//! Names of tensors and modules in directories: from the many prefixes that checkpoints have to
//! those of `transformers`' text models.
//!
//! The text model is at `model.` and its head at `lm_head.`, the tower of a multimodal model at
//! `vision.`, layers that predict further tokens at `mtp.`. What is none of them keeps its name.

use super::{TensorEntry, TensorTable};
use crate::error::Error;

/// Components that only say that what follows belongs to the text model.
const WRAPPERS: &[&str] = &["model", "language_model", "text_model"];

/// Components of the text model itself.
const TEXT: &[&str] = &["embed_tokens", "layers", "norm"];

/// Components that hold the tower of a multimodal model.
const VISION: &[&str] = &["visual", "vision_tower", "vision_model"];

/// The canonical form of the name of a tensor, or of the path of a module.
pub(super) fn canonical(name: &str) -> String {
    let mut rest = name;
    while let Some((first, after)) = rest.split_once('.')
        && WRAPPERS.contains(&first)
    {
        rest = after;
    }
    let (first, after) = rest.split_once('.').map_or((rest, ""), |(first, after)| (first, after));
    let wrapped = rest.len() < name.len();
    match first {
        first if wrapped && TEXT.contains(&first) => format!("model.{rest}"),
        "lm_head" | "mtp" => rest.to_string(),
        first if VISION.contains(&first) => format!("vision.{after}"),
        _ => name.to_string(),
    }
}

/// The tensors of `table` under their canonical names; messages name `path`.
///
/// # Errors
/// [`Error::Format`] if two have the same.
pub(super) fn rename(table: TensorTable, path: &str) -> Result<TensorTable, Error> {
    let mut renamed = TensorTable::new();
    for (name, entry) in table {
        let canonical = canonical(&name);
        let place = format!("tensor {name}");
        if let Some(TensorEntry { name_in_file, .. }) = renamed.insert(canonical, entry) {
            let found = format!("{name_in_file} with the same meaning");
            return Err(Error::format(path, place, "one tensor of a kind", found));
        }
    }
    Ok(renamed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_prefix_leads_to_the_text_model() {
        for (name, expected) in [
            ("model.layers.0.mlp.gate.weight", "model.layers.0.mlp.gate.weight"),
            ("model.language_model.layers.0.x", "model.layers.0.x"),
            ("language_model.model.layers.0.x", "model.layers.0.x"),
            ("language_model.model.embed_tokens", "model.embed_tokens"),
            ("model.text_model.norm.weight", "model.norm.weight"),
            ("text_model.model.norm.weight", "model.norm.weight"),
            ("lm_head.weight", "lm_head.weight"),
            ("language_model.lm_head.weight", "lm_head.weight"),
            ("language_model.lm_head", "lm_head"),
            ("model.lm_head.weight", "lm_head.weight"),
        ] {
            assert_eq!(canonical(name), expected, "{name}");
        }
    }

    #[test]
    fn towers_and_further_layers_are_told_apart_and_the_rest_keeps_its_name() {
        for (name, expected) in [
            ("model.visual.patch_embed.proj.weight", "vision.patch_embed.proj.weight"),
            ("visual.blocks.0.norm1.weight", "vision.blocks.0.norm1.weight"),
            ("vision_tower.blocks.0.x", "vision.blocks.0.x"),
            ("model.vision_tower.blocks.0.x", "vision.blocks.0.x"),
            ("mtp.layers.0.x", "mtp.layers.0.x"),
            ("language_model.mtp.fc.weight", "mtp.fc.weight"),
            ("model.multi_modal_projector.x", "model.multi_modal_projector.x"),
            ("norm.weight", "norm.weight"),
            ("model", "model"),
            ("", ""),
        ] {
            assert_eq!(canonical(name), expected, "{name}");
        }
    }
}
