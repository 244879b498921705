//! Products of warpgroups, against what the PTX ISA says of descriptors, swizzles and fragments, by
//! tables written down here; and what a kernel can do wrong with them.

#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use sconce_gpu_emulator::{Error, Language};

use support::{failure, run};

const ROWS: usize = 64;
const COLUMNS: usize = 32;
const INPUTS: usize = 16;

/// Where the 16 bytes of a row of 128 that are number `[row % 8][i]` lie, in 128-byte swizzle: the
/// figure of the PTX ISA's section on swizzling modes, as numbers.
const PLACES_128: [[usize; 8]; 8] = [
    [0, 1, 2, 3, 4, 5, 6, 7],
    [1, 0, 3, 2, 5, 4, 7, 6],
    [2, 3, 0, 1, 6, 7, 4, 5],
    [3, 2, 1, 0, 7, 6, 5, 4],
    [4, 5, 6, 7, 0, 1, 2, 3],
    [5, 4, 7, 6, 1, 0, 3, 2],
    [6, 7, 4, 5, 2, 3, 0, 1],
    [7, 6, 5, 4, 3, 2, 1, 0],
];
/// Of rows of 64 bytes, two of which lie in 128.
const PLACES_64: [[usize; 4]; 8] = [
    [0, 1, 2, 3],
    [0, 1, 2, 3],
    [1, 0, 3, 2],
    [1, 0, 3, 2],
    [2, 3, 0, 1],
    [2, 3, 0, 1],
    [3, 2, 1, 0],
    [3, 2, 1, 0],
];
/// Of rows of 32 bytes, four of which lie in 128.
const PLACES_32: [[usize; 2]; 8] = [[0, 1], [0, 1], [0, 1], [0, 1], [1, 0], [1, 0], [1, 0], [1, 0]];

/// How the second operand lies in shared memory, and the fields of a descriptor that says so.
#[derive(Debug, Clone, Copy)]
struct Layout {
    swizzle: u32,
    start: u32,
    leading: u32,
    stride: u32,
}

/// The byte where eight columns of a row begin; `eight` is 0 or 1, columns before the matrix's own are
/// those that `start` leaves out.
fn place(layout: Layout, row: usize, eight: usize) -> usize {
    let (atom, within) = (row / 8, row % 8);
    let eight = eight + layout.start as usize / 16;
    let line = match layout.swizzle {
        0 => return atom * layout.stride as usize + eight * layout.leading as usize + within * 16,
        1 => within * 8 + PLACES_128[within][eight],
        2 => within * 4 + PLACES_64[within][eight],
        _ => within * 2 + PLACES_32[within][eight],
    };
    atom * layout.stride as usize + line * 16
}

/// Small integers, which bf16 and sums of their products hold exactly.
fn number(index: usize) -> f32 {
    (index * 37 % 61) as f32 - 30.0
}

fn bf16(value: f32) -> u16 {
    (value.to_bits() >> 16) as u16
}

fn first(row: usize, k: usize) -> f32 {
    number(row * INPUTS + k)
}

fn second(column: usize, k: usize) -> f32 {
    number(1000 + column * INPUTS + k)
}

/// Registers of each thread of a warpgroup: the figure of `wgmma.mma_async.m64nNk16`, operand A.
fn registers() -> Vec<u32> {
    let mut words = Vec::new();
    for thread in 0..128 {
        let (row, column) = (thread / 32 * 16 + thread % 32 / 4, thread % 4 * 2);
        for (down, right) in [(0, 0), (8, 0), (0, 8), (8, 8)] {
            let [low, high] =
                [0, 1].map(|next| u32::from(bf16(first(row + down, column + right + next))));
            words.push(high << 16 | low);
        }
    }
    words
}

/// What lies beside the operand: no number, and another one than memory has that nobody wrote, which
/// the emulator would refuse to read.
const NO_NUMBER: u16 = 0xfffe;

