//! A weight as it lies in memory. On the CPU: panels of 16 output rows, in the order in which the
//! kernels read them; how it gets there is `pack.rs`. On a GPU: `device.rs`.

use candle_core::{Device, DeviceLocation};
use half::{bf16, f16};

use super::codes::{self, Integers};
use super::device::{self, DeviceWeight, Stack};
use super::format::{
    AffineFormat, AffineRows, CodedFormat, CodedRows, DenseRows, DenseType, MatrixFormat, ScaleType,
};
use super::layout::{self, GroupLayout};
use super::random::{self, RandomRows};
use super::{device_pack, pack};
use crate::error::{Error, Result};
use crate::gpu::Gpu;

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
    Affine(AffineFormat, GroupPanels),
    Coded(CodedFormat, GroupPanels),
    Device(DeviceWeight),
}

/// Dense panels: for each column the 16 elements of the panel's rows.
#[derive(Debug)]
pub(crate) struct DensePanels {
    pub(crate) dense_type: DenseType,
    pub(crate) elements: Lines,
    /// Lines of one panel.
    pub(crate) stride: usize,
}

/// Panels of groups: codes, scales and biases, in the order of their layout.
#[derive(Debug)]
pub(crate) struct GroupPanels {
    pub(crate) layout: GroupLayout,
    pub(crate) codes: Lines,
    /// Lines of codes of one panel.
    pub(crate) stride: usize,
    pub(crate) scales: Lines,
    /// Lines of scales and biases of one panel; groups with less than a line of them share lines.
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
        let packed = match target(device)? {
            Some(_) => Packed::Device(device_pack::affine(source, device)?),
            None => Packed::Affine(source.format(), pack::affine(source)?),
        };
        Ok(Self { rows: source.rows(), cols: source.cols(), packed })
    }

    /// Packs coded rows for `device`, reading each row once, on all cores.
    ///
    /// # Errors
    /// As for [`pack_affine`](Self::pack_affine).
    pub fn pack_coded(source: &dyn CodedRows, device: &Device) -> Result<Self> {
        let packed = match target(device)? {
            Some(_) => Packed::Device(device_pack::coded(source, device)?),
            None => Packed::Coded(source.format(), pack::coded(source)?),
        };
        Ok(Self { rows: source.rows(), cols: source.cols(), packed })
    }

    /// Packs dense rows for `device`, reading each row once, on all cores.
    ///
    /// # Errors
    /// A size that overflows, a device without an implementation.
    pub fn pack_dense(source: &dyn DenseRows, device: &Device) -> Result<Self> {
        let packed = match target(device)? {
            Some(_) => Packed::Device(device_pack::dense(source, device)?),
            None => Packed::Dense(pack::dense(source)?),
        };
        Ok(Self { rows: source.rows(), cols: source.cols(), packed })
    }

    /// Makes a weight of random codes on `device`: nothing of it crosses the bus to a GPU.
    ///
    /// # Errors
    /// A format or a size that [`RandomRows`] does not have, a device without an implementation.
    pub fn random(source: &RandomRows, device: &Device) -> Result<Self> {
        source.check()?;
        match target(device)? {
            Some(_) => {
                let packed = Packed::Device(random::on_device(source, device)?);
                Ok(Self { rows: source.rows, cols: source.cols, packed })
            }
            None => Self::pack_affine(source, device),
        }
    }

    /// Weights of one shape as a stack, as the experts of a layer: on a GPU they are moved side by
    /// side into one allocation, where kernels find each by its index; a stack's bytes are held twice
    /// at most meanwhile. On the CPU each stays where it is.
    ///
    /// # Errors
    /// On a GPU: weights that differ in shape or format, or are not all there.
    pub fn stack(matrices: Vec<Self>) -> Result<Vec<Self>> {
        let on_device = |matrix: &Self| matches!(matrix.packed, Packed::Device(_));
        if !matrices.iter().any(on_device) {
            return Ok(matrices);
        }
        let (rows, cols) = (matrices[0].rows, matrices[0].cols);
        let mut weights = Vec::with_capacity(matrices.len());
        for matrix in matrices {
            match matrix.packed {
                Packed::Device(weight) if (matrix.rows, matrix.cols) == (rows, cols) => {
                    weights.push(weight);
                }
                _ => {
                    let what = "the weights of a stack differ in shape, or in where they lie";
                    return Err(Error::Format { what: what.to_owned() });
                }
            }
        }
        let stacked = DeviceWeight::stack(weights, rows)?;
        Ok(stacked.into_iter().map(|it| Self { rows, cols, packed: Packed::Device(it) }).collect())
    }

    /// Refuses a weight that was packed for another kind of device than `gpu`, none for the CPU.
    pub(crate) fn check_place(
        &self,
        op: &'static str,
        operand: &'static str,
        gpu: Option<Gpu>,
    ) -> Result<()> {
        let place = |on_gpu| if on_gpu { "packed for a GPU" } else { "packed for the CPU" };
        let on_gpu = self.on_device().is_some();
        crate::access::check(op, operand, on_gpu == gpu.is_some(), || {
            (place(!on_gpu).to_owned(), place(on_gpu).to_owned())
        })
    }

    /// The weight as it lies on a GPU; none on the CPU.
    pub(crate) fn on_device(&self) -> Option<&DeviceWeight> {
        match &self.packed {
            Packed::Device(weight) => Some(weight),
            _ => None,
        }
    }

    /// The first of `matrices` and the stack that just these are, in this order, from
    /// [`stack`](Self::stack) (a matrix that was packed alone is a stack of one).
    ///
    /// # Errors
    /// Matrices that are no stack of a GPU, named as an operand of `op`.
    pub(crate) fn stack_of<'a>(
        op: &'static str,
        operand: &'static str,
        matrices: &'a [Self],
    ) -> Result<(&'a DeviceWeight, &'a Stack)> {
        let stack = DeviceWeight::stack_of(matrices.iter().map(Self::on_device));
        stack.ok_or_else(|| Error::Shape {
            op,
            operand,
            expected: "weights made one by `Matrix::stack` on this device".to_owned(),
            found: format!("{} others", matrices.len()),
        })
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
            Packed::Affine(format, _) => MatrixFormat::Affine(*format),
            Packed::Coded(format, _) => MatrixFormat::Coded(*format),
            Packed::Device(weight) => weight.format,
        }
    }

    /// Bytes it holds.
    pub fn bytes(&self) -> usize {
        let lines = match &self.packed {
            Packed::Dense(panels) => panels.elements.len(),
            Packed::Affine(_, panels) | Packed::Coded(_, panels) => {
                panels.codes.len() + panels.scales.len()
            }
            Packed::Device(weight) => return weight.bytes(self.rows),
        };
        lines * LINE
    }

    /// Bytes that packing a weight of `rows` and `cols` takes on the CPU, without packing it;
    /// [`u64::MAX`] if they overflow.
    pub fn bytes_for(format: MatrixFormat, rows: usize, cols: usize) -> u64 {
        layout::bytes_for(format, rows, cols)
    }

    /// The same for `device`.
    ///
    /// # Errors
    /// A device without an implementation.
    pub fn bytes_on(
        format: MatrixFormat,
        rows: usize,
        cols: usize,
        device: &Device,
    ) -> Result<u64> {
        Ok(match target(device)? {
            Some(_) => device::bytes_for(format, rows, cols),
            None => layout::bytes_for(format, rows, cols),
        })
    }

    /// The weight as groups of integers, which can be multiplied with quantized activations; none
    /// where it is something else.
    pub(crate) fn integers(&self) -> Option<(&GroupPanels, Integers)> {
        match &self.packed {
            Packed::Dense(_) | Packed::Device(_) => None,
            Packed::Affine(format, panels) => Some((panels, (*format).into())),
            Packed::Coded(format, panels) => {
                Integers::of(format.code).map(|integers| (panels, integers))
            }
        }
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
        self.unpack_row(row, out)
    }

    /// As [`dequantize_row`](Self::dequantize_row), for a row and a length that were checked.
    pub(crate) fn unpack_row(&self, row: usize, out: &mut [f32]) -> Result<()> {
        match &self.packed {
            Packed::Dense(panels) => panels.unpack_row(row, out),
            Packed::Affine(format, panels) => {
                let zero = format.zero_point.map_or(0.0, f32::from);
                let value = |code, scale, bias| scale * (f32::from(code) - zero) + bias;
                panels.unpack_row(row, out, value);
            }
            Packed::Coded(format, panels) => {
                let value = |code, scale, _| scale * codes::decode(format.code, code);
                panels.unpack_row(row, out, value);
            }
            Packed::Device(weight) => return weight.unpack_row(row, out),
        }
        Ok(())
    }
}

