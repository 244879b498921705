//! A mixture of experts from its router's logits to the residual stream, as a layer calls it: few rows
//! against the bandwidth of a copy, many against a product in bf16.

use std::collections::BTreeSet;

use candle_core::Tensor;
use sconce_kernels::{
    Activation, ActivationBuffer, ActivationType, ExpertProduct, Matrix, PairInput, RouterOptions,
    Routing, Scoring, combine_experts, expert_matmul, expert_matmuls, gate_mul, gpu,
};

use super::clock::{Side, median, median_ratio};
use super::products::own_square;
use super::table::{bandwidth, moving, time};
use super::{Bar, Bench, Outcome, Row, make};

/// Choices of experts that take turns on a layer.
const TURNS: usize = 4;

/// Weights of the experts of a layer.
struct Experts {
    gate: Vec<Matrix>,
    up: Vec<Matrix>,
    down: Vec<Matrix>,
}

/// What a block of rows is computed in. It outlives steps: what they launch reads it after they were
/// recorded.
struct Buffers {
    x: Tensor,
    hidden: Tensor,
    gate: Tensor,
    up: Tensor,
    gated: Tensor,
    down: Tensor,
    /// Activations of the rows and of the pairs, as the products read them.
    prepared: [ActivationBuffer; 2],
    rows: usize,
}

impl Experts {
    fn new(bench: &Bench, layer: usize) -> Outcome<Self> {
        let ([experts, _, width], hidden) = (bench.sizes.experts, bench.sizes.hidden);
        let stack = |part: usize, rows: usize, cols: usize| {
            let seed = |index: usize| ((layer * 3 + part) * experts + index) as u64;
            let made = (0..experts).map(|i| make::weight(rows, cols, seed(i), &bench.device));
            Ok(Matrix::stack(made.collect::<Outcome<_>>()?)?) as Outcome<Vec<Matrix>>
        };
        let (gate, up) = (stack(0, width, hidden)?, stack(1, width, hidden)?);
        Ok(Self { gate, up, down: stack(2, hidden, width)? })
    }

    /// Bytes of one expert.
    fn bytes(&self) -> f64 {
        [&self.gate, &self.up, &self.down].map(|stack| stack[0].bytes() as f64).iter().sum()
    }

    /// Adds what `routing` chooses to the residual stream.
    fn forward(&self, buffers: &mut Buffers, routing: &Routing) -> Outcome<()> {
        let Buffers { x, hidden, gate, up, gated, down, prepared, rows } = buffers;
        let ([of_rows, of_pairs], pairs) = (prepared, routing.pairs());
        let x = of_rows.prepare_experts(x, *rows, &[&self.gate, &self.up])?;
        let products = [
            ExpertProduct { out: gate, experts: &self.gate },
            ExpertProduct { out: up, experts: &self.up },
        ];
        expert_matmuls(&products, &x, routing, PairInput::Rows)?;
        gate_mul(gated, gate, up, Activation::Silu, pairs)?;
        let x = of_pairs.prepare_experts(gated, pairs, &[&self.down])?;
        expert_matmul(down, &x, &self.down, routing, PairInput::Pairs)?;
        Ok(combine_experts(hidden, down, routing)?)
    }
}

impl Buffers {
    fn new(bench: &Bench, rows: usize) -> Outcome<Self> {
        let ([_, choices, width], dim) = (bench.sizes.experts, bench.sizes.hidden);
        let (pairs, device) = (rows * choices, &bench.device);
        let prepared = |rows, dim| ActivationBuffer::new(rows, dim, ActivationType::Int8, device);
        Ok(Self {
            x: make::rows(rows, dim, 9, device)?,
            hidden: make::zeros((rows, dim), device)?,
            gate: make::zeros((pairs, width), device)?,
            up: make::zeros((pairs, width), device)?,
            gated: make::zeros((pairs, width), device)?,
            down: make::zeros((pairs, dim), device)?,
            prepared: [prepared(rows, dim)?, prepared(pairs, width)?],
            rows,
        })
    }
}

fn router(choices: usize) -> RouterOptions {
    RouterOptions {
        scoring: Scoring::Softmax,
        experts_per_token: choices,
        groups: 1,
        groups_per_token: 1,
        renormalize: true,
        scale: 1.0,
    }
}

/// Routings, each with the logits that it is made of.
fn routings(bench: &Bench, rows: usize, count: usize) -> Outcome<Vec<(Routing, Tensor)>> {
    let ([experts, choices, _], device) = (bench.sizes.experts, &bench.device);
    let one = |index: usize| {
        let logits = make::rows(rows, experts, 100 + index as u64, device)?;
        let mut routing = Routing::new(rows, experts, choices, device)?;
        routing.route(&logits, None, &router(choices), rows)?;
        Ok((routing, logits))
    };
    (0..count).map(one).collect()
}

