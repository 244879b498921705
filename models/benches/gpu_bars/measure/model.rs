//! A model of the shape of Qwen3-Next-80B-A3B with random weights, end to end through the crate's one
//! trait: embedding to the choice of the next token, which is all that crosses the bus.

use std::ops::ControlFlow;
use std::time::Instant;

use sconce_models::{
    Batch, Draw, Drawn, LoadOptions, Model, Precision, RowUse, SequenceId, StepShape, load_random,
};

use super::clock::{Side, median};
use super::{Bar, Bench, Outcome, Row};

const SEED: u64 = 1;
/// Most tokens of a step.
const STEP_TOKENS: usize = 2048;
/// Bytes of state: several conversations of 64k tokens.
const STATE_BYTES: u64 = 6 << 30;

/// Makes the model on the device.
pub(crate) fn load(bench: &Bench) -> Outcome<Box<dyn Model>> {
    let longest = bench.sizes.conversation.max(bench.sizes.prefill);
    let options = LoadOptions {
        device: bench.choice,
        precision: Precision::Fast,
        context_length: Some(longest + STEP_TOKENS),
        step_tokens_max: STEP_TOKENS,
        sequences_max: 2,
        state_bytes_max: Some(STATE_BYTES),
        points_max: Some(2),
        quantize: None,
    };
    let config = bench.sizes.config.clone();
    Ok(load_random(config, SEED, &options, &mut |_| ControlFlow::Continue(()))?)
}

/// Decode at a short context and prefill of a long one.
pub(crate) fn measure(bench: &mut Bench) -> Outcome<()> {
    let began = Instant::now();
    let mut model = load(bench)?;
    bench.device.synchronize()?;
    let parameters = model.info().parameters as f64 / 1e9;
    let made = format!("{:.1} s", began.elapsed().as_secs_f64());
    let bytes = model.footprint().weights_bytes as f64 / 1e9;
    let name = format!("random int4 hybrid of {parameters:.1} B parameters");
    bench.table.push(Row::told(format!("{name}, made"), made, format!("{bytes:.1} GB")));
    let row = decode(bench, model.as_mut(), &name)?;
    bench.table.push(row);
    let row = prefill(bench, model.as_mut(), &name)?;
    bench.table.push(row);
    Ok(())
}

/// Rounds of tokens, each of which is the likeliest after the one before.
struct Decode<'a> {
    model: &'a mut dyn Model,
    id: SequenceId,
    token: u32,
    tokens: usize,
}

impl Side for Decode<'_> {
    fn warm_up(&mut self) -> Outcome<()> {
        self.round().map(|_| ())
    }

    fn round(&mut self) -> Outcome<f64> {
        let start = Instant::now();
        for _ in 0..self.tokens {
            self.token = step(self.model, self.id, &[self.token])?;
        }
        Ok(start.elapsed().as_secs_f64() / self.tokens as f64)
    }
}

fn decode(bench: &Bench, model: &mut dyn Model, name: &str) -> Outcome<Row> {
    let (context, tokens) = (bench.sizes.context, bench.sizes.decoded);
    let id = model.state_mut().open()?;
    let token = fill(model, id, context)?;
    let floor = model.work().map(|work| {
        let shape = StepShape { sequences: 1, first_position: context, len: 1, logits: true };
        work.step(shape).bytes() / bench.peaks.copy_rate()
    });
    let [found] = bench.clock.in_turn([&mut Decode { model, id, token, tokens }])?;
    model.state_mut().close(id)?;
    let (seconds, floor) = (median(&found), floor.unwrap_or(f64::NAN));
    let work = format!("{name}, decode at {context}");
    let told = format!("{:.0} tokens/s", 1.0 / seconds);
    let row = Row::told(work, told, format!("{:.0} tokens/s at copy bandwidth", 1.0 / floor));
    let bar = Some((Bar::Rate(300.0), Some(1.0 / seconds)));
    Ok(Row { bar, ..row.ratio(floor / seconds, None) })
}

/// A prompt in a sequence of its own.
struct Prefill<'a> {
    model: &'a mut dyn Model,
    tokens: usize,
}

impl Side for Prefill<'_> {
    fn warm_up(&mut self) -> Outcome<()> {
        self.round().map(|_| ())
    }

    fn round(&mut self) -> Outcome<f64> {
        let id = self.model.state_mut().open()?;
        let start = Instant::now();
        fill(self.model, id, self.tokens)?;
        let seconds = start.elapsed().as_secs_f64();
        self.model.state_mut().close(id)?;
        Ok(seconds)
    }
}

fn prefill(bench: &Bench, model: &mut dyn Model, name: &str) -> Outcome<Row> {
    let tokens = bench.sizes.prefill;
    let [found] = bench.clock.in_turn([&mut Prefill { model, tokens }])?;
    let rate = tokens as f64 / median(&found);
    let told = format!("{rate:.0} tokens/s, {:.2} s", median(&found));
    Ok(Row::told(format!("{name}, prefill of {tokens}"), told, "no bar"))
}

/// Appends a prompt of `tokens` tokens and returns the likeliest next one.
pub(crate) fn fill(model: &mut dyn Model, id: SequenceId, tokens: usize) -> Outcome<u32> {
    let vocabulary = model.info().vocab_size;
    let prompt: Vec<u32> = (0..tokens).map(|index| (index * 7919 % vocabulary) as u32).collect();
    let mut next = 0;
    for chunk in prompt.chunks(model.step_tokens_max()) {
        next = step(model, id, chunk)?;
    }
    Ok(next)
}

/// Appends tokens and returns the likeliest next one; an error if the logits are no numbers.
fn step(model: &mut dyn Model, id: SequenceId, tokens: &[u32]) -> Outcome<u32> {
    let at = model.state().len(id)?;
    model.state_mut().reserve(id, tokens.len())?;
    let mut batch = Batch::default();
    batch.push(id, at, tokens, true);
    batch.uses.push(RowUse { draw: Some(Draw::GREEDY), largest: 0 });
    let mut logits = model.forward(&batch)?;
    match logits.drawn(0) {
        Drawn::Token(token) => return Ok(token),
        Drawn::NotFinite => return Err("a logit is not finite".into()),
        Drawn::Undrawn => {}
    }
    // On the CPU.
    let row = logits.row(0)?;
    let best = (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b]));
    let best = best.ok_or("a model without logits")?;
    match row[best] {
        value if value.is_finite() => Ok(best as u32),
        value => Err(format!("a logit is {value}").into()),
    }
}
