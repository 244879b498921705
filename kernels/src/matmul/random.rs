//! Weights of random codes, made where they are used: what a model of some shape costs can be measured
//! without its weights. On a GPU nothing but a few words cross the bus.

use candle_core::{DType, Device, Tensor};

use super::device::{CHUNK, DeviceWeight, RowLayout};
use super::format::{AffineFormat, AffineRows, MatrixFormat, ScaleType};
use super::layout::GroupLayout;
use super::pack::{overflow, put_number};
use crate::error::{Error, Result};
use crate::random_words::{random_words, reference::word};

/// A weight of random codes, `[rows, cols]`, whose values are centred and have about the variance
/// `1 / cols`: a product keeps the length of a row. All groups have one scale, a power of two.
///
/// A seed makes the same weight again on the same kind of device; on another the same numbers are in
/// other places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RandomRows {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns; on a GPU a multiple of what fills 64 bytes, 128 codes of 4 bits.
    pub cols: usize,
    /// 4 or 8 bits, scales of 16 bits.
    pub format: AffineFormat,
    /// What tells it from others.
    pub seed: u64,
}

impl RandomRows {
    /// Refuses formats that random words are no codes of.
    pub(super) fn check(&self) -> Result<()> {
        let AffineFormat { bits, scales, .. } = self.format;
        let refused = |what: String| Err(Error::Format { what });
        if !matches!(bits, 4 | 8) {
            return refused(format!("random weights have 4 or 8 bits, found {bits}"));
        }
        if !matches!(scales, ScaleType::F16 | ScaleType::Bf16) {
            return refused(format!("random weights have scales of 16 bits, found {scales:?}"));
        }
        Ok(())
    }

    /// Scale and bias of every group.
    fn scale_and_bias(&self) -> [f32; 2] {
        let codes = f64::from(1_u32 << self.format.bits);
        let deviation = ((codes * codes - 1.0) / 12.0).sqrt();
        let scale = (1.0 / (deviation * (self.cols.max(1) as f64).sqrt())).log2().round().exp2();
        [scale as f32, (-scale * (codes - 1.0) / 2.0) as f32]
    }
}

impl AffineRows for RandomRows {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn format(&self) -> AffineFormat {
        self.format
    }

    fn read_row(&self, row: usize, codes: &mut [u8], scales: &mut [f32], biases: &mut [f32]) {
        let mask = (1_u32 << self.format.bits) - 1;
        for (col, code) in codes.iter_mut().enumerate() {
            *code = (word((row * self.cols + col) as u32, self.seed) & mask) as u8;
        }
        let [scale, bias] = self.scale_and_bias();
        scales.fill(scale);
        biases.fill(bias);
    }
}

/// Makes the weight on a GPU.
pub(super) fn on_device(source: &RandomRows, device: &Device) -> Result<DeviceWeight> {
    let RandomRows { rows, cols, format, seed } = *source;
    let groups = GroupLayout::from(format);
    super::pack::check_groups(groups.group_size, cols)?;
    let layout = RowLayout::of(MatrixFormat::Affine(format), cols);
    let layout = layout.ok_or_else(|| overflow(rows, cols))?;
    // Rows are filled up with zeros, which random words are not.
    let unit = CHUNK * 8 / usize::from(format.bits);
    if !cols.is_multiple_of(unit) {
        let what =
            format!("random weights have a multiple of {unit} columns on a GPU, found {cols}");
        return Err(Error::Format { what });
    }
    let [code_words, scale_words] = layout.words(rows).ok_or_else(|| overflow(rows, cols))?;
    let codes = Tensor::zeros(code_words.max(1), DType::U32, device)?;
    random_words(&codes, seed)?;
    let [scale, bias] = source.scale_and_bias();
    let mut pair = [0_u8; 4];
    put_number(&mut pair, groups.scales, 0, scale);
    put_number(&mut pair, groups.scales, 1, if groups.biased { bias } else { scale });
    let pair = u32::from_le_bytes(pair);
    let scales = Tensor::full(pair, scale_words.max(1), device)?;
    Ok(DeviceWeight::alone(MatrixFormat::Affine(format), layout, [codes, scales]))
}
