//! Operators that carry a state from token to token: the gated delta rule and the short convolution
//! before it. `rows` tokens of one sequence; as many sequences of one token each decode together.

use sconce_kernels::{
    Form, GatedDeltaInputs, GatedDeltaOptions, KeyHeads, Recurrence, RecurrentSegment,
};

use super::{Operator, constant, random, state};
use crate::error::Error;
use crate::runner::{Labels, Runner, Work};

/// Most sequences that decode together here: with more rows it is a prompt.
const SEQUENCES_MAX: usize = 8;

/// How the rows of a step belong to sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rows {
    /// All to one.
    Prompt,
    /// Each to one of its own.
    Decode,
}

impl Rows {
    /// Sequences of a step of `rows` rows.
    fn sequences(self, rows: usize) -> usize {
        if self == Self::Decode { rows } else { 1 }
    }
}

/// The segments of the calls that take turns, each with slots of its own.
struct Turns {
    segments: Vec<Vec<RecurrentSegment>>,
    slots: usize,
}

impl Turns {
    /// As many as it takes for states of `bytes` bytes to come from memory.
    fn cold(runner: &Runner<'_>, kind: Rows, rows: usize, bytes: usize) -> Self {
        Self::new(kind, rows, runner.copies(kind.sequences(rows) * bytes))
    }

    fn new(kind: Rows, rows: usize, copies: usize) -> Self {
        let sequences = kind.sequences(rows);
        let segment = |copy: usize, index: usize| {
            let slot = (copy * sequences + index) as u32;
            RecurrentSegment { first_row: index, len: rows / sequences, slot }
        };
        let segments = (0..copies)
            .map(|copy| (0..sequences).map(|index| segment(copy, index)).collect())
            .collect();
        Self { segments, slots: copies * sequences }
    }

    fn at(&self, call: usize) -> Recurrence<'_> {
        Recurrence { segments: &self.segments[call % self.segments.len()], emits: &[] }
    }
}

/// The kinds of step that `rows` rows can be, with their names.
fn kinds(rows: usize) -> Vec<(Rows, &'static str)> {
    match rows {
        1 => vec![(Rows::Decode, "decode")],
        rows if rows <= SEQUENCES_MAX => vec![(Rows::Decode, "decode"), (Rows::Prompt, "prompt")],
        _ => vec![(Rows::Prompt, "prompt")],
    }
}

/// The gated delta rule, token by token and, for prompts, in chunks.
pub(super) fn gated_delta(runner: &mut Runner<'_>) -> Result<(), Error> {
    for &rows in &runner.options().rows {
        for (kind, name) in kinds(rows) {
            delta(runner, rows, (kind, name), (Form::Sequential, "token by token"))?;
            if kind == Rows::Prompt {
                delta(runner, rows, (kind, name), (Form::Chunked, "in chunks"))?;
            }
        }
    }
    Ok(())
}

fn delta(
    runner: &mut Runner<'_>,
    rows: usize,
    (kind, kind_name): (Rows, &str),
    (form, form_name): (Form, &str),
) -> Result<(), Error> {
    let sizes = runner.options().sizes;
    let (key_heads, key_dim) = (sizes.key_heads, sizes.key_dim);
    let (value_heads, value_dim) = (sizes.value_heads, sizes.value_dim);
    let elements = value_heads * key_dim * value_dim;
    let turns = Turns::cold(runner, kind, rows, elements * size_of::<f32>());
    let state = state(&[turns.slots, value_heads, key_dim, value_dim])?;
    let qkv = random(rows, sizes.conv_channels())?;
    let (a, b) = (random(rows, value_heads)?, random(rows, value_heads)?);
    let (rate, dt_bias) = (constant(-1.0, value_heads)?, constant(0.5, value_heads)?);
    let out = random(rows, value_heads * value_dim)?;
    let labels = Labels {
        shape: format!(
            "{key_heads}/{value_heads} heads of {key_dim}x{value_dim}, {kind_name}, {form_name}"
        ),
        rows,
        ..Labels::default()
    };
    let work = Work {
        bytes: 2.0 * kind.sequences(rows) as f64 * (elements * size_of::<f32>()) as f64,
        integer_macs: 0.0,
        // The state times a key, a product of two vectors added to it, the state times a query.
        float_macs: 3.0 * rows as f64 * elements as f64,
    };
    runner.time(Operator::GatedDelta, labels, work, |call| {
        let inputs = GatedDeltaInputs { qkv: &qkv, a: &a, b: &b, rate: &rate, dt_bias: &dt_bias };
        let head_map = KeyHeads::Grouped;
        let options = GatedDeltaOptions { key_heads, key_dim, value_dim, head_map, form };
        Ok(sconce_kernels::gated_delta(&out, inputs, &state, turns.at(call), options)?)
    })
}

/// The short convolution.
pub(super) fn short_conv(runner: &mut Runner<'_>) -> Result<(), Error> {
    let sizes = runner.options().sizes;
    let (channels, kernel) = (sizes.conv_channels(), sizes.conv_kernel);
    let weight = random(kernel, channels)?;
    for &rows in &runner.options().rows {
        for (kind, name) in kinds(rows) {
            let tail = (kernel - 1) * channels;
            let turns = Turns::cold(runner, kind, rows, tail * size_of::<f32>());
            let state = state(&[turns.slots, kernel - 1, channels])?;
            let (x, out) = (random(rows, channels)?, random(rows, channels)?);
            let labels = Labels {
                shape: format!("{channels} channels, kernel {kernel}, {name}"),
                rows,
                ..Labels::default()
            };
            let states = kind.sequences(rows);
            let work = Work {
                bytes: ((2 * states * tail + 2 * rows * channels) * size_of::<f32>()) as f64,
                integer_macs: 0.0,
                float_macs: (rows * channels * kernel) as f64,
            };
            runner.time(Operator::ShortConv, labels, work, |call| {
                Ok(sconce_kernels::short_conv(&out, &x, &weight, &state, turns.at(call))?)
            })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;
    use crate::Options;

    #[test]
    fn no_two_sequences_share_a_slot() {
        let turns = Turns::new(Rows::Decode, 4, 3);
        let mut slots: Vec<u32> =
            turns.segments.iter().flatten().map(|segment| segment.slot).collect();
        slots.sort_unstable();
        assert_eq!(slots, (0..12).collect::<Vec<_>>());
        assert_eq!(turns.at(4).segments, &turns.segments[1]);
        let prompt = Turns::new(Rows::Prompt, 70, 2);
        assert_eq!(prompt.slots, 2);
        assert_eq!(prompt.segments[0][0].len, 70);
    }

    #[test]
    fn states_of_many_sequences_take_no_more_memory_than_those_of_one() {
        let options = Options::default();
        let mut heard = |_| ControlFlow::Continue(());
        let runner = Runner::new(&options, &mut heard);
        const STATE: usize = 1 << 20;
        let one = Turns::cold(&runner, Rows::Prompt, 8, STATE).slots;
        for rows in 1..=SEQUENCES_MAX {
            let slots = Turns::cold(&runner, Rows::Decode, rows, STATE).slots;
            assert!(slots <= one + rows, "{rows}: {slots} slots, for one sequence {one}");
        }
    }
}
