//! A weight as it lies in memory: panels of 16 output rows, in the order in which the kernels read
//! them. How it gets there is `pack.rs`.

use candle_core::{Device, DeviceLocation};
use half::{bf16, f16};

use super::format::{AffineFormat, AffineRows, DenseRows, DenseType, MatrixFormat, ScaleType};
use super::pack;
use crate::error::{Error, Result};

/// Output rows that lie side by side, one to a lane of a vector. The last panel is filled up with
/// zeros.
pub(crate) const PANEL: usize = 16;

/// A packed weight, `[out_features, in_features]`.
#[derive(Debug)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    pub(crate) packed: Packed,
}

#[derive(Debug)]
pub(crate) enum Packed {
    Dense(DensePanels),
    Affine(AffinePanels),
}

/// Dense panels: for each column the 16 elements of the panel's rows.
#[derive(Debug)]
pub(crate) struct DensePanels {
    pub(crate) dense_type: DenseType,
    pub(crate) elements: Lines,
    /// Lines of one panel.
    pub(crate) stride: usize,
}

/// Affine panels: codes in blocks of one line, and for each group the 16 scales of the panel's
/// rows, then the 16 biases if there are any.
///
/// In a block, byte `4 * lane + j` belongs to row `lane` of the panel. With nibbles a block covers 8
/// columns: column `j` in the low and column `4 + j` in the high half of the byte. With bytes it
/// covers 4 columns.
#[derive(Debug)]
pub(crate) struct AffinePanels {
    pub(crate) format: AffineFormat,
    pub(crate) codes: Lines,
    /// Lines of codes of one panel.
    pub(crate) stride: usize,
    pub(crate) scales: Lines,
    /// Lines of scales and biases of one panel; groups with 32 bytes of scales share lines.
    pub(crate) scales_stride: usize,
}

/// A cache line, for its alignment.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u8; LINE]);

/// Bytes of a cache line, and of the widest vector.
pub(crate) const LINE: usize = 64;

/// Bytes that start on a cache line.
pub(crate) type Lines = Vec<Line>;

impl Matrix {
    /// Packs affine rows for `device`, reading each row once, on all cores.
    ///
    /// # Errors
    /// A format outside of what [`AffineFormat`] allows, columns that are no multiple of the group,
    /// a size that overflows, a device without an implementation.
    pub fn pack_affine(source: &dyn AffineRows, device: &Device) -> Result<Self> {
        on_cpu(device)?;
        let packed = Packed::Affine(pack::affine(source)?);
        Ok(Self { rows: source.rows(), cols: source.cols(), packed })
    }

    /// Packs dense rows for `device`, reading each row once, on all cores.
    ///
    /// # Errors
    /// A size that overflows, a device without an implementation.
    pub fn pack_dense(source: &dyn DenseRows, device: &Device) -> Result<Self> {
        on_cpu(device)?;
        let packed = Packed::Dense(pack::dense(source)?);
        Ok(Self { rows: source.rows(), cols: source.cols(), packed })
    }

    /// Number of rows: the outputs of the linear layer.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns: the inputs of the linear layer.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// What it holds.
    pub fn format(&self) -> MatrixFormat {
        match &self.packed {
            Packed::Dense(panels) => MatrixFormat::Dense(panels.dense_type),
            Packed::Affine(panels) => MatrixFormat::Affine(panels.format),
        }
    }

    /// Bytes it holds.
    pub fn bytes(&self) -> usize {
        let lines = match &self.packed {
            Packed::Dense(panels) => panels.elements.len(),
            Packed::Affine(panels) => panels.codes.len() + panels.scales.len(),
        };
        lines * LINE
    }

    /// Writes the values of row `row` into `out`, `[cols]`.
    ///
    /// # Errors
    /// A row that does not exist, an `out` of another length.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) -> Result<()> {
        const OP: &str = "dequantize_row";
        if row >= self.rows {
            let (operand, position, limit) = ("row", 0, self.rows);
            return Err(Error::Index { op: OP, operand, position, found: row, limit });
        }
        crate::access::check(OP, "out", out.len() == self.cols, || {
            (format!("[{}]", self.cols), format!("[{}]", out.len()))
        })?;
        self.unpack_row(row, out);
        Ok(())
    }

    /// As [`dequantize_row`](Self::dequantize_row), for a row and a length that were checked.
    pub(crate) fn unpack_row(&self, row: usize, out: &mut [f32]) {
        match &self.packed {
            Packed::Dense(panels) => panels.unpack_row(row, out),
            Packed::Affine(panels) => panels.unpack_row(row, out),
        }
    }
}