impl DensePanels {
    fn unpack_row(&self, row: usize, out: &mut [f32]) {
        let lane = row % PANEL;
        let bytes = bytes_of(&self.elements[row / PANEL * self.stride..][..self.stride]);
        for (col, value) in out.iter_mut().enumerate() {
            *value = dense_at(bytes, self.dense_type, col * PANEL + lane);
        }
    }
}

impl GroupPanels {
    /// Writes `value(code, scale, bias)` for every column of a row.
    fn unpack_row(&self, row: usize, out: &mut [f32], value: impl Fn(u8, f32, f32) -> f32) {
        let (panel, lane) = (row / PANEL, row % PANEL);
        let codes = bytes_of(&self.codes[panel * self.stride..][..self.stride]);
        let scales = bytes_of(&self.scales[panel * self.scales_stride..][..self.scales_stride]);
        let GroupLayout { nibbles, group_size, .. } = self.layout;
        for (group, values) in out.chunks_mut(group_size).enumerate() {
            let (scale, bias) = self.scale_and_bias(scales, group, lane);
            for (offset, out) in values.iter_mut().enumerate() {
                let code = code_at(codes, nibbles, group * group_size + offset, lane);
                *out = value(code, scale, bias);
            }
        }
    }

    /// Scale and bias of a lane in a group of a panel whose scales are given; -0 as a bias that is
    /// not stored: adding it changes nothing, not even the sign of a zero.
    fn scale_and_bias(&self, scales: &[u8], group: usize, lane: usize) -> (f32, f32) {
        let number = |index| number_at(scales, self.layout.scales, index);
        let start = group * self.layout.numbers();
        let bias = if self.layout.biased { number(start + PANEL + lane) } else { -0.0 };
        (number(start + lane), bias)
    }
}