/// Experts that the rows of a routing choose, each counted once.
fn chosen(routing: &Routing) -> Outcome<usize> {
    let choices = routing.choices()?;
    let all = (0..routing.rows()).flat_map(|row| choices.of(row).0);
    Ok(all.collect::<BTreeSet<_>>().len())
}

/// Steps of one and of eight rows.
pub(crate) fn decode(bench: &mut Bench) -> Outcome<()> {
    let layers = (0..bench.sizes.expert_layers).map(|layer| Experts::new(bench, layer));
    let layers = layers.collect::<Outcome<Vec<_>>>()?;
    for rows in [1, 8] {
        let row = decode_of(bench, &layers, rows)?;
        bench.table.push(row);
    }
    Ok(())
}

fn decode_of(bench: &Bench, layers: &[Experts], rows: usize) -> Outcome<Row> {
    let device = &bench.device;
    let [experts, choices, width] = bench.sizes.experts;
    let mut buffers = Buffers::new(bench, rows)?;
    let mut turns = routings(bench, rows, layers.len() * TURNS)?;
    let read = turns.iter().map(|(routing, _)| chosen(routing)).sum::<Outcome<usize>>()?;
    let units = turns.len();
    let bytes = layers[0].bytes() * read as f64 / units as f64;
    let mut ours = bench.clock.work(device, units, || {
        gpu::step(device, || {
            for (index, (routing, logits)) in turns.iter_mut().enumerate() {
                routing.route(logits, None, &router(choices), rows)?;
                layers[index % layers.len()].forward(&mut buffers, routing)?;
            }
            Ok(())
        })
    });
    let mut copy = super::peaks::copying(device, &bench.clock, bench.sizes.copied_bytes)?;
    let [found, copied] = bench.clock.in_turn([&mut ours, &mut copy as &mut dyn Side])?;
    let copied_bytes = 2.0 * bench.sizes.copied_bytes as f64;
    let ratio = median_ratio(&copied, &found) * bytes / copied_bytes;
    let ours = moving(&ours, bytes, median(&found));
    let peer = format!("copy, {}", bandwidth(copied_bytes, median(&copied)));
    let work = format!("MoE decode, {choices} of {experts} x {width}, batch {rows}");
    Ok(Row::told(work, ours, peer).ratio(ratio, Some(Bar::AtLeast(0.6))))
}

/// A prefill, against the rate of a large product in bf16.
pub(crate) fn prefill(bench: &mut Bench) -> Outcome<()> {
    let device = bench.device.clone();
    let [_, choices, width] = bench.sizes.experts;
    let (rows, size) = (bench.sizes.expert_tokens, bench.sizes.square);
    let experts = Experts::new(bench, 0)?;
    let mut buffers = Buffers::new(bench, rows)?;
    let mut turns = routings(bench, rows, 1)?;
    let mut ours = bench.clock.work(&device, 1, || {
        gpu::step(&device, || {
            let (routing, logits) = &mut turns[0];
            routing.route(logits, None, &router(choices), rows)?;
            experts.forward(&mut buffers, routing)
        })
    });
    let flops = 6.0 * (rows * choices) as f64 * (width * bench.sizes.hidden) as f64;
    let square_flops = 2.0 * (size as f64).powi(3);
    let mut own = own_square(bench, size, &device)?;
    let (name, is_judged, [found, theirs]) = match bench.peer.side(format!("matmul {size}")) {
        Ok(mut peer) => {
            let sides = [&mut ours as &mut dyn Side, &mut peer as &mut dyn Side];
            ("torch".to_owned(), true, bench.clock.in_turn(sides)?)
        }
        Err(why) => {
            let sides = [&mut ours as &mut dyn Side, &mut own as &mut dyn Side];
            (format!("our own GEMM, as {why}"), false, bench.clock.in_turn(sides)?)
        }
    };
    let tera =
        |flops: f64, seconds: &[f64]| format!("{:.0} TFLOP/s", flops / median(seconds) / 1e12);
    let ratio = median_ratio(&theirs, &found) * flops / square_flops;
    let told = format!("{}, {}", time(median(&found)), tera(flops, &found));
    let peer = format!("bf16 {size}^3, {}, {name}", tera(square_flops, &theirs));
    let row = Row::told(format!("MoE prefill, {rows} tokens"), told, peer).ratio(ratio, None);
    // Half of what our own product reaches may be less than half of what the device can.
    let bar = Some((Bar::AtLeast(0.5), is_judged.then_some(ratio)));
    bench.table.push(Row { bar, ..row });
    Ok(())
}
