//! The chunked form: the tokens of a chunk see each other through triangular matrices instead of
//! through the state (Yang et al., "Parallelizing Linear Transformers with the Delta Rule", arXiv
//! 2406.06484), so that the state changes once in 64 tokens and all else is matrix products.
//!
//! With `G` the sum of `g` over a chunk and `S` the state before it, what each token writes, `u`,
//! solves `u_i + beta_i sum over j < i of exp(G_i - G_j) (k_i k_j) u_j = beta_i (v_i - exp(G_i) S^T k_i)`.
//! On the CPU it needs as many multiplications as the sequential form; it is the twin of what other
//! backends do.

use std::cell::RefCell;
use std::ops::Range;

use super::prepare::{RUN, Tokens};
use super::{Inputs, Shape};
use crate::isa::Isa;
use crate::pool::{Parts, Pool};
use crate::recurrence::Recurrence;
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// Below it `exp` is 0 in f32 and nothing is left of a state; bounds `g` so that sums stay finite.
const LOWEST_LOG_DECAY: f32 = -110.0;

thread_local! {
    /// Buffers of a task; they grow to the largest one this thread has seen.
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch::EMPTY) };
}

/// Advances the states of every segment; the operands are those of the reference.
pub(super) fn gated_delta(
    out: &mut [f32],
    state: &mut [f32],
    inputs: Inputs<'_>,
    recurrence: Recurrence<'_>,
    shape: &Shape,
) {
    let isa = Isa::current();
    let (out, state) = (&Parts::new(out), &Parts::new(state));
    let task = |index: usize| {
        let (segment, head) = (index / shape.value_heads, index % shape.value_heads);
        let head = Head { out, state, inputs, recurrence, shape, segment, head };
        SCRATCH.with_borrow_mut(|scratch| dispatch(isa, Job { head, scratch }));
    };
    Pool::current(|pool| pool.run(recurrence.segments.len() * shape.value_heads, task));
}

/// One value head of a segment.
struct Head<'a> {
    out: &'a Parts<'a, f32>,
    state: &'a Parts<'a, f32>,
    inputs: Inputs<'a>,
    recurrence: Recurrence<'a>,
    shape: &'a Shape,
    segment: usize,
    head: usize,
}

struct Job<'a> {
    head: Head<'a>,
    scratch: &'a mut Scratch,
}

impl Kernel for Job<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { head, scratch } = self;
        let segment = head.recurrence.segments[head.segment];
        scratch.begin(head.shape);
        head.load_state(scratch, segment.slot as usize);
        for start in (0..segment.len).step_by(RUN) {
            let end = segment.len.min(start + RUN);
            let rows = segment.first_row + start..segment.first_row + end;
            // SAFETY: the caller's promise.
            unsafe {
                scratch.tokens.take::<S>(head.inputs, head.shape, head.head, rows.clone());
                head.load_values(scratch, rows.clone());
                scratch.chunk::<S>();
                head.store_outputs(scratch, rows);
                let mut done = start;
                while done < end {
                    done = head.recurrence.next_stop(head.segment, done).min(end);
                    scratch.state_after::<S>(done - start);
                    for slot in head.recurrence.emitted_at(head.segment, done) {
                        head.store_state(scratch, slot);
                    }
                }
            }
            std::mem::swap(&mut scratch.state, &mut scratch.next_state);
        }
        if segment.len > 0 {
            std::mem::swap(&mut scratch.state, &mut scratch.next_state);
            head.store_state(scratch, segment.slot as usize);
        }
    }
}

impl Head<'_> {
    fn load_state(&self, scratch: &mut Scratch, slot: usize) {
        for (key, row) in scratch.state.chunks_exact_mut(scratch.lanes).enumerate() {
            let start = self.shape.state(slot, self.head, key);
            // SAFETY: this head of the segment's slot belongs to this task.
            let from = unsafe { self.state.part(start, self.shape.value_dim) };
            row[..from.len()].copy_from_slice(from);
        }
    }

    /// Stores the state that `state_after` made.
    fn store_state(&self, scratch: &Scratch, slot: usize) {
        for (key, row) in scratch.next_state.chunks_exact(scratch.lanes).enumerate() {
            let start = self.shape.state(slot, self.head, key);
            // SAFETY: this head of each slot of the segment and its emits belongs to this task.
            let to = unsafe { self.state.part(start, self.shape.value_dim) };
            to.copy_from_slice(&row[..to.len()]);
        }
    }

    fn load_values(&self, scratch: &mut Scratch, rows: Range<usize>) {
        for (values, row) in scratch.values.chunks_exact_mut(scratch.lanes).zip(rows) {
            let start = self.shape.value(row, self.head);
            let from = &self.inputs.qkv[start..][..self.shape.value_dim];
            values[..from.len()].copy_from_slice(from);
        }
    }

    fn store_outputs(&self, scratch: &Scratch, rows: Range<usize>) {
        for (outputs, row) in scratch.outputs.chunks_exact(scratch.lanes).zip(rows) {
            let start = self.shape.output(row, self.head);
            // SAFETY: this head of each row of the segment belongs to this task.
            let to = unsafe { self.out.part(start, self.shape.value_dim) };
            to.copy_from_slice(&outputs[..to.len()]);
        }
    }
}