/// Element `index` of an array of plain numbers.
pub(super) fn dense_at(bytes: &[u8], dense_type: DenseType, index: usize) -> f32 {
    match dense_type {
        DenseType::F32 => f32::from_le_bytes(element(bytes, index)),
        DenseType::Bf16 => bf16::from_le_bytes(element(bytes, index)).to_f32(),
        DenseType::F16 => f16::from_le_bytes(element(bytes, index)).to_f32(),
    }
}

/// Number `index` of an array of scales and biases.
pub(super) fn number_at(bytes: &[u8], scales: ScaleType, index: usize) -> f32 {
    match scales {
        ScaleType::F32 => f32::from_le_bytes(element(bytes, index)),
        ScaleType::F16 => f16::from_le_bytes(element(bytes, index)).to_f32(),
        ScaleType::Bf16 => bf16::from_le_bytes(element(bytes, index)).to_f32(),
        ScaleType::E8m0 => e8m0_to_f32(bytes[index]),
    }
}

/// The power of two with a biased exponent of 8 bits; 255 is NaN.
fn e8m0_to_f32(exponent: u8) -> f32 {
    match exponent {
        0 => f32::MIN_POSITIVE / 2.0,
        255 => f32::NAN,
        exponent => f32::from_bits(u32::from(exponent) << 23),
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

/// The GPU that weights for a device are packed for; none for the CPU.
fn target(device: &Device) -> Result<Option<Gpu>> {
    match (Gpu::of_device(device), device.location()) {
        (None, DeviceLocation::Cpu) => Ok(None),
        (Some(gpu), _) => Ok(Some(gpu)),
        (None, device) => Err(Error::Unsupported { op: "matmul", device }),
    }
}
