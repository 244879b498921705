//! From weights of full precision to groups of codes: the formats, the numbers, which tensor gets
//! which, and the writer of MLX-format directories.
//!
//! A load that quantizes and a directory written beforehand use the same arithmetic (`affine`,
//! `coded`) by the same policy (`policy`), so they hold the same weights. Reading quantized
//! checkpoints is the business of `checkpoint`.

mod affine;
mod coded;
mod config;
mod directory;
mod element;
mod layout;
pub mod policy;
pub mod rows;
mod shard;
mod source;
mod write;

use std::fmt;
use std::str::FromStr;

use sconce_kernels::DenseType;

pub(crate) use self::source::expect_full_precision;
pub use self::write::{QuantizeProgress, QuantizeSummary, SHARD_BYTES_MAX, quantize};
use crate::error::Error;

/// What a user may ask for: the packing of most weights of a model. Some tensors get a wider one,
/// some none; [`policy`] says which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuantizeFormat {
    /// 4-bit integers, a scale and a bias for each 64.
    Int4,
    /// 8-bit integers, a scale and a bias for each 64.
    Int8,
    /// 4-bit floats (E2M1), a power of two for each 32; OCP Microscaling.
    Mxfp4,
    /// 8-bit floats (E4M3), a power of two for each 32; OCP Microscaling.
    Mxfp8,
    /// 4-bit floats (E2M1), an 8-bit float (E4M3) for each 16, without a scale of the tensor.
    Nvfp4,
}

impl QuantizeFormat {
    /// All formats, in the order of their documentation.
    pub const ALL: [Self; 5] = [Self::Int4, Self::Int8, Self::Mxfp4, Self::Mxfp8, Self::Nvfp4];

    /// The name that users give.
    pub fn name(self) -> &'static str {
        match self {
            Self::Int4 => "int4",
            Self::Int8 => "int8",
            Self::Mxfp4 => "mxfp4",
            Self::Mxfp8 => "mxfp8",
            Self::Nvfp4 => "nvfp4",
        }
    }

    /// The packing of a tensor that is not treated specially.
    pub fn packing(self) -> Packing {
        match self {
            Self::Int4 => Packing { mode: PackingMode::Affine, bits: 4, group_size: 64 },
            Self::Int8 => Packing::WIDE,
            Self::Mxfp4 => Packing { mode: PackingMode::Mxfp4, bits: 4, group_size: 32 },
            Self::Mxfp8 => Packing { mode: PackingMode::Mxfp8, bits: 8, group_size: 32 },
            Self::Nvfp4 => Packing { mode: PackingMode::Nvfp4, bits: 4, group_size: 16 },
        }
    }
}

impl fmt::Display for QuantizeFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for QuantizeFormat {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|format| format.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::option("quantize", format!("one of {names}"), format!("{name:?}"))
        })
    }
}

/// How codes and scales make values; the names are those of MLX.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PackingMode {
    /// `scale * code + bias`, scale and bias of the type of the unpacked weight.
    Affine,
    /// E2M1 times a power of two.
    Mxfp4,
    /// E4M3 times a power of two.
    Mxfp8,
    /// E2M1 times an E4M3.
    Nvfp4,
}

impl PackingMode {
    /// The name in the `quantization` of a `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Affine => "affine",
            Self::Mxfp4 => "mxfp4",
            Self::Mxfp8 => "mxfp8",
            Self::Nvfp4 => "nvfp4",
        }
    }
}

/// How one weight is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Packing {
    /// How codes and scales make values.
    pub mode: PackingMode,
    /// Bits of a code, 4 or 8.
    pub bits: u8,
    /// Columns that share a scale.
    pub group_size: usize,
}

impl Packing {
    /// The most exact packing, which sensitive tensors get: affine, 8 bits, groups of 64.
    pub const WIDE: Packing = Packing { mode: PackingMode::Affine, bits: 8, group_size: 64 };

    /// Bytes of the codes of a row of `cols` columns, a multiple of the group.
    pub fn code_bytes(self, cols: usize) -> usize {
        cols * usize::from(self.bits) / 8
    }

    /// Bytes of the scales of a row of `cols` columns of type `source`.
    pub fn scale_bytes(self, cols: usize, source: DenseType) -> usize {
        let width = match self.mode {
            PackingMode::Affine => element::width(source),
            PackingMode::Mxfp4 | PackingMode::Mxfp8 | PackingMode::Nvfp4 => 1,
        };
        cols / self.group_size * width
    }

    /// Bytes of the biases of such a row; none but in [`PackingMode::Affine`].
    pub fn bias_bytes(self, cols: usize, source: DenseType) -> usize {
        match self.mode {
            PackingMode::Affine => self.scale_bytes(cols, source),
            PackingMode::Mxfp4 | PackingMode::Mxfp8 | PackingMode::Nvfp4 => 0,
        }
    }
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mode {
            PackingMode::Affine => write!(f, "affine {}-bit g{}", self.bits, self.group_size),
            mode => f.write_str(mode.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_unknown_ones_are_refused_with_the_known() {
        for format in QuantizeFormat::ALL {
            assert_eq!(format.to_string().parse::<QuantizeFormat>().unwrap(), format);
        }
        let error = "int3".parse::<QuantizeFormat>().unwrap_err().to_string();
        assert!(error.contains("int4, int8, mxfp4, mxfp8, nvfp4") && error.contains("int3"));
    }
}
