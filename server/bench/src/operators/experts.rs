//! Experts: which of them rows choose, and products with those.

use candle_core::{Device, Tensor};
use sconce_kernels::{
    ActivationBuffer, Matrix, PairInput, RouterOptions, Routing, Scoring, expert_matmul,
};

use super::matmul::product_work;
use super::{Operator, random};
use crate::error::Error;
use crate::formats::WeightFormat;
use crate::runner::{Labels, Runner, Work};
use crate::sizes::Sizes;

/// Choices that take turns, so that each stack is asked for other experts each time.
const ROUTINGS: usize = 13;

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
        let mut routing = Routing::new(rows, sizes.experts, sizes.experts_per_token);
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
    let bytes = usize::try_from(format.bytes(outputs, inputs)).unwrap_or(usize::MAX);
    let copies = runner.copies(bytes.saturating_mul(sizes.experts));
    let stack = || (0..sizes.experts).map(|_| format.pack(outputs, inputs)).collect();
    let stacks: Vec<Vec<Matrix>> = (0..copies).map(|_| stack()).collect::<Result<_, Error>>()?;
    for form in forms {
        for &rows in &options.rows {
            let x = random(rows, inputs)?;
            let out = random(rows * sizes.experts_per_token, outputs)?;
            let mut buffer = ActivationBuffer::new(rows, inputs, form.kind(), &Device::Cpu)?;
            let x = buffer.prepare_experts(&x, rows, &[&stacks[0]])?;
            let routings = routings(&sizes, rows)?;
            let work = work(&sizes, rows, product_work(form, &stacks[0][0], 1, 1), &routings);
            let labels = Labels {
                shape: format!("{} {outputs}x{inputs}", shape(&sizes)),
                format: Some(format.name()),
                activations: Some(form.name()),
                rows,
                depth: None,
            };
            runner.time(Operator::ExpertMatmul, labels, work, |call| {
                let (stack, turn) = (&stacks[call % stacks.len()], call / stacks.len());
                let routing = &routings[(call + turn) % routings.len()];
                Ok(expert_matmul(&out, &x, stack, routing, PairInput::Rows)?)
            })?;
        }
    }
    Ok(())
}

/// Choices of `rows` rows that have nothing in common.
fn routings(sizes: &Sizes, rows: usize) -> Result<Vec<Routing>, Error> {
    let routing = |_| {
        let mut routing = Routing::new(rows, sizes.experts, sizes.experts_per_token);
        let logits: Tensor = random(rows, sizes.experts)?;
        routing.route(&logits, None, &router(sizes), rows)?;
        Ok(routing)
    };
    (0..ROUTINGS).map(routing).collect()
}

/// The work of the products of `rows` rows, on average over what they choose, where `one` is that
/// of a row with an expert.
fn work(sizes: &Sizes, rows: usize, one: Work, routings: &[Routing]) -> Work {
    let read = |routing: &Routing| {
        let mut chosen = vec![false; sizes.experts];
        (0..rows).flat_map(|row| routing.choices(row).0).for_each(|id| chosen[*id as usize] = true);
        chosen.into_iter().filter(|chosen| *chosen).count() as f64
    };
    let read = routings.iter().map(read).sum::<f64>() / routings.len().max(1) as f64;
    let pairs = (rows * sizes.experts_per_token) as f64;
    Work {
        bytes: read * one.bytes,
        integer_macs: pairs * one.integer_macs,
        float_macs: pairs * one.float_macs,
    }
}
