//! From rows to panels, a panel at a time on all cores. A task holds the rows of one panel, so
//! memory beyond the result is bounded by `threads * 16 * cols`.

use std::ops::Range;

use half::{bf16, f16};

use super::format::{AffineRows, CodedFormat, CodedRows, DenseRows, DenseType, ScaleType};
use super::layout::{GroupLayout, dense_stride};
use super::matrix::{DensePanels, GroupPanels, LINE, Line, Lines, PANEL, bytes_of_mut};
use crate::error::{Error, Result};
use crate::memory::gather_huge_pages;
use crate::pool::{Parts, Pool};

/// Packs dense rows.
pub(super) fn dense(source: &dyn DenseRows) -> Result<DensePanels> {
    let (rows, cols, dense_type) = (source.rows(), source.cols(), source.format());
    let stride = dense_stride(dense_type, cols).ok_or_else(|| overflow(rows, cols))?;
    let mut elements = lines(rows, stride).ok_or_else(|| overflow(rows, cols))?;
    Pool::current(|pool| {
        pool.run_chunks(&mut elements, stride, |panel, target| {
            let target = bytes_of_mut(target);
            let mut values = vec![0.0; cols];
            for lane in 0..PANEL.min(rows - panel * PANEL) {
                source.read_row(panel * PANEL + lane, &mut values);
                for (col, value) in values.iter().enumerate() {
                    put_dense(target, dense_type, col * PANEL + lane, *value);
                }
            }
        });
    });
    gather_huge_pages(&elements);
    Ok(DensePanels { dense_type, elements, stride })
}

/// Packs affine rows.
pub(super) fn affine(source: &dyn AffineRows) -> Result<GroupPanels> {
    let (cols, format) = (source.cols(), source.format());
    let mask = check_bits(format.bits)?;
    let layout = GroupLayout::from(format);
    groups(layout, source.rows(), cols, |rows, codes, scales| {
        let groups = cols / layout.group_size;
        let mut row_codes = vec![0; cols];
        let mut row_scales = vec![0.0; groups];
        let mut row_biases = vec![0.0; if layout.biased { groups } else { 0 }];
        for (lane, row) in rows.enumerate() {
            source.read_row(row, &mut row_codes, &mut row_scales, &mut row_biases);
            place_codes(codes, &row_codes, lane, layout.nibbles, mask);
            place_scales(scales, &row_scales, lane, layout);
            if layout.biased {
                place_scales(scales, &row_biases, PANEL + lane, layout);
            }
        }
    })
}

/// Packs coded rows.
pub(super) fn coded(source: &dyn CodedRows) -> Result<GroupPanels> {
    let (cols, format) = (source.cols(), source.format());
    let layout = GroupLayout::from(format);
    let mask = if layout.nibbles { 0xf } else { 0xff };
    groups(layout, source.rows(), cols, |rows, codes, scales| {
        let mut row_codes = vec![0; cols];
        let mut row_scales = vec![0.0; cols / layout.group_size];
        for (lane, row) in rows.enumerate() {
            source.read_row(row, &mut row_codes, &mut row_scales);
            break_groups(format, &row_codes, &mut row_scales);
            place_codes(codes, &row_codes, lane, layout.nibbles, mask);
            place_scales(scales, &row_scales, lane, layout);
        }
    })
}

/// Packs panels in groups: `pack_panel` reads a panel's rows into its codes and scales.
fn groups(
    layout: GroupLayout,
    rows: usize,
    cols: usize,
    pack_panel: impl Fn(Range<usize>, &mut [u8], &mut [u8]) + Sync,
) -> Result<GroupPanels> {
    check_groups(layout.group_size, cols)?;
    let (stride, scales_stride) = layout.strides(cols).ok_or_else(|| overflow(rows, cols))?;
    let mut codes = lines(rows, stride).ok_or_else(|| overflow(rows, cols))?;
    let mut scales = lines(rows, scales_stride).ok_or_else(|| overflow(rows, cols))?;
    if cols > 0 {
        let (codes, scales) = (Parts::new(&mut codes), Parts::new(&mut scales));
        Pool::current(|pool| {
            pool.run(rows.div_ceil(PANEL), |panel| {
                // SAFETY: each panel comes once, and panels do not overlap.
                let codes = unsafe { codes.part(panel * stride, stride) };
                // SAFETY: as above.
                let scales = unsafe { scales.part(panel * scales_stride, scales_stride) };
                let rows = panel * PANEL..rows.min((panel + 1) * PANEL);
                pack_panel(rows, bytes_of_mut(codes), bytes_of_mut(scales));
            });
        });
    }
    gather_huge_pages(&codes);
    gather_huge_pages(&scales);
    Ok(GroupPanels { layout, codes, stride, scales, scales_stride })
}

