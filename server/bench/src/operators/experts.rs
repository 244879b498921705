//! Experts: which of them rows choose, and products with those.

use std::collections::HashSet;

use candle_core::{Device, Tensor};
use sconce_kernels::{
    ActivationBuffer, Matrix, PairInput, RouterOptions, Routing, Scoring, expert_matmul,
};

use super::matmul::product_work;
use super::{Operator, random};
use crate::error::Error;
use crate::formats::{WEIGHT_BYTES_MAX, WeightFormat};
use crate::runner::{Labels, Runner, Work};
use crate::sizes::Sizes;

/// Most choices of other experts that take turns on a stack.
const TURNS_MAX: usize = 64;
/// Added to the logits of experts that are not to be chosen.
const NOT_CHOSEN: f32 = -1e9;

fn router(sizes: &Sizes) -> RouterOptions {
    RouterOptions {
        scoring: Scoring::Softmax,
        experts_per_token: sizes.experts_per_token,
        groups: 1,
        groups_per_token: 1,
        renormalize: true,
        scale: 1.0,
    }
}

/// The choice of experts from logits.
pub(super) fn route(runner: &mut Runner<'_>) -> Result<(), Error> {
    let options = runner.options();
    let sizes = options.sizes;
    for &rows in &options.rows {
        let logits = random(rows, sizes.experts)?;
        let mut routing = Routing::new(rows, sizes.experts, sizes.experts_per_token, &Device::Cpu)?;
        let labels = Labels { shape: shape(&sizes), rows, ..Labels::default() };
        let bytes = (rows * sizes.experts * size_of::<f32>()) as f64;
        runner.time(Operator::Route, labels, Work { bytes, ..Work::default() }, |_| {
            Ok(routing.route(&logits, None, &router(&sizes), rows)?)
        })?;
    }
    Ok(())
}

fn shape(sizes: &Sizes) -> String {
    format!("{} of {}", sizes.experts_per_token, sizes.experts)
}

/// Rows times the up projections of the experts they chose.
pub(super) fn matmul(runner: &mut Runner<'_>) -> Result<(), Error> {
    for &format in runner.options().formats() {
        stacks(runner, format)?;
    }
    Ok(())
}

fn stacks(runner: &mut Runner<'_>, format: WeightFormat) -> Result<(), Error> {
    let options = runner.options();
    let sizes = options.sizes;
    let (outputs, inputs) = (sizes.expert_width, sizes.hidden);
    let forms = options.activations(format);
    if forms.is_empty() {
        return Ok(());
    }
    let stack_bytes = format.bytes(sizes.experts, (outputs, inputs))?;
    let turns = options.rows.iter().map(|&rows| Ok((rows, turns(&sizes, rows, options.cold)?)));
    let turns: Vec<(usize, Vec<Routing>)> = turns.collect::<Result<_, Error>>()?;
    // Experts that the fewest turns read of a stack before one of them is read again.
    let read = turns.iter().map(|(rows, turns)| experts_read(*rows, turns));
    let least = read.collect::<Result<Vec<_>, Error>>()?.into_iter().min().unwrap_or(1);
    let copies = runner.copies(least * format.bytes(1, (outputs, inputs))?);
    let copies = copies.min((WEIGHT_BYTES_MAX as usize / stack_bytes.max(1)).max(1));
    let stacks = (0..copies).map(|_| format.pack_all(sizes.experts, (outputs, inputs)));
    let stacks: Vec<Vec<Matrix>> = stacks.collect::<Result<_, Error>>()?;
    for form in forms {
        for (rows, turns) in &turns {
            let rows = *rows;
            let x = random(rows, inputs)?;
            let out = random(rows * sizes.experts_per_token, outputs)?;
            let mut buffer = ActivationBuffer::new(rows, inputs, form.kind(), &Device::Cpu)?;
            let x = buffer.prepare_experts(&x, rows, &[&stacks[0]])?;
            let work = work(&sizes, rows, product_work(form, &stacks[0][0], 1, 1), turns)?;
            let labels = Labels {
                shape: format!("{} {outputs}x{inputs}", shape(&sizes)),
                format: Some(format.name()),
                activations: Some(form.name()),
                rows,
                depth: None,
            };
            runner.time(Operator::ExpertMatmul, labels, work, |call| {
                let (stack, turn) = (&stacks[call % stacks.len()], call / stacks.len());
                let routing = &turns[turn % turns.len()];
                Ok(expert_matmul(&out, &x, stack, routing, PairInput::Rows)?)
            })?;
        }
    }
    Ok(())
}

/// Random choices of `rows` rows, no two of which have an expert in common, as long as there are
/// enough experts left for all that a step may choose. One choice alone unless `cold`.
fn turns(sizes: &Sizes, rows: usize, cold: bool) -> Result<Vec<Routing>, Error> {
    let mut turns = Vec::new();
    let mut unread = vec![0.0; sizes.experts];
    loop {
        let mut routing = Routing::new(rows, sizes.experts, sizes.experts_per_token, &Device::Cpu)?;
        let unread_logits = Tensor::new(unread.as_slice(), &Device::Cpu)?;
        let logits = random(rows, sizes.experts)?.broadcast_add(&unread_logits)?;
        routing.route(&logits, None, &router(sizes), rows)?;
        chosen(rows, &routing)?.into_iter().for_each(|expert| unread[expert] = NOT_CHOSEN);
        turns.push(routing);
        let left = unread.iter().filter(|logit| **logit == 0.0).count();
        let enough = left >= rows.saturating_mul(sizes.experts_per_token);
        if !cold || !enough || turns.len() == TURNS_MAX {
            return Ok(turns);
        }
    }
}

/// The choices of all rows, in which experts come again.
fn chosen(rows: usize, routing: &Routing) -> Result<Vec<usize>, Error> {
    let choices = routing.choices()?;
    Ok((0..rows).flat_map(|row| choices.of(row).0).map(|id| *id as usize).collect())
}

/// Experts that are read in all `turns`, each of which reads an expert once.
fn experts_read(rows: usize, turns: &[Routing]) -> Result<usize, Error> {
    let read = |routing| Ok(chosen(rows, routing)?.into_iter().collect::<HashSet<_>>().len());
    turns.iter().map(read).sum()
}

/// The work of the products of `rows` rows, on average over what they choose, where `one` is that
/// of a row with an expert.
fn work(sizes: &Sizes, rows: usize, one: Work, turns: &[Routing]) -> Result<Work, Error> {
    let read = experts_read(rows, turns)? as f64 / turns.len().max(1) as f64;
    let pairs = (rows * sizes.experts_per_token) as f64;
    Ok(Work {
        bytes: read * one.bytes,
        integer_macs: pairs * one.integer_macs,
        float_macs: pairs * one.float_macs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_expert_is_read_again_before_all_turns_were_taken() {
        let sizes = Sizes::SMOLLM2_135M;
        for rows in [1, 2, 4, 8, 64] {
            let turns = turns(&sizes, rows, true).unwrap();
            let all: HashSet<usize> =
                turns.iter().flat_map(|routing| chosen(rows, routing).unwrap()).collect();
            assert_eq!(all.len(), experts_read(rows, &turns).unwrap(), "{rows} rows");
            // What is left was not enough for one more step.
            let left = sizes.experts - all.len();
            assert!(left < rows * sizes.experts_per_token, "{rows} rows: {left} left");
        }
        let one = turns(&sizes, 1, true).unwrap();
        assert_eq!(one.len(), sizes.experts / sizes.experts_per_token);
        assert_eq!(turns(&sizes, 1, false).unwrap().len(), 1);
    }
}
