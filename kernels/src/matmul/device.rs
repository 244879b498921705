//! A weight as it lies on a GPU: rows of words, one after another, and the scales of their groups
//! beside them; several weights of one shape may lie in one stack. What the kernels make of it is
//! `weights.cuh` and `gpu/weights.metal`; how it gets there is `device_pack.rs`.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::codes;
use super::format::{DenseType, MatrixFormat};
use super::layout::GroupLayout;
use super::matrix::{dense_at, number_at};
use crate::error::{Error, Result};

/// Bytes that rows are filled up to with zeros: four lanes load 16 of them each.
pub(crate) const CHUNK: usize = 64;
/// Columns of four octets.
const WINDOW: usize = 32;
/// Columns whose codes a lane decodes together.
pub(crate) const OCTET: usize = 8;

/// Where the numbers of a row lie.
///
/// Rows of codes are chunks of 64 bytes, and these are octets: the codes of 8 consecutive columns, a
/// word of nibbles or two words of bytes. A chunk has its octets in the order of a 4 x `n` matrix
/// that was transposed: octet `j` of the 16 bytes of lane `q` has the columns from `32 j + 8 q` of
/// the chunk on. So four lanes that load 16 bytes each hold 32 consecutive columns at each `j`, which
/// is what a tensor core multiplies and what shares a scale. Nibble `i` of a word is the code of
/// column `[0, 2, 4, 6, 1, 3, 5, 7][i]`: `word >> 4 * i & 0x000f000f` are the codes of columns `2 i`
/// and `2 i + 1` in halves of 16 bits. Bytes and plain numbers are in the order of their columns.
///
/// Rows of plain numbers are filled up to whole windows of 32 columns.
///
/// Rows of scales have one number for each group, or a scale and a bias, filled up to words. A plain
/// weight has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowLayout {
    /// Words of a row of codes, or of plain numbers: a multiple of 16.
    pub(crate) row_words: usize,
    /// Words of a row of scales.
    pub(crate) scale_words: usize,
}

impl RowLayout {
    /// The layout of a row of `cols` columns; none if it overflows.
    pub(crate) fn of(format: MatrixFormat, cols: usize) -> Option<Self> {
        let whole = |bytes: usize| Some(bytes.checked_next_multiple_of(CHUNK)? / 4);
        let layout = match format {
            MatrixFormat::Dense(dense_type) => {
                let cols = cols.checked_next_multiple_of(WINDOW)?;
                let row_words = whole(cols.checked_mul(dense_type.width())?)?;
                return Some(Self { row_words, scale_words: 0 });
            }
            MatrixFormat::Affine(format) => GroupLayout::from(format),
            MatrixFormat::Coded(format) => GroupLayout::from(format),
        };
        let numbers = cols.checked_div(layout.group_size)? * if layout.biased { 2 } else { 1 };
        let scale_words = numbers.checked_mul(layout.scales.width())?.div_ceil(4);
        let row_words = whole(if layout.nibbles { cols / 2 } else { cols })?;
        Some(Self { row_words, scale_words })
    }

    /// Words of `rows` rows and of their scales; none if they overflow.
    pub(super) fn words(self, rows: usize) -> Option<[usize; 2]> {
        let words = [self.row_words.checked_mul(rows)?, self.scale_words.checked_mul(rows)?];
        isize::try_from(words[0].checked_add(words[1])?.checked_mul(4)?).ok()?;
        Some(words)
    }
}

/// Bytes of a weight on a GPU, [`u64::MAX`] if they overflow.
pub(super) fn bytes_for(format: MatrixFormat, rows: usize, cols: usize) -> u64 {
    let words = RowLayout::of(format, cols).and_then(|layout| layout.words(rows));
    words.map_or(u64::MAX, |[codes, scales]| 4 * (codes + scales) as u64)
}