/// Bytes of shared memory that the operand takes, and what lies beside it.
fn image(layout: Layout) -> Vec<u32> {
    let mut bytes = NO_NUMBER.to_le_bytes().repeat(8192 / 2);
    for column in 0..COLUMNS {
        for k in 0..INPUTS {
            let at = place(layout, column, k / 8) + k % 8 * 2;
            bytes[at..at + 2].copy_from_slice(&bf16(second(column, k)).to_le_bytes());
        }
    }
    bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

/// What a launch leaves in the accumulators, or says.
fn product(layout: Layout, mistake: u32) -> Result<Vec<f32>, Error> {
    described(layout, layout, mistake)
}

/// Runs the fixture on a matrix that lies as one layout says and is described as another.
fn described(lies: Layout, layout: Layout, mistake: u32) -> Result<Vec<f32>, Error> {
    let (a, image) = (registers(), image(lies));
    // Loaded 16 bytes at a time.
    let mut lines = vec![[0_u32; 4]; image.len() / 4 + 1];
    let misplaced = lines.as_ptr().addr() % 16 / 4;
    let words = lines.as_flattened_mut();
    let first = (4 - misplaced) % 4;
    words[first..first + image.len()].copy_from_slice(&image);
    let inputs = [a.as_ptr().cast(), words[first..].as_ptr().cast()];
    let Layout { swizzle, start, leading, stride } = layout;
    let numbers = [image.len() as u32 / 4, start, leading, stride, swizzle, mistake];
    let mut out = vec![0.0_f32; 128 * 16];
    let grid = (1, 128, 8192 + 1024);
    run(Language::Cuda, "fixture_wgmma", grid, &mut out, &inputs, &numbers)?;
    Ok(out)
}

const LAYOUTS: [Layout; 8] = [
    // Core matrices one after another: along the inputs first, then along the columns, then reversed.
    Layout { swizzle: 0, start: 0, leading: 128, stride: 256 },
    Layout { swizzle: 0, start: 0, leading: 512, stride: 128 },
    // 32 bytes a row are all of its inputs.
    Layout { swizzle: 3, start: 0, leading: 0, stride: 256 },
    // The second half of rows of 32 inputs.
    Layout { swizzle: 2, start: 0, leading: 0, stride: 512 },
    Layout { swizzle: 2, start: 32, leading: 0, stride: 512 },
    // Of rows of 64 inputs the first and the last 16, and rows apart from one another.
    Layout { swizzle: 1, start: 0, leading: 0, stride: 1024 },
    Layout { swizzle: 1, start: 96, leading: 0, stride: 1024 },
    Layout { swizzle: 1, start: 64, leading: 0, stride: 2048 },
];

#[test]
fn warpgroups_multiply_matrices_of_every_layout() {
    for layout in LAYOUTS {
        // Written by stores, and by copies that were waited for.
        for way in [0, 101] {
            let out = product(layout, way).unwrap();
            for row in 0..ROWS {
                for column in 0..COLUMNS {
                    let sum: f32 = (0..INPUTS).map(|k| first(row, k) * second(column, k)).sum();
                    // The figure of the accumulators D.
                    let thread = row / 16 * 32 + row % 8 * 4 + column % 8 / 2;
                    let register = column / 8 * 4 + row % 16 / 8 * 2 + column % 2;
                    assert_eq!(out[thread * 16 + register], sum, "{layout:?} {row} {column}");
                }
            }
        }
    }
}

#[test]
fn a_layout_is_not_taken_for_another() {
    // Bytes that belong to no matrix are no numbers.
    for (lies, swizzle) in [(LAYOUTS[5], 2), (LAYOUTS[5], 3), (LAYOUTS[7], 1), (LAYOUTS[4], 1)] {
        let layout = Layout { swizzle, stride: 1024, ..lies };
        let sums = described(lies, layout, 0).unwrap();
        assert!(sums.iter().any(|sum| sum.is_nan()), "{lies:?} as {layout:?}");
    }
}

#[test]
fn mistakes_with_products_that_run_on_their_own_are_found() {
    let unpublished = "without a fence.proxy.async of who wrote it";
    let mistakes = [
        (1, unpublished),
        (2, "without a barrier behind the fence.proxy.async"),
        (3, "accumulators were written without a wgmma.fence"),
        (4, "accumulators were written without a wgmma.fence"),
        (5, "registers of an operand were written without a wgmma.fence"),
        (6, "registers of an operand changed while their product was under way"),
        (7, "accumulators changed while their product was under way"),
        (8, "shared memory changed while a product that reads it was under way"),
        (10, "ended before 1 copies or products"),
        (11, "ended before 1 copies or products"),
        (12, "warps of a group issue different products"),
        (13, unpublished),
        (14, unpublished),
        (15, unpublished),
        (16, "ended before 1 copies or products"),
    ];
    for (mistake, expected) in mistakes {
        let found = failure(product(LAYOUTS[5], mistake).map(|_| ()));
        assert!(found.contains(expected), "mistake {mistake}: {found}");
    }
    // What is read too early is no number.
    let early = product(LAYOUTS[5], 9).unwrap();
    assert!(early.iter().all(|value| value.is_nan()));
}

#[test]
fn descriptors_that_hardware_would_read_as_something_else_are_refused() {
    let aligned = LAYOUTS[5];
    let wrong = |layout| failure(described(aligned, layout, 0).map(|_| ()));
    // Not at the start of its pattern: that takes a base offset.
    let shifted = wrong(Layout { start: 128, ..aligned });
    assert!(shifted.contains("begins where its pattern does"), "{shifted}");
    let stride = wrong(Layout { stride: 1040, ..aligned });
    assert!(stride.contains("at a multiple of the pattern"), "{stride}");
    let outside = wrong(Layout { stride: 16384, ..aligned });
    assert!(outside.contains("outside of dynamic shared memory"), "{outside}");
}
