//! What the writers of checkpoints did to weights before they stored them.
//!
//! Where a conversion can be undone row by row it is undone on reading; these cannot, and are for
//! the architecture to heed.

use super::TensorTable;

/// GGUF architectures whose converter adds one to norms that `transformers` stores zero-centred.
const GGUF_SHIFTED_NORMS: &[&str] = &["gemma3", "qwen3next", "qwen35", "qwen35moe"];

/// GGUF architectures whose converter reorders the value heads of gated delta layers.
const GGUF_TILED_VALUE_HEADS: &[&str] = &["qwen35", "qwen35moe"];

/// Ends the names of the convolutions of gated delta layers.
const CONVOLUTION: &str = ".linear_attn.conv1d.weight";

/// How a checkpoint differs from what `transformers` stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Conventions {
    /// Weights of zero-centred norms, `x * (1 + w)`, are stored with the one added.
    pub norms_shifted: bool,
    /// Value heads of gated delta layers are ordered for key heads that repeat as a whole: value
    /// head `j` belongs to key head `j % key_heads`.
    pub value_heads_tiled: bool,
}

impl Conventions {
    /// Those of a GGUF file of `architecture`.
    pub(super) fn of_gguf(architecture: &str) -> Conventions {
        Conventions {
            norms_shifted: GGUF_SHIFTED_NORMS.contains(&architecture),
            value_heads_tiled: GGUF_TILED_VALUE_HEADS.contains(&architecture),
        }
    }

    /// Those of a directory; gives its convolutions the shape `[channels, kernel]`.
    ///
    /// They are stored as `[channels, 1, kernel]`, and by MLX, which shifts the norms of the same
    /// models, as `[channels, kernel, 1]`. The numbers lie in the same order.
    pub(super) fn settle(tensors: &mut TensorTable) -> Conventions {
        let mut converted = false;
        for (_, entry) in tensors.iter_mut().filter(|(name, _)| name.ends_with(CONVOLUTION)) {
            entry.shape = match entry.shape[..] {
                [channels, 1, kernel] => vec![channels, kernel],
                [channels, kernel, 1] => {
                    converted = true;
                    vec![channels, kernel]
                }
                _ => continue,
            };
        }
        Conventions { norms_shifted: converted, value_heads_tiled: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Dtype, RowMap, TensorEntry};

    fn table(shape: &[usize]) -> TensorTable {
        let entry = TensorEntry {
            name_in_file: "c".into(),
            dtype: Dtype::F32,
            shape: shape.to_vec(),
            file: 0,
            range: 0..0,
            row_map: RowMap::Identity,
        };
        TensorTable::from([("model.layers.0.linear_attn.conv1d.weight".into(), entry)])
    }

    #[test]
    fn a_convolution_whose_channels_come_last_tells_of_shifted_norms() {
        for (stored, shape, shifted) in [
            (&[8, 1, 4][..], &[8, 4][..], false),
            (&[8, 4, 1], &[8, 4], true),
            (&[8, 1, 1], &[8, 1], false),
            (&[8, 4], &[8, 4], false),
            (&[8, 2, 4], &[8, 2, 4], false),
        ] {
            let mut table = table(stored);
            assert_eq!(Conventions::settle(&mut table).norms_shifted, shifted, "{stored:?}");
            assert_eq!(table.values().next().unwrap().shape, shape);
        }
        assert_eq!(Conventions::settle(&mut TensorTable::new()), Conventions::default());
    }

    #[test]
    fn converters_of_gguf_are_known_by_architecture() {
        let both = Conventions { norms_shifted: true, value_heads_tiled: true };
        assert_eq!(Conventions::of_gguf("qwen35moe"), both);
        assert_eq!(
            Conventions::of_gguf("qwen3next"),
            Conventions { value_heads_tiled: false, ..both }
        );
        assert_eq!(Conventions::of_gguf("llama"), Conventions::default());
    }
}
