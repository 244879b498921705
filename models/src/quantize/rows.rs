//! A dense weight seen as quantized rows: what a load packs, and what the writer writes.
//!
//! Each row is quantized when it is read, so nothing of the size of the tensor is held.

use candle_core::Device;
use sconce_kernels::{
    AffineFormat, AffineRows, Code, CodedFormat, CodedRows, DenseRows, DenseType, Matrix,
    MatrixFormat, ScaleType,
};

use super::{Packing, PackingMode, affine, coded, element};
use crate::error::Error;

/// The rows of `source`, quantized by `packing`. Columns are a multiple of the group.
#[derive(Clone, Copy)]
pub struct QuantizedRows<'a> {
    source: &'a dyn DenseRows,
    packing: Packing,
}

/// A weight has a value that is infinite or no number, which no group can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotFinite;

impl<'a> QuantizedRows<'a> {
    /// Quantizes the rows of `source`; `None` if its columns are no multiple of the group.
    pub fn new(source: &'a dyn DenseRows, packing: Packing) -> Option<Self> {
        source.cols().is_multiple_of(packing.group_size).then_some(Self { source, packing })
    }

    /// What a matrix packed from the rows holds: what it would hold if they had been written to a
    /// file and read back.
    pub fn format(packing: Packing, source: DenseType) -> MatrixFormat {
        let Packing { mode, bits, group_size } = packing;
        let coded = |code, scales| MatrixFormat::Coded(CodedFormat { code, group_size, scales });
        match mode {
            PackingMode::Affine => {
                let scales = match source {
                    DenseType::F32 => ScaleType::F32,
                    DenseType::Bf16 => ScaleType::Bf16,
                    DenseType::F16 => ScaleType::F16,
                };
                MatrixFormat::Affine(AffineFormat { bits, group_size, zero_point: None, scales })
            }
            PackingMode::Mxfp4 => coded(Code::E2m1, ScaleType::E8m0),
            PackingMode::Mxfp8 => coded(Code::E4m3, ScaleType::E8m0),
            // An E4M3 number has three bits of fraction, and bf16 seven.
            PackingMode::Nvfp4 => coded(Code::E2m1, ScaleType::Bf16),
        }
    }

    /// Packs the rows into a matrix on `device`. Values that are not finite make values that are
    /// not, or are wrong.
    ///
    /// # Errors
    /// The device cannot allocate.
    pub fn pack(&self, device: &Device) -> Result<Matrix, Error> {
        Ok(match Self::format(self.packing, self.source.format()) {
            MatrixFormat::Affine(format) => Matrix::pack_affine(&Affine(*self, format), device)?,
            MatrixFormat::Coded(format) => Matrix::pack_coded(&Coded(*self, format), device)?,
            MatrixFormat::Dense(_) => Matrix::pack_dense(self.source, device)?,
        })
    }

    /// Bytes of codes, of scales and of biases of a row, as MLX stores them.
    pub fn row_bytes(&self) -> [usize; 3] {
        let (packing, cols, source) = (self.packing, self.source.cols(), self.source.format());
        let scales = packing.scale_bytes(cols, source);
        [packing.code_bytes(cols), scales, packing.bias_bytes(cols, source)]
    }

    /// Writes row `row` as MLX stores it, the codes from the low bits up: codes, then scales, then
    /// biases, [`row_bytes`](Self::row_bytes) of each.
    ///
    /// # Errors
    /// [`NotFinite`], and half a row.
    pub fn pack_row(&self, row: usize, out: &mut [u8]) -> Result<(), NotFinite> {
        let [code_bytes, scale_bytes, _] = self.row_bytes();
        let (packed, rest) = out.split_at_mut(code_bytes);
        let (scales, biases) = rest.split_at_mut(scale_bytes);
        let (values, source) = (self.values(row), self.source.format());
        if !values.iter().all(|value| value.is_finite()) {
            return Err(NotFinite);
        }
        let Packing { mode, bits, group_size } = self.packing;
        let width = scale_bytes * group_size / values.len().max(1);
        let mut codes = vec![0; group_size];
        for (group, values) in values.chunks_exact(group_size).enumerate() {
            let scale = &mut scales[group * width..][..width];
            match mode {
                PackingMode::Affine => {
                    let (factor, bias) = affine::quantize_group(values, bits, source, &mut codes);
                    element::store(scale, source, factor);
                    element::store(&mut biases[group * width..][..width], source, bias);
                }
                _ => scale[0] = coded::quantize_group(values, mode, source, &mut codes),
            }
            let bytes = group_size * usize::from(bits) / 8;
            place(&mut packed[group * bytes..][..bytes], &codes, bits);
        }
        Ok(())
    }

    fn values(&self, row: usize) -> Vec<f32> {
        let mut values = vec![0.0; self.source.cols()];
        self.source.read_row(row, &mut values);
        values
    }
}

/// Places codes of 4 or 8 bits, the first in the low bits.
fn place(bytes: &mut [u8], codes: &[u8], bits: u8) {
    match bits {
        4 => {
            for (byte, [low, high]) in bytes.iter_mut().zip(codes.as_chunks().0) {
                *byte = low | high << 4;
            }
        }
        _ => bytes.copy_from_slice(codes),
    }
}

/// Rows of an affine packing.
struct Affine<'a>(QuantizedRows<'a>, AffineFormat);

impl AffineRows for Affine<'_> {
    fn rows(&self) -> usize {
        self.0.source.rows()
    }

    fn cols(&self) -> usize {
        self.0.source.cols()
    }

    fn format(&self) -> AffineFormat {
        self.1
    }

    fn read_row(&self, row: usize, codes: &mut [u8], scales: &mut [f32], biases: &mut [f32]) {
        let (values, source) = (self.0.values(row), self.0.source.format());
        let AffineFormat { bits, group_size, .. } = self.1;
        let groups = values.chunks_exact(group_size).zip(codes.chunks_exact_mut(group_size));
        for ((values, codes), (scale, bias)) in groups.zip(scales.iter_mut().zip(biases)) {
            (*scale, *bias) = affine::quantize_group(values, bits, source, codes);
        }
    }
}

/// Rows of a packing into small floating-point numbers.
struct Coded<'a>(QuantizedRows<'a>, CodedFormat);

impl CodedRows for Coded<'_> {
    fn rows(&self) -> usize {
        self.0.source.rows()
    }

    fn cols(&self) -> usize {
        self.0.source.cols()
    }

    fn format(&self) -> CodedFormat {
        self.1
    }

    fn read_row(&self, row: usize, codes: &mut [u8], scales: &mut [f32]) {
        let (values, source) = (self.0.values(row), self.0.source.format());
        let (mode, group_size) = (self.0.packing.mode, self.1.group_size);
        let groups = values.chunks_exact(group_size).zip(codes.chunks_exact_mut(group_size));
        for ((values, codes), scale) in groups.zip(scales) {
            let code = coded::quantize_group(values, mode, source, codes);
            *scale = coded::decode_scale(code, mode);
        }
    }
}
