//! Element types of tensors in files: plain numbers and the block-packed types of GGML.
//!
//! Only names and sizes are here; `gguf::blocks` knows what the bytes mean.

use std::fmt;

/// How the elements of a tensor are stored.
///
/// The GGML types pack `block_elements` consecutive elements of a row into `block_bytes` bytes.
/// Their names are those of GGML; the others are those of safetensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, non_camel_case_types, reason = "the names are the formats' own")]
pub enum Dtype {
    F64,
    F32,
    F16,
    BF16,
    F8_E4M3,
    F8_E5M2,
    F8_E8M0,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
    IQ1_S,
    IQ1_M,
    IQ2_XXS,
    IQ2_XS,
    IQ2_S,
    IQ3_XXS,
    IQ3_S,
    IQ4_NL,
    IQ4_XS,
    TQ1_0,
    TQ2_0,
    MXFP4,
    NVFP4,
    Q1_0,
}

impl Dtype {
    /// The types whose values can be read, for messages.
    pub const READABLE: &'static str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, \
         Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4, and with scales U32 of MLX and F8_E4M3";

    /// The type that GGML numbers `id` in tensor infos; `None` for a number without a public type.
    pub fn from_ggml(id: u32) -> Option<Dtype> {
        Some(match id {
            0 => Dtype::F32,
            1 => Dtype::F16,
            2 => Dtype::Q4_0,
            3 => Dtype::Q4_1,
            6 => Dtype::Q5_0,
            7 => Dtype::Q5_1,
            8 => Dtype::Q8_0,
            9 => Dtype::Q8_1,
            10 => Dtype::Q2_K,
            11 => Dtype::Q3_K,
            12 => Dtype::Q4_K,
            13 => Dtype::Q5_K,
            14 => Dtype::Q6_K,
            15 => Dtype::Q8_K,
            16 => Dtype::IQ2_XXS,
            17 => Dtype::IQ2_XS,
            18 => Dtype::IQ3_XXS,
            19 => Dtype::IQ1_S,
            20 => Dtype::IQ4_NL,
            21 => Dtype::IQ3_S,
            22 => Dtype::IQ2_S,
            23 => Dtype::IQ4_XS,
            24 => Dtype::I8,
            25 => Dtype::I16,
            26 => Dtype::I32,
            27 => Dtype::I64,
            28 => Dtype::F64,
            29 => Dtype::IQ1_M,
            30 => Dtype::BF16,
            34 => Dtype::TQ1_0,
            35 => Dtype::TQ2_0,
            39 => Dtype::MXFP4,
            40 => Dtype::NVFP4,
            41 => Dtype::Q1_0,
            _ => return None,
        })
    }

    /// Elements that share a block; 1 for plain numbers. A row is a whole number of blocks.
    pub fn block_elements(self) -> usize {
        self.layout().1
    }

    /// Bytes of a block, or of one plain number.
    pub fn block_bytes(self) -> usize {
        self.layout().2
    }

    /// Whether this crate can turn its bytes into values.
    pub fn is_readable(self) -> bool {
        use Dtype::*;
        let plain = matches!(self, F32 | F16 | BF16);
        let simple = matches!(self, Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0);
        let large = matches!(self, Q2_K | Q3_K | Q4_K | Q5_K | Q6_K);
        plain || simple || large || matches!(self, IQ4_NL | IQ4_XS | MXFP4)
    }

    /// Whether elements are packed into blocks with a scale.
    pub fn is_quantized(self) -> bool {
        self.block_elements() > 1
    }

    /// The name, as its format spells it.
    pub fn name(self) -> &'static str {
        self.layout().0
    }

    /// Bytes of `elements` elements; `None` if they do not fill whole blocks or the size overflows.
    pub fn bytes(self, elements: usize) -> Option<usize> {
        let blocks = elements / self.block_elements();
        elements
            .is_multiple_of(self.block_elements())
            .then(|| blocks.checked_mul(self.block_bytes()))
            .flatten()
    }

    /// Name, elements of a block, bytes of a block.
    const fn layout(self) -> (&'static str, usize, usize) {
        match self {
            Dtype::F64 => ("F64", 1, 8),
            Dtype::F32 => ("F32", 1, 4),
            Dtype::F16 => ("F16", 1, 2),
            Dtype::BF16 => ("BF16", 1, 2),
            Dtype::F8_E4M3 => ("F8_E4M3", 1, 1),
            Dtype::F8_E5M2 => ("F8_E5M2", 1, 1),
            Dtype::F8_E8M0 => ("F8_E8M0", 1, 1),
            Dtype::I64 => ("I64", 1, 8),
            Dtype::I32 => ("I32", 1, 4),
            Dtype::I16 => ("I16", 1, 2),
            Dtype::I8 => ("I8", 1, 1),
            Dtype::U64 => ("U64", 1, 8),
            Dtype::U32 => ("U32", 1, 4),
            Dtype::U16 => ("U16", 1, 2),
            Dtype::U8 => ("U8", 1, 1),
            Dtype::Bool => ("BOOL", 1, 1),
            Dtype::Q4_0 => ("Q4_0", 32, 18),
            Dtype::Q4_1 => ("Q4_1", 32, 20),
            Dtype::Q5_0 => ("Q5_0", 32, 22),
            Dtype::Q5_1 => ("Q5_1", 32, 24),
            Dtype::Q8_0 => ("Q8_0", 32, 34),
            Dtype::Q8_1 => ("Q8_1", 32, 36),
            Dtype::Q2_K => ("Q2_K", 256, 84),
            Dtype::Q3_K => ("Q3_K", 256, 110),
            Dtype::Q4_K => ("Q4_K", 256, 144),
            Dtype::Q5_K => ("Q5_K", 256, 176),
            Dtype::Q6_K => ("Q6_K", 256, 210),
            Dtype::Q8_K => ("Q8_K", 256, 292),
            Dtype::IQ1_S => ("IQ1_S", 256, 50),
            Dtype::IQ1_M => ("IQ1_M", 256, 56),
            Dtype::IQ2_XXS => ("IQ2_XXS", 256, 66),
            Dtype::IQ2_XS => ("IQ2_XS", 256, 74),
            Dtype::IQ2_S => ("IQ2_S", 256, 82),
            Dtype::IQ3_XXS => ("IQ3_XXS", 256, 98),
            Dtype::IQ3_S => ("IQ3_S", 256, 110),
            Dtype::IQ4_NL => ("IQ4_NL", 32, 18),
            Dtype::IQ4_XS => ("IQ4_XS", 256, 136),
            Dtype::TQ1_0 => ("TQ1_0", 256, 54),
            Dtype::TQ2_0 => ("TQ2_0", 256, 66),
            Dtype::MXFP4 => ("MXFP4", 32, 17),
            Dtype::NVFP4 => ("NVFP4", 64, 36),
            Dtype::Q1_0 => ("Q1_0", 128, 18),
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_count_whole_blocks_and_refuse_parts_and_overflow() {
        assert_eq!(Dtype::Q4_1.bytes(64), Some(40));
        assert_eq!(Dtype::Q4_1.bytes(33), None);
        assert_eq!(Dtype::F64.bytes(usize::MAX), None);
    }
}