/// Places the codes of one row; a code beyond its bits is cut, lest it spill into its neighbour.
fn place_codes(panel: &mut [u8], codes: &[u8], lane: usize, nibbles: bool, mask: u8) {
    if nibbles {
        for (block, codes) in panel.chunks_exact_mut(LINE).zip(codes.chunks_exact(8)) {
            for j in 0..4 {
                block[4 * lane + j] = (codes[j] & mask) | (codes[4 + j] & mask) << 4;
            }
        }
    } else {
        for (block, codes) in panel.chunks_exact_mut(LINE).zip(codes.chunks_exact(4)) {
            for j in 0..4 {
                block[4 * lane + j] = codes[j] & mask;
            }
        }
    }
}

/// Places the scales of one row's groups, or its biases, `offset` numbers after the group's first.
fn place_scales(panel: &mut [u8], numbers: &[f32], offset: usize, layout: GroupLayout) {
    for (group, number) in numbers.iter().enumerate() {
        put_number(panel, layout.scales, group * layout.numbers() + offset, *number);
    }
}

/// Writes number `index` of an array of scales and biases.
pub(super) fn put_number(bytes: &mut [u8], scales: ScaleType, index: usize, number: f32) {
    match scales {
        ScaleType::F32 => bytes[index * 4..][..4].copy_from_slice(&number.to_le_bytes()),
        ScaleType::F16 => {
            bytes[index * 2..][..2].copy_from_slice(&f16::from_f32(number).to_le_bytes());
        }
        ScaleType::Bf16 => {
            bytes[index * 2..][..2].copy_from_slice(&bf16::from_f32(number).to_le_bytes());
        }
        // The exponent; that of an infinity or a NaN is 255, which is NaN.
        ScaleType::E8m0 => bytes[index] = (number.to_bits() >> 23) as u8,
    }
}

/// Writes element `index` of an array of plain numbers.
pub(super) fn put_dense(bytes: &mut [u8], dense_type: DenseType, index: usize, value: f32) {
    let width = dense_type.width();
    let bytes = &mut bytes[index * width..][..width];
    match dense_type {
        DenseType::F32 => bytes.copy_from_slice(&value.to_le_bytes()),
        DenseType::Bf16 => bytes.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
        DenseType::F16 => bytes.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
    }
}

/// Makes the scale of each group with a code that is not a number NaN, so that the kernels need not
/// look for such codes.
pub(super) fn break_groups(format: CodedFormat, codes: &[u8], scales: &mut [f32]) {
    for (codes, scale) in codes.chunks(format.group_size).zip(scales) {
        if codes.iter().any(|code| format.code.is_nan(*code)) {
            *scale = f32::NAN;
        }
    }
}

/// The mask of codes of so many bits.
pub(super) fn check_bits(bits: u8) -> Result<u8> {
    if (1..=8).contains(&bits) {
        return Ok((u16::MAX >> (16 - bits)) as u8);
    }
    let what = format!("codes must have 1 to 8 bits, found {bits}");
    Err(Error::Format { what })
}

pub(super) fn check_groups(group_size: usize, cols: usize) -> Result<()> {
    let what = if ![16, 32, 64, 128].contains(&group_size) {
        format!("the group size must be 16, 32, 64 or 128, found {group_size}")
    } else if !cols.is_multiple_of(group_size) {
        format!("the number of columns must be a multiple of {group_size}, found {cols}")
    } else {
        return Ok(());
    };
    Err(Error::Format { what })
}

/// Zeroed lines for the panels of `rows`, `stride` for each; none if they overflow.
fn lines(rows: usize, stride: usize) -> Option<Lines> {
    let count = rows.div_ceil(PANEL).checked_mul(stride)?;
    isize::try_from(count.checked_mul(LINE)?).ok()?;
    Some(vec![Line([0; LINE]); count])
}

pub(super) fn overflow(rows: usize, cols: usize) -> Error {
    Error::Format { what: format!("the size overflows: [{rows}, {cols}]") }
}
