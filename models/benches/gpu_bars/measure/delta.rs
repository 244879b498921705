//! The gated delta rule: prefill in chunks against flash-linear-attention, decode steps against the
//! bandwidth of a copy.

use candle_core::{Device, Tensor};
use sconce_kernels::{
    Form, GatedDeltaInputs, GatedDeltaOptions, GatedDeltaStates, GatedDeltaStepInputs,
    GatedDeltaStepOptions, KeyHeads, Recurrence, RecurrentSegment, gated_delta, gated_delta_step,
    gpu,
};

use super::clock::{Side, median, median_ratio};
use super::table::{bandwidth, moving, time};
use super::{Bar, Bench, Outcome, Row, make};

/// Inputs that the convolution sees.
const KERNEL: usize = 4;
/// What is aimed at for 32k tokens, beyond the bar.
const AIM: (usize, f64) = (32_768, 0.88e-3);

/// Operands of one layer.
struct Layer {
    qkv: Tensor,
    a: Tensor,
    b: Tensor,
    rate: Tensor,
    dt_bias: Tensor,
    conv: Tensor,
    gate: Tensor,
    norm: Tensor,
    out: Tensor,
}

impl Layer {
    fn new(
        tokens: usize,
        [key_heads, value_heads, dim]: [usize; 3],
        device: &Device,
    ) -> Outcome<Self> {
        let (width, channels) = (value_heads * dim, (2 * key_heads + value_heads) * dim);
        let vector = |value: f32, len: usize| Tensor::full(value, len, device);
        Ok(Self {
            qkv: make::rows(tokens, channels, 1, device)?,
            a: make::rows(tokens, value_heads, 2, device)?,
            b: make::rows(tokens, value_heads, 3, device)?,
            // A gate of about a half in the middle of what checkpoints have.
            rate: vector(-0.5, value_heads)?,
            dt_bias: vector(0.5, value_heads)?,
            conv: make::rows(KERNEL, channels, 4, device)?,
            gate: make::rows(tokens, width, 5, device)?,
            norm: vector(1.0, dim)?,
            out: make::zeros((tokens, width), device)?,
        })
    }

    fn inputs(&self) -> GatedDeltaInputs<'_> {
        let Self { qkv, a, b, rate, dt_bias, .. } = self;
        GatedDeltaInputs { qkv, a, b, rate, dt_bias }
    }
}

/// Prefill of one sequence, the rule alone, from f32 to f32; the peer's inputs are bf16.
pub(crate) fn prefill(bench: &mut Bench) -> Outcome<()> {
    for tokens in bench.sizes.delta_tokens.clone() {
        let row = prefill_of(bench, tokens)?;
        bench.table.push(row);
    }
    Ok(())
}

fn prefill_of(bench: &mut Bench, tokens: usize) -> Outcome<Row> {
    let heads @ [key_heads, value_heads, dim] = bench.sizes.delta;
    let device = &bench.device;
    let layer = Layer::new(tokens, heads, device)?;
    let state = make::zeros((1, value_heads, dim, dim), device)?;
    let options = GatedDeltaOptions {
        key_heads,
        key_dim: dim,
        value_dim: dim,
        head_map: KeyHeads::Grouped,
        form: Form::Chunked,
    };
    let segments = [RecurrentSegment { first_row: 0, len: tokens, slot: 0 }];
    let mut ours = bench.clock.work(device, 1, || {
        let recurrence = Recurrence { segments: &segments, emits: &[] };
        let step = || gated_delta(&layer.out, layer.inputs(), &state, recurrence, options);
        Ok(gpu::step(device, step)?)
    });
    let work = format!("gated delta prefill, {tokens} tokens");
    let asked = format!("delta {tokens} {key_heads} {value_heads} {dim}");
    let aimed = |seconds: f64| match tokens == AIM.0 {
        true => format!("{} (aim {})", time(seconds), time(AIM.1)),
        false => time(seconds),
    };
    match bench.peer.side(asked) {
        Ok(mut peer) => {
            let [found, theirs] = bench.clock.in_turn([&mut ours, &mut peer as &mut dyn Side])?;
            let told = format!("{} flash-linear-attention", time(median(&theirs)));
            let row = Row::told(work, aimed(median(&found)), told);
            Ok(row.ratio(median_ratio(&found, &theirs), Some(Bar::AtMost(1.0))))
        }
        Err(why) => {
            let [found] = bench.clock.in_turn([&mut ours])?;
            let row = Row::told(work, aimed(median(&found)), format!("no peer: {why}"));
            Ok(Row { bar: Some((Bar::AtMost(1.0), None)), ..row })
        }
    }
}

/// Decode steps between the projections, against the bytes of the states, which are read and written.
pub(crate) fn decode(bench: &mut Bench) -> Outcome<()> {
    for batch in bench.sizes.delta_batch.clone() {
        let row = decode_of(bench, batch)?;
        bench.table.push(row);
    }
    Ok(())
}

fn decode_of(bench: &Bench, batch: usize) -> Outcome<Row> {
    let heads @ [key_heads, value_heads, dim] = bench.sizes.delta;
    let device = &bench.device;
    let layer = Layer::new(batch, heads, device)?;
    let state_bytes = 4 * batch * value_heads * dim * dim;
    let layers = make::copies(bench.sizes.cold_bytes, state_bytes);
    let channels = (2 * key_heads + value_heads) * dim;
    let states = (0..layers).map(|_| {
        let conv = make::zeros((batch, KERNEL - 1, channels), device)?;
        Ok((conv, make::zeros((batch, value_heads, dim, dim), device)?))
    });
    let states = states.collect::<Outcome<Vec<_>>>()?;
    let options = GatedDeltaStepOptions {
        key_heads,
        key_dim: dim,
        value_dim: dim,
        head_map: KeyHeads::Grouped,
        eps: 1e-6,
    };
    let segment = |row| RecurrentSegment { first_row: row, len: 1, slot: row as u32 };
    let segments: Vec<_> = (0..batch).map(segment).collect();
    let inputs = GatedDeltaStepInputs {
        rule: layer.inputs(),
        conv: &layer.conv,
        gate: &layer.gate,
        norm: &layer.norm,
    };
    let mut ours = bench.clock.work(device, layers, || {
        gpu::step(device, || {
            states.iter().try_for_each(|(conv, delta)| {
                let recurrence = Recurrence { segments: &segments, emits: &[] };
                let states = GatedDeltaStates { conv, delta };
                Ok(gated_delta_step(&layer.out, inputs, states, recurrence, options)?)
            })
        })
    });
    let mut copy = super::peaks::copying(device, &bench.clock, bench.sizes.copied_bytes)?;
    let [found, copied] = bench.clock.in_turn([&mut ours, &mut copy as &mut dyn Side])?;
    let (moved, copied_bytes) = (2.0 * state_bytes as f64, 2.0 * bench.sizes.copied_bytes as f64);
    let ratio = median_ratio(&copied, &found) * moved / copied_bytes;
    let bar = (batch >= 32).then_some(Bar::AtLeast(0.7));
    let ours = moving(&ours, moved, median(&found));
    let peer = format!("copy, {}", bandwidth(copied_bytes, median(&copied)));
    Ok(Row::told(format!("gated delta decode, batch {batch}"), ours, peer).ratio(ratio, bar))
}