/// What a task works on. Rows of values have `lanes` elements, those of tokens by tokens [`RUN`].
struct Scratch {
    tokens: Tokens,
    key_dim: usize,
    lanes: usize,
    /// Sum of `g` from the chunk's first token to each: f64, as differences of large sums are taken.
    log_decay: [f64; RUN],
    /// State before the chunk, `[key_dim, lanes]`.
    state: Vec<f32>,
    /// State after some of its tokens, `[key_dim, lanes]`.
    next_state: Vec<f32>,
    /// Values, `[RUN, lanes]`.
    values: Vec<f32>,
    /// What each token writes to its key, `[RUN, lanes]`.
    writes: Vec<f32>,
    /// Outputs, `[RUN, lanes]`.
    outputs: Vec<f32>,
    /// Keys, transposed, and with decays where a state is made, `[key_dim, RUN]`.
    keys: Vec<f32>,
    /// What earlier tokens take from what a token writes, `[RUN, RUN]`.
    overlaps: Vec<f32>,
    /// What a token reads of earlier writes and of its own, `[RUN, RUN]`.
    scores: Vec<f32>,
}

impl Scratch {
    const EMPTY: Self = Self {
        tokens: Tokens::EMPTY,
        key_dim: 0,
        lanes: 0,
        log_decay: [0.0; RUN],
        state: Vec::new(),
        next_state: Vec::new(),
        values: Vec::new(),
        writes: Vec::new(),
        outputs: Vec::new(),
        keys: Vec::new(),
        overlaps: Vec::new(),
        scores: Vec::new(),
    };

    /// Makes all buffers zeros of the right size: lanes past a value stay zero.
    fn begin(&mut self, shape: &Shape) {
        self.key_dim = shape.key_dim;
        self.lanes = shape.value_dim.next_multiple_of(LANES);
        let (state, rows) = (self.key_dim * self.lanes, RUN * self.lanes);
        for (buffer, len) in [
            (&mut self.state, state),
            (&mut self.next_state, state),
            (&mut self.values, rows),
            (&mut self.writes, rows),
            (&mut self.outputs, rows),
            (&mut self.keys, self.key_dim * RUN),
            (&mut self.overlaps, RUN * RUN),
            (&mut self.scores, RUN * RUN),
        ] {
            buffer.clear();
            buffer.resize(len, 0.0);
        }
    }

    /// `exp` of the sum of `g` after token `from`, or from the chunk's start, up to and with `to`.
    fn decay(&self, from: Option<usize>, to: usize) -> f32 {
        let before = from.map_or(0.0, |from| self.log_decay[from]);
        ((self.log_decay[to] - before) as f32).exp()
    }

    /// Writes and outputs of the chunk's tokens.
    #[inline(always)]
    unsafe fn chunk<S: Simd>(&mut self) {
        let (len, lanes, dim) = (self.tokens.len, self.lanes, self.key_dim);
        let mut sum = 0.0;
        for token in 0..len {
            let g = self.tokens.log_decay[token];
            sum += f64::from(if g < LOWEST_LOG_DECAY { LOWEST_LOG_DECAY } else { g });
            self.log_decay[token] = sum;
        }
        for (token, key) in self.tokens.k.chunks_exact(dim).take(len).enumerate() {
            for (i, k) in key.iter().enumerate() {
                self.keys[i * RUN + token] = *k;
            }
        }
        // SAFETY: the caller's promise.
        unsafe {
            let size = Size { rows: len, inner: dim, lanes: RUN };
            add_product::<S>(cleared(&mut self.overlaps), &self.tokens.k, &self.keys, size, dim);
            add_product::<S>(cleared(&mut self.scores), &self.tokens.q, &self.keys, size, dim);
            self.mask();
            let size = Size { rows: len, inner: dim, lanes };
            add_product::<S>(cleared(&mut self.writes), &self.tokens.k, &self.state, size, dim);
            add_product::<S>(cleared(&mut self.outputs), &self.tokens.q, &self.state, size, dim);
            self.solve::<S>();
            for token in 0..len {
                let decay = self.decay(None, token);
                let out = &mut self.outputs[token * lanes..][..lanes];
                out.iter_mut().for_each(|out| *out *= decay);
                // Row by row: later writes, which may not be finite, stay out of it.
                let size = Size { rows: 1, inner: token + 1, lanes };
                add_product::<S>(out, &self.scores[token * RUN..], &self.writes, size, RUN);
            }
        }
    }