impl DensePanels {
    fn unpack_row(&self, row: usize, out: &mut [f32]) {
        let lane = row % PANEL;
        let bytes = bytes_of(&self.elements[row / PANEL * self.stride..][..self.stride]);
        for (col, value) in out.iter_mut().enumerate() {
            let index = col * PANEL + lane;
            *value = match self.dense_type {
                DenseType::F32 => f32::from_le_bytes(element(bytes, index)),
                DenseType::Bf16 => bf16::from_le_bytes(element(bytes, index)).to_f32(),
                DenseType::F16 => f16::from_le_bytes(element(bytes, index)).to_f32(),
            };
        }
    }
}

impl AffinePanels {
    /// Whether two codes share a byte.
    pub(crate) fn nibbles(&self) -> bool {
        self.format.bits <= 4
    }

    fn unpack_row(&self, row: usize, out: &mut [f32]) {
        let (panel, lane) = (row / PANEL, row % PANEL);
        let codes = bytes_of(&self.codes[panel * self.stride..][..self.stride]);
        let scales = bytes_of(&self.scales[panel * self.scales_stride..][..self.scales_stride]);
        let nibbles = self.nibbles();
        for (group, values) in out.chunks_mut(self.format.group_size).enumerate() {
            let (scale, bias) = self.scale_and_bias(scales, group, lane);
            for (offset, value) in values.iter_mut().enumerate() {
                let code = code_at(codes, nibbles, group * self.format.group_size + offset, lane);
                *value = match self.format.zero_point {
                    Some(zero) => scale * (f32::from(code) - f32::from(zero)),
                    None => scale * f32::from(code) + bias,
                };
            }
        }
    }

    /// Scale and bias of a lane in a group of a panel whose scales are given; 0 as a bias that is
    /// not stored.
    fn scale_and_bias(&self, scales: &[u8], group: usize, lane: usize) -> (f32, f32) {
        let number = |index| match self.format.scales {
            ScaleType::F32 => f32::from_le_bytes(element(scales, index)),
            ScaleType::F16 => f16::from_le_bytes(element(scales, index)).to_f32(),
        };
        match self.format.zero_point {
            Some(_) => (number(group * PANEL + lane), 0.0),
            None => {
                let start = 2 * group * PANEL;
                (number(start + lane), number(start + PANEL + lane))
            }
        }
    }
}

/// The code of column `col` of a panel's row `lane`.
fn code_at(codes: &[u8], nibbles: bool, col: usize, lane: usize) -> u8 {
    if nibbles {
        let byte = codes[col / 8 * LINE + 4 * lane + col % 4];
        if col % 8 < 4 { byte & 0xf } else { byte >> 4 }
    } else {
        codes[col / 4 * LINE + 4 * lane + col % 4]
    }
}

/// The bytes of element `index` in an array of elements of `N` bytes.
fn element<const N: usize>(bytes: &[u8], index: usize) -> [u8; N] {
    let mut element = [0; N];
    element.copy_from_slice(&bytes[index * N..][..N]);
    element
}

/// The bytes of lines.
pub(crate) fn bytes_of(lines: &[Line]) -> &[u8] {
    // SAFETY: a line is exactly its 64 bytes (`repr(C)`, size equal to alignment), any of which may
    // be read; the length covers the same memory.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), size_of_val(lines)) }
}

/// The bytes of lines, to be written.
pub(crate) fn bytes_of_mut(lines: &mut [Line]) -> &mut [u8] {
    // SAFETY: as in `bytes_of`, and any byte may be written; the borrow is exclusive.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), size_of_val(lines)) }
}

fn on_cpu(device: &Device) -> Result<()> {
    match device.location() {
        DeviceLocation::Cpu => Ok(()),
        device => Err(Error::Unsupported { op: "matmul", device }),
    }
}
