//! `gated_delta_step` on GPUs: one launch, and the lists of sequences and of copies of their states.

use candle_core::Tensor;

use super::{GatedDeltaStates, GatedDeltaStepInputs, OP};
use crate::access::check;
use crate::error::Result;
use crate::gated_delta::{GatedDeltaInputs, KeyHeads, Shape};
use crate::gpu::{Call, Gpu, Grid, WARP, counters};
use crate::recurrence::Recurrence;

/// Widest key head: its state's columns must fit into registers.
const KEY_DIM_MAX: usize = 256;
/// Widest value head: `STEP_VALUES` of the sources.
const VALUE_DIM_MAX: usize = 512;
/// Inputs that an output of the convolution sees at most: `STEP_INPUTS` of the sources.
const INPUTS_MAX: usize = 8;
/// Columns of a state that a warp has at a time.
const COLUMNS: usize = 16;
/// Most warps of a block.
const WARPS_MAX: usize = 8;

/// What the operator has checked.
#[derive(Clone, Copy)]
pub(super) struct Operands<'a> {
    /// `[capacity, value_heads * value_dim]`.
    pub(super) out: &'a Tensor,
    /// What is read.
    pub(super) inputs: GatedDeltaStepInputs<'a>,
    /// What is advanced.
    pub(super) states: GatedDeltaStates<'a>,
    /// Sizes of them.
    pub(super) shape: Shape,
}

/// Advances the states of every segment that has a token.
pub(super) fn gated_delta_step(
    gpu: Gpu,
    operands: Operands<'_>,
    recurrence: Recurrence<'_>,
    eps: f32,
) -> Result<()> {
    let Operands { out, inputs, states, shape } = operands;
    let kernel = inputs.conv.dims()[0];
    check_sizes(&shape, kernel)?;
    let (sequences, copies) = lists(recurrence);
    let count = sequences.len() / SEQUENCE_WORDS;
    let counters = counters(OP, out.device(), count * shape.key_heads)?;
    let mut call = Call::new(OP, gpu);
    call.write::<f32>("out", out)?.write::<f32>("conv state", states.conv)?;
    call.write::<f32>("state", states.delta)?.write::<u32>("counters", &counters)?;
    let GatedDeltaInputs { qkv, a, b, rate, dt_bias } = inputs.rule;
    call.read::<f32>("qkv", qkv)?.read::<f32>("conv", inputs.conv)?;
    call.read::<f32>("a", a)?.read::<f32>("b", b)?;
    call.read::<f32>("rate", rate)?.read::<f32>("dt_bias", dt_bias)?;
    call.read::<f32>("gate", inputs.gate)?.read::<f32>("norm", inputs.norm)?;
    call.list(&sequences)?.list(&copies)?;
    call.size("key_heads", shape.key_heads)?.size("value_heads", shape.value_heads)?;
    call.size("key_dim", shape.key_dim)?.size("value_dim", shape.value_dim)?;
    call.flag(shape.head_map == KeyHeads::Tiled).size("conv", kernel)?.real(eps);
    let start = states.delta.layout().start_offset();
    call.flag(shape.value_dim.is_multiple_of(4) && start.is_multiple_of(4));
    let warps = shape.value_dim.div_ceil(COLUMNS).min(WARPS_MAX) as u32;
    let name = match shape.key_dim {
        0..=64 => "gated_delta_step_64",
        65..=128 => "gated_delta_step_128",
        _ => "gated_delta_step_256",
    };
    let grid = Grid::of([shape.value_heads, count, 1], WARP * warps);
    // SAFETY: the parameters of the kernels; rows and slots lie within the tensors, and there is a
    // counter for each key head of each sequence.
    unsafe { call.launch(name, grid) }
}

fn check_sizes(shape: &Shape, kernel: usize) -> Result<()> {
    let Shape { key_dim, value_dim, .. } = *shape;
    check(OP, "state", key_dim <= KEY_DIM_MAX && value_dim <= VALUE_DIM_MAX, || {
        let expected = format!("at most [.., {KEY_DIM_MAX}, {VALUE_DIM_MAX}] on a GPU");
        (expected, format!("[.., {key_dim}, {value_dim}]"))
    })?;
    check(OP, "conv", kernel <= INPUTS_MAX, || {
        (format!("[at most {INPUTS_MAX}, channels] on a GPU"), format!("[{kernel}, channels]"))
    })
}

/// Words of a sequence, as the sources say.
const SEQUENCE_WORDS: usize = 4;

/// Of each segment with a token its row, its slot, and where the slots start and end that get copies
/// of its state; and these slots.
fn lists(recurrence: Recurrence<'_>) -> (Vec<u32>, Vec<u32>) {
    let (mut sequences, mut copies) = (Vec::new(), Vec::new());
    for (index, segment) in recurrence.segments.iter().enumerate() {
        if segment.len == 0 {
            continue;
        }
        // Rows and slots were checked to lie within tensors; those hold fewer than 2^32 rows.
        sequences.extend([segment.first_row as u32, segment.slot, copies.len() as u32]);
        copies.extend(recurrence.emitted_at(index, 1).map(|slot| slot as u32));
        sequences.push(copies.len() as u32);
    }
    (sequences, copies)
}