    /// Decays the products of keys, and of queries with keys, between tokens, and clears those with
    /// later tokens: an exponent is only taken where it is not positive.
    fn mask(&mut self) {
        for to in 0..self.tokens.len {
            let beta = self.tokens.beta[to];
            for from in 0..RUN {
                let at = to * RUN + from;
                match from <= to {
                    true => {
                        let decay = self.decay(Some(from), to);
                        self.scores[at] *= decay;
                        self.overlaps[at] *= -beta * decay;
                    }
                    false => self.scores[at] = 0.0,
                }
                if from >= to {
                    self.overlaps[at] = 0.0;
                }
            }
        }
    }

    /// Makes the products of keys and state what the tokens write, by forward substitution.
    #[inline(always)]
    unsafe fn solve<S: Simd>(&mut self) {
        let lanes = self.lanes;
        for token in 0..self.tokens.len {
            let (decay, beta) = (self.decay(None, token), self.tokens.beta[token]);
            let (before, row) = self.writes.split_at_mut(token * lanes);
            let row = &mut row[..lanes];
            for (u, v) in row.iter_mut().zip(&self.values[token * lanes..]) {
                *u = beta * (v - decay * *u);
            }
            let size = Size { rows: 1, inner: token, lanes };
            // SAFETY: the caller's promise.
            unsafe { add_product::<S>(row, &self.overlaps[token * RUN..], before, size, RUN) };
        }
    }

    /// The state after the chunk's first `count` tokens, at least one.
    #[inline(always)]
    unsafe fn state_after<S: Simd>(&mut self, count: usize) {
        let (dim, lanes) = (self.key_dim, self.lanes);
        for from in 0..count {
            let decay = self.decay(Some(from), count - 1);
            for i in 0..dim {
                self.keys[i * RUN + from] = self.tokens.k[from * dim + i] * decay;
            }
        }
        let decay = self.decay(None, count - 1);
        for (next, state) in self.next_state.iter_mut().zip(&self.state) {
            *next = state * decay;
        }
        let size = Size { rows: dim, inner: count, lanes };
        // SAFETY: the caller's promise.
        unsafe { add_product::<S>(&mut self.next_state, &self.keys, &self.writes, size, RUN) };
    }
}

fn cleared(buffer: &mut [f32]) -> &mut [f32] {
    buffer.fill(0.0);
    buffer
}

/// Sizes of a product; `lanes`, a multiple of 16, is also the distance of rows of `out` and `x`.
#[derive(Clone, Copy)]
struct Size {
    rows: usize,
    inner: usize,
    lanes: usize,
}

/// `out[r, :] += sum over i of factors[r, i] * x[i, :]`, where rows of factors lie `stride` apart.
///
/// # Safety
/// The processor has the instructions of `S`.
#[inline(always)]
unsafe fn add_product<S: Simd>(
    out: &mut [f32],
    factors: &[f32],
    x: &[f32],
    size: Size,
    stride: usize,
) {
    let Size { rows, inner, lanes } = size;
    let (out, x) = (&mut out[..rows * lanes], &x[..inner * lanes]);
    let mut row = 0;
    while row < rows {
        let factors = &factors[row * stride..];
        let out = &mut out[row * lanes..];
        let tile = Size { rows: rows - row, inner, lanes };
        // SAFETY: the caller's promise.
        row += unsafe {
            match rows - row >= 4 {
                true => add_rows::<S, 4>(out, factors, x, tile, stride),
                false => add_rows::<S, 1>(out, factors, x, tile, stride),
            }
        };
    }
}

/// The first `R` rows; returns `R`.
#[inline(always)]
unsafe fn add_rows<S: Simd, const R: usize>(
    out: &mut [f32],
    factors: &[f32],
    x: &[f32],
    size: Size,
    stride: usize,
) -> usize {
    let Size { inner, lanes, .. } = size;
    let out = out[..R * lanes].as_mut_ptr();
    let factors = factors[..(R - 1) * stride + inner].as_ptr();
    for lane in (0..lanes).step_by(LANES) {
        // SAFETY: the caller's promise; the slices are as long as just checked, `x` by the caller.
        unsafe {
            let mut sums = [S::splat(0.0); R];
            for r in 0..R {
                sums[r] = S::load(out.add(r * lanes + lane));
            }
            for i in 0..inner {
                let x = S::load(x.as_ptr().add(i * lanes + lane));
                for r in 0..R {
                    sums[r] = S::fma_splat(x, factors.add(r * stride + i), sums[r]);
                }
            }
            for r in 0..R {
                S::store(out.add(r * lanes + lane), sums[r]);
            }
        }
    }
    R
}
