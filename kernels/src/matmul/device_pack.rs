//! From rows to the rows of a GPU, on all cores, and from there to the device. The host holds the
//! whole weight meanwhile.

use std::ops::Range;

use candle_core::Device;

use super::device::{DeviceWeight, OCTET, RowLayout, nibble_of, octet_place};
use super::format::{AffineRows, CodedRows, DenseRows, MatrixFormat};
use super::layout::GroupLayout;
use super::pack::{break_groups, check_bits, check_groups, overflow, put_dense, put_number};
use crate::error::Result;
use crate::pool::{Parts, Pool};

/// Rows that a task packs.
const TASK_ROWS: usize = 16;

/// Packs dense rows.
pub(super) fn dense(source: &dyn DenseRows, device: &Device) -> Result<DeviceWeight> {
    let dense_type = source.format();
    let format = MatrixFormat::Dense(dense_type);
    pack(format, [source.rows(), source.cols()], device, |rows, put| {
        let mut values = vec![0.0; source.cols()];
        for row in rows {
            source.read_row(row, &mut values);
            let codes = put(row).0;
            for (col, value) in values.iter().enumerate() {
                put_dense(codes, dense_type, col, *value);
            }
        }
    })
}

/// Packs affine rows.
pub(super) fn affine(source: &dyn AffineRows, device: &Device) -> Result<DeviceWeight> {
    let (cols, format) = (source.cols(), source.format());
    let mask = check_bits(format.bits)?;
    let layout = GroupLayout::from(format);
    check_groups(layout.group_size, cols)?;
    let groups = cols / layout.group_size;
    pack(MatrixFormat::Affine(format), [source.rows(), cols], device, |rows, put| {
        let (mut row_codes, mut scales) = (vec![0; cols], vec![0.0; groups]);
        let mut biases = vec![0.0; if layout.biased { groups } else { 0 }];
        for row in rows {
            source.read_row(row, &mut row_codes, &mut scales, &mut biases);
            let (codes, numbers) = put(row);
            place_codes(codes, &row_codes, layout.nibbles, mask);
            place_numbers(numbers, &scales, &biases, layout);
        }
    })
}

/// Packs coded rows.
pub(super) fn coded(source: &dyn CodedRows, device: &Device) -> Result<DeviceWeight> {
    let (cols, format) = (source.cols(), source.format());
    let layout = GroupLayout::from(format);
    check_groups(layout.group_size, cols)?;
    let mask = if layout.nibbles { 0xf } else { 0xff };
    pack(MatrixFormat::Coded(format), [source.rows(), cols], device, |rows, put| {
        let (mut row_codes, mut scales) = (vec![0; cols], vec![0.0; cols / layout.group_size]);
        for row in rows {
            source.read_row(row, &mut row_codes, &mut scales);
            break_groups(format, &row_codes, &mut scales);
            let (codes, numbers) = put(row);
            place_codes(codes, &row_codes, layout.nibbles, mask);
            place_numbers(numbers, &scales, &[], layout);
        }
    })
}

/// Gives the bytes of a row's codes and of its scales, zeros, to be written.
type Put<'a> = &'a mut dyn FnMut(usize) -> (&'a mut [u8], &'a mut [u8]);

/// Packs rows: `pack_rows` reads some and writes what it gets for each.
fn pack(
    format: MatrixFormat,
    [rows, cols]: [usize; 2],
    device: &Device,
    pack_rows: impl for<'a> Fn(Range<usize>, Put<'a>) + Sync,
) -> Result<DeviceWeight> {
    let layout = RowLayout::of(format, cols).ok_or_else(|| overflow(rows, cols))?;
    let words = layout.words(rows).ok_or_else(|| overflow(rows, cols))?;
    let [mut codes, mut scales] = words.map(|words| vec![0_u32; words]);
    {
        let (codes, scales) = (Parts::new(bytes_of(&mut codes)), Parts::new(bytes_of(&mut scales)));
        Pool::current(|pool| {
            pool.run(rows.div_ceil(TASK_ROWS), |task| {
                let first = task * TASK_ROWS;
                let rows = first..rows.min(first + TASK_ROWS);
                pack_rows(rows, &mut |row| {
                    let (row_len, scale_len) = (4 * layout.row_words, 4 * layout.scale_words);
                    // SAFETY: each row comes once, and rows do not overlap.
                    let codes = unsafe { codes.part(row * row_len, row_len) };
                    // SAFETY: as above.
                    (codes, unsafe { scales.part(row * scale_len, scale_len) })
                });
            });
        });
    }
    DeviceWeight::new(format, layout, [codes, scales], device)
}

/// The bytes of words: GPUs and the hosts that they are in are little-endian.
fn bytes_of(words: &mut [u32]) -> &mut [u8] {
    // SAFETY: any byte of a word may be written, and no byte needs an alignment; the length covers
    // the same memory, and the borrow is exclusive.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), size_of_val(words)) }
}

/// Places the codes of a row; a code beyond its bits is cut, lest it spill into its neighbour.
fn place_codes(row: &mut [u8], codes: &[u8], nibbles: bool, mask: u8) {
    for (octet, codes) in codes.chunks_exact(OCTET).enumerate() {
        let place = octet_place(octet, if nibbles { 4 } else { 2 });
        for (col, code) in codes.iter().enumerate() {
            if nibbles {
                let nibble = nibble_of(col);
                row[4 * place + nibble / 2] |= (code & mask) << (nibble % 2 * 4);
            } else {
                row[8 * place + col] = code & mask;
            }
        }
    }
}

/// Places the scales of a row's groups, each with its bias behind it if there are biases.
fn place_numbers(row: &mut [u8], scales: &[f32], biases: &[f32], layout: GroupLayout) {
    let step = if layout.biased { 2 } else { 1 };
    for (group, scale) in scales.iter().enumerate() {
        put_number(row, layout.scales, group * step, *scale);
    }
    for (group, bias) in biases.iter().enumerate() {
        put_number(row, layout.scales, group * step + 1, *bias);
    }
}