/// Where column `8 * octet` of a row lies: its octet's place in the order of the row's bytes.
/// `lane_octets` are those of 16 bytes: 4 of nibbles, 2 of bytes.
pub(super) fn octet_place(octet: usize, lane_octets: usize) -> usize {
    let (chunk, inside) = (octet / (4 * lane_octets), octet % (4 * lane_octets));
    let (window, lane) = (inside / 4, inside % 4);
    chunk * 4 * lane_octets + lane * lane_octets + window
}

/// A weight on a GPU, alone or in a stack.
#[derive(Debug)]
pub(crate) struct DeviceWeight {
    pub(crate) format: MatrixFormat,
    pub(crate) layout: RowLayout,
    /// Its rows, `[rows * row_words]`: a view of the stack's. One word where there are none.
    pub(crate) codes: Tensor,
    /// Its rows of scales, `[rows * scale_words]`; one word where there are none.
    pub(crate) scales: Tensor,
    /// What it is a part of.
    stack: Arc<Stack>,
    /// Which part.
    index: usize,
}

/// Weights of one shape and format that follow each other, as the experts of a layer: weight `i`
/// begins `i * rows * row_words` words after the first, its scales `i * rows * scale_words`.
#[derive(Debug)]
pub(crate) struct Stack {
    /// `[count * rows * row_words]` u32.
    pub(crate) codes: Tensor,
    /// `[count * rows * scale_words]` u32.
    pub(crate) scales: Tensor,
    count: usize,
}

impl DeviceWeight {
    /// Takes rows to a device.
    pub(super) fn new(
        format: MatrixFormat,
        layout: RowLayout,
        [codes, scales]: [Vec<u32>; 2],
        device: &Device,
    ) -> Result<Self> {
        let tensor = |mut words: Vec<u32>| {
            // Not every device can allocate nothing.
            words.resize(words.len().max(1), 0);
            Tensor::from_slice(&words, words.len(), device)
        };
        Ok(Self::alone(format, layout, [tensor(codes)?, tensor(scales)?]))
    }

    /// A stack of one, of rows and scales that are on a device.
    pub(super) fn alone(
        format: MatrixFormat,
        layout: RowLayout,
        [codes, scales]: [Tensor; 2],
    ) -> Self {
        let stack = Stack { codes: codes.clone(), scales: scales.clone(), count: 1 };
        Self { format, layout, codes, scales, stack: Arc::new(stack), index: 0 }
    }

    /// Bytes of its rows and scales.
    pub(super) fn bytes(&self, rows: usize) -> usize {
        4 * rows * (self.layout.row_words + self.layout.scale_words)
    }

