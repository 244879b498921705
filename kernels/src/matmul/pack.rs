//! From rows to panels, a panel at a time on all cores. A task holds the rows of one panel, so
//! memory beyond the result is bounded by `threads * 16 * cols`.

use half::{bf16, f16};

use super::format::{AffineFormat, AffineRows, DenseRows, DenseType, ScaleType};
use super::matrix::{AffinePanels, DensePanels, LINE, Line, Lines, PANEL, bytes_of_mut};
use crate::error::{Error, Result};
use crate::pool::{Parts, Pool};

/// Packs dense rows.
pub(super) fn dense(source: &dyn DenseRows) -> Result<DensePanels> {
    let (rows, cols, dense_type) = (source.rows(), source.cols(), source.format());
    let width = match dense_type {
        DenseType::F32 => 4,
        DenseType::Bf16 | DenseType::F16 => 2,
    };
    let stride = product(&[cols, PANEL, width])?.div_ceil(LINE);
    let mut elements = lines(&[rows.div_ceil(PANEL), stride])?;
    Pool::current(|pool| {
        pool.run_chunks(&mut elements, stride, |panel, target| {
            let target = bytes_of_mut(target);
            let mut values = vec![0.0; cols];
            for lane in 0..PANEL.min(rows - panel * PANEL) {
                source.read_row(panel * PANEL + lane, &mut values);
                for (col, value) in values.iter().enumerate() {
                    let start = (col * PANEL + lane) * width;
                    let bytes = &mut target[start..start + width];
                    match dense_type {
                        DenseType::F32 => bytes.copy_from_slice(&value.to_le_bytes()),
                        DenseType::Bf16 => {
                            bytes.copy_from_slice(&bf16::from_f32(*value).to_le_bytes());
                        }
                        DenseType::F16 => {
                            bytes.copy_from_slice(&f16::from_f32(*value).to_le_bytes());
                        }
                    }
                }
            }
        });
    });
    Ok(DensePanels { dense_type, elements, stride })
}

/// Packs affine rows.
pub(super) fn affine(source: &dyn AffineRows) -> Result<AffinePanels> {
    let (rows, cols, format) = (source.rows(), source.cols(), source.format());
    check_format(&format, cols)?;
    let panels = rows.div_ceil(PANEL);
    let stride = if format.bits <= 4 { cols / 8 } else { cols / 4 };
    let numbers = if format.zero_point.is_some() { PANEL } else { 2 * PANEL };
    let width = match format.scales {
        ScaleType::F32 => 4,
        ScaleType::F16 => 2,
    };
    let scales_stride = product(&[cols / format.group_size, numbers, width])?.div_ceil(LINE);
    let mut codes = lines(&[panels, stride])?;
    let mut scales = lines(&[panels, scales_stride])?;
    if cols > 0 {
        let (codes, scales) = (Parts::new(&mut codes), Parts::new(&mut scales));
        Pool::current(|pool| {
            pool.run(panels, |panel| {
                // SAFETY: each panel comes once, and panels do not overlap.
                let codes = unsafe { codes.part(panel * stride, stride) };
                // SAFETY: as above.
                let scales = unsafe { scales.part(panel * scales_stride, scales_stride) };
                affine_panel(source, panel, bytes_of_mut(codes), bytes_of_mut(scales));
            });
        });
    }
    Ok(AffinePanels { format, codes, stride, scales, scales_stride })
}

/// Packs the rows of one panel.
fn affine_panel(source: &dyn AffineRows, panel: usize, codes: &mut [u8], scales: &mut [u8]) {
    let (cols, format) = (source.cols(), source.format());
    let groups = cols / format.group_size;
    let biased = format.zero_point.is_none();
    let mut row_codes = vec![0; cols];
    let mut row_scales = vec![0.0; groups];
    let mut row_biases = vec![0.0; if biased { groups } else { 0 }];
    for lane in 0..PANEL.min(source.rows() - panel * PANEL) {
        source.read_row(panel * PANEL + lane, &mut row_codes, &mut row_scales, &mut row_biases);
        place_codes(codes, &row_codes, lane, format.bits);
        for (group, scale) in row_scales.iter().enumerate() {
            let start = group * if biased { 2 * PANEL } else { PANEL };
            place_number(scales, start + lane, *scale, format.scales);
            if biased {
                place_number(scales, start + PANEL + lane, row_biases[group], format.scales);
            }
        }
    }
}

/// Places the codes of one row; a code beyond its bits is cut, lest it spill into its neighbour.
fn place_codes(panel: &mut [u8], codes: &[u8], lane: usize, bits: u8) {
    let mask = (u16::MAX >> (16 - bits)) as u8;
    if bits <= 4 {
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

fn place_number(scales: &mut [u8], index: usize, number: f32, scale_type: ScaleType) {
    match scale_type {
        ScaleType::F32 => scales[index * 4..][..4].copy_from_slice(&number.to_le_bytes()),
        ScaleType::F16 => {
            scales[index * 2..][..2].copy_from_slice(&f16::from_f32(number).to_le_bytes());
        }
    }
}

fn check_format(format: &AffineFormat, cols: usize) -> Result<()> {
    let AffineFormat { bits, group_size, .. } = *format;
    let what = if !(1..=8).contains(&bits) {
        format!("codes must have 1 to 8 bits, found {bits}")
    } else if ![16, 32, 64, 128].contains(&group_size) {
        format!("the group size must be 16, 32, 64 or 128, found {group_size}")
    } else if !cols.is_multiple_of(group_size) {
        format!("the number of columns must be a multiple of {group_size}, found {cols}")
    } else {
        return Ok(());
    };
    Err(Error::Format { what })
}

/// Zeroed lines, as many as the product of `factors`.
fn lines(factors: &[usize]) -> Result<Lines> {
    let count = product(factors)?;
    product(&[count, LINE])?;
    Ok(vec![Line([0; LINE]); count])
}

fn product(factors: &[usize]) -> Result<usize> {
    factors
        .iter()
        .try_fold(1_usize, |product, factor| product.checked_mul(*factor))
        .filter(|bytes| isize::try_from(*bytes).is_ok())
        .ok_or_else(|| Error::Format { what: format!("the size overflows: {factors:?}") })
}
