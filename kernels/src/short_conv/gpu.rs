//! `short_conv` on GPUs: tiles of consecutive tokens of the segments, with the emits inside them, as
//! lists; a kernel for each number of inputs that an output is made of.

use candle_core::Tensor;

use crate::access::check;
use crate::error::Result;
use crate::gpu::{Call, Gpu, Grid, in_fours, threads_for};
use crate::recurrence::{Emit, Recurrence};

const OP: &str = "short_conv";
/// Kernels from one of 2 inputs on.
const KERNELS: [&str; 7] = [
    "short_conv_2",
    "short_conv_3",
    "short_conv_4",
    "short_conv_5",
    "short_conv_6",
    "short_conv_7",
    "short_conv_8",
];
/// Tokens of a tile: enough that the inputs read twice are few, and tiles of a prefill many.
const TILE: usize = 32;
/// Threads of a block, four channels each.
const THREADS_MAX: u32 = 128;
/// Words of a tile, as the sources say.
const TILE_WORDS: usize = 7;

// A state reaches back less than a tile: only a segment's first tile reads the one before it.
const _: () = assert!(KERNELS.len() < TILE);

/// What the operator has checked.
#[derive(Clone, Copy)]
pub(super) struct Operands<'a> {
    pub(super) out: &'a Tensor,
    pub(super) x: &'a Tensor,
    /// `[kernel, channels]`.
    pub(super) weight: &'a Tensor,
    pub(super) state: &'a Tensor,
}

/// Convolves all segments, updates their states and keeps those on the way.
pub(super) fn short_conv(
    gpu: Gpu,
    operands: Operands<'_>,
    recurrence: Recurrence<'_>,
) -> Result<()> {
    let Operands { out, x, weight, state } = operands;
    let (kernel, channels) = weight.dims2()?;
    check(OP, "weight", (2..KERNELS.len() + 2).contains(&kernel), || {
        let most = KERNELS.len() + 1;
        (format!("[2 to {most}, channels] on a GPU"), format!("[{kernel}, {channels}]"))
    })?;
    // Of rows too, as lists have them.
    check(OP, "x", u32::try_from(x.dims()[0]).is_ok(), || {
        (format!("at most {} rows", u32::MAX), x.dims()[0].to_string())
    })?;
    let mut call = Call::new(OP, gpu);
    call.write::<f32>("out", out)?.read::<f32>("x", x)?.read::<f32>("weight", weight)?;
    call.write::<f32>("state", state)?;
    let (tiles, emits) = lists(recurrence);
    call.list(&tiles)?.list(&emits)?;
    call.size("out", channels)?.flag(in_fours(channels, &[out, x, weight, state]));
    let fours = channels.div_ceil(4);
    let threads = threads_for(fours, THREADS_MAX);
    let blocks = [tiles.len() / TILE_WORDS, fours.div_ceil(threads as usize), 1];
    // SAFETY: the parameters of the kernels; rows of segments and slots exist, none is written by
    // two tiles, and only a segment's first tile, which writes it, reads a slot.
    unsafe { call.launch(KERNELS[kernel - 2], Grid::of(blocks, threads)) }
}

/// Tiles and emits as the sources say; a tile's emits are in the order of their offsets.
fn lists(recurrence: Recurrence<'_>) -> (Vec<u32>, Vec<u32>) {
    let mut sorted = recurrence.emits.to_vec();
    sorted.sort_unstable_by_key(|emit| (emit.segment, emit.offset));
    let (mut tiles, mut next_emit) = (Vec::new(), 0);
    for (index, segment) in recurrence.segments.iter().enumerate() {
        for start in (0..segment.len).step_by(TILE) {
            let end = segment.len.min(start + TILE);
            let inside = |emit: &&Emit| emit.segment == index && emit.offset <= end;
            let first_emit = next_emit;
            next_emit += sorted[first_emit..].iter().take_while(inside).count();
            let tokens = [segment.first_row, segment.len, segment.slot as usize, start, end];
            tiles.extend(tokens.into_iter().chain([first_emit, next_emit]).map(|word| word as u32));
        }
    }
    let emits = sorted.iter().flat_map(|emit| [emit.offset as u32, emit.slot]).collect();
    (tiles, emits)
}