    /// The stack whose weights are just `weights`, in this order; none if there is no such stack.
    pub(crate) fn stack_of<'a>(
        weights: impl ExactSizeIterator<Item = Option<&'a Self>>,
    ) -> Option<(&'a Self, &'a Stack)> {
        let count = weights.len();
        let mut first = None;
        for (index, weight) in weights.enumerate() {
            let weight = weight?;
            let (_, stack) = *first.get_or_insert((weight, &weight.stack));
            if weight.index != index || !Arc::ptr_eq(stack, &weight.stack) {
                return None;
            }
        }
        first.filter(|(_, stack)| stack.count == count).map(|(weight, stack)| (weight, &**stack))
    }

    /// Moves weights of one shape into one stack; `rows` are those of each.
    pub(super) fn stack(weights: Vec<Self>, rows: usize) -> Result<Vec<Self>> {
        let count = weights.len();
        let Some(first) = weights.first() else { return Ok(weights) };
        let (format, layout, device) = (first.format, first.layout, first.codes.device().clone());
        if weights.iter().any(|weight| weight.format != format || weight.layout != layout) {
            let what = "the weights of a stack differ in format".to_owned();
            return Err(Error::Format { what });
        }
        let words = layout.words(rows).and_then(|words| {
            layout.words(rows.checked_mul(count)?)?;
            Some(words)
        });
        let what = || format!("the size overflows: {count} weights of {rows} rows");
        let lens = words.ok_or_else(|| Error::Format { what: what() })?;
        let [codes, scales] =
            lens.map(|len| Tensor::zeros((count * len).max(1), DType::U32, &device));
        let stack = Arc::new(Stack { codes: codes?, scales: scales?, count });
        let part = |all: &Tensor, index: usize, len: usize| match len {
            0 => all.narrow(0, 0, 1),
            len => all.narrow(0, index * len, len),
        };
        let mut parts = Vec::with_capacity(count);
        // Each weight is dropped when it has been copied.
        for (index, weight) in weights.into_iter().enumerate() {
            for (all, one, len) in
                [(&stack.codes, &weight.codes, lens[0]), (&stack.scales, &weight.scales, lens[1])]
            {
                if len > 0 {
                    all.slice_set(one, 0, index * len)?;
                }
            }
            parts.push(Self {
                codes: part(&stack.codes, index, lens[0])?,
                scales: part(&stack.scales, index, lens[1])?,
                stack: Arc::clone(&stack),
                index,
                ..weight
            });
        }
        Ok(parts)
    }

    /// Writes the values of row `row` into `out`: a copy to the host, and slow.
    pub(super) fn unpack_row(&self, row: usize, out: &mut [f32]) -> Result<()> {
        let bytes = |words: &Tensor, len: usize| -> Result<Vec<u8>> {
            if len == 0 {
                return Ok(Vec::new());
            }
            let words: Vec<u32> = words.narrow(0, row * len, len)?.to_vec1()?;
            Ok(words.into_iter().flat_map(u32::to_le_bytes).collect())
        };
        let codes = bytes(&self.codes, self.layout.row_words)?;
        let scales = bytes(&self.scales, self.layout.scale_words)?;
        match self.format {
            MatrixFormat::Dense(dense_type) => unpack_dense(&codes, dense_type, out),
            MatrixFormat::Affine(format) => {
                let zero = format.zero_point.map_or(0.0, f32::from);
                let value = |code, scale, bias| scale * (f32::from(code) - zero) + bias;
                unpack_groups(&codes, &scales, format.into(), out, value);
            }
            MatrixFormat::Coded(format) => {
                let value = |code, scale, _| scale * codes::decode(format.code, code);
                unpack_groups(&codes, &scales, format.into(), out, value);
            }
        }
        Ok(())
    }
}

fn unpack_dense(bytes: &[u8], dense_type: DenseType, out: &mut [f32]) {
    for (col, value) in out.iter_mut().enumerate() {
        *value = dense_at(bytes, dense_type, col);
    }
}

/// Writes `value(code, scale, bias)` for every column of a row; -0 as a bias that is not stored.
fn unpack_groups(
    codes: &[u8],
    scales: &[u8],
    layout: GroupLayout,
    out: &mut [f32],
    value: impl Fn(u8, f32, f32) -> f32,
) {
    let numbers = if layout.biased { 2 } else { 1 };
    for (col, out) in out.iter_mut().enumerate() {
        let group = col / layout.group_size * numbers;
        let scale = number_at(scales, layout.scales, group);
        let bias = if layout.biased { number_at(scales, layout.scales, group + 1) } else { -0.0 };
        *out = value(code_at(codes, layout.nibbles, col), scale, bias);
    }
}

/// The code of a column of a row.
fn code_at(codes: &[u8], nibbles: bool, col: usize) -> u8 {
    let place = octet_place(col / OCTET, if nibbles { 4 } else { 2 });
    if nibbles {
        let nibble = nibble_of(col % OCTET);
        codes[4 * place + nibble / 2] >> (nibble % 2 * 4) & 0xf
    } else {
        codes[8 * place + col % OCTET]
    }
}

/// The nibble of a word that has the code of a column of its octet.
pub(super) fn nibble_of(col: usize) -> usize {
    col / 2 + col % 2 * 4
}
