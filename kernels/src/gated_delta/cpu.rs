//! The sequential form on the CPU. A task is a value head of a segment and a block of the value's
//! elements. Columns of a state do not know of each other, so a few vectors of them go over many
//! tokens at a time, while their part of the state stays in the first-level cache.

use std::cell::RefCell;
use std::ops::Range;

use super::prepare::{RUN, Tokens};
use super::single::Single;
use super::{Inputs, Shape};
use crate::isa::Isa;
use crate::pool::{Parts, Pool};
use crate::recurrence::{Recurrence, RecurrentSegment};
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// Elements of a value that a task takes. Each task prepares the keys and queries for itself, so
/// narrow blocks cost more than they balance.
const BLOCK: usize = 128;
/// Elements of states times tokens below which the calling thread works alone.
const PARALLEL_MIN: usize = 32 * 1024;

thread_local! {
    /// Buffers of a task; they grow to the largest one this thread has seen.
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch::EMPTY) };
}

/// What a task works on.
struct Scratch {
    tokens: Tokens,
    key_dim: usize,
    /// Elements of the block, filled up to whole vectors with zeros.
    lanes: usize,
    /// Distance of rows.
    stride: usize,
    /// Block of the state, `[key_dim, stride]`.
    state: Vec<f32>,
    /// Values of the prepared tokens, replaced by their outputs, `[RUN, stride]`.
    rows: Vec<f32>,
}

impl Scratch {
    const EMPTY: Self = Self {
        tokens: Tokens::EMPTY,
        key_dim: 0,
        lanes: 0,
        stride: 0,
        state: Vec::new(),
        rows: Vec::new(),
    };

    /// Makes room for a block of `len` elements. Lanes past it stay zero, as their state is, and
    /// their values are.
    fn begin(&mut self, key_dim: usize, len: usize) {
        self.key_dim = key_dim;
        self.lanes = len.next_multiple_of(LANES);
        // An odd number of vectors, or the rows of a tile would share a few sets of the cache.
        self.stride = self.lanes | LANES;
        self.state.clear();
        self.state.resize(key_dim * self.stride, 0.0);
        self.rows.clear();
        self.rows.resize(RUN * self.stride, 0.0);
    }
}

/// Advances the states of every segment; the operands are those of the reference.
pub(crate) fn gated_delta(
    out: &mut [f32],
    state: &mut [f32],
    inputs: Inputs<'_>,
    recurrence: Recurrence<'_>,
    shape: &Shape,
) {
    let isa = Isa::current();
    let blocks = shape.value_dim.div_ceil(BLOCK);
    let work = recurrence.tokens() * shape.state(1, 0, 0);
    let (out, state) = (&Parts::new(out), &Parts::new(state));
    let task = |index: usize| {
        let (start, index) = (index % blocks * BLOCK, index / blocks);
        let (head, segment) = (index % shape.value_heads, index / shape.value_heads);
        let block = start..shape.value_dim.min(start + BLOCK);
        let block = Block { out, state, inputs, recurrence, shape, segment, head, block };
        SCRATCH.with_borrow_mut(|scratch| dispatch(isa, Job { block, scratch }));
    };
    let tasks = recurrence.segments.len() * shape.value_heads * blocks;
    match work < PARALLEL_MIN {
        true => (0..tasks).for_each(task),
        false => Pool::current(|pool| pool.run(tasks, task)),
    }
}

/// Some elements of one value head of a segment.
struct Block<'a> {
    out: &'a Parts<'a, f32>,
    state: &'a Parts<'a, f32>,
    inputs: Inputs<'a>,
    recurrence: Recurrence<'a>,
    shape: &'a Shape,
    segment: usize,
    head: usize,
    block: Range<usize>,
}

struct Job<'a> {
    block: Block<'a>,
    scratch: &'a mut Scratch,
}

impl Kernel for Job<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { block, scratch } = self;
        let segment = block.recurrence.segments[block.segment];
        if segment.len == 1 && block.block.len().is_multiple_of(LANES) {
            // SAFETY: the caller's promise.
            return unsafe { block.single::<S>(&mut scratch.tokens, segment) };
        }
        scratch.begin(block.shape.key_dim, block.block.len());
        block.load_state(scratch, segment.slot as usize);
        let mut done = 0;
        while done < segment.len {
            let stop = block.recurrence.next_stop(block.segment, done);
            while done < stop {
                let end = stop.min(done + RUN);
                let rows = segment.first_row + done..segment.first_row + end;
                // SAFETY: the caller's promise.
                unsafe {
                    scratch.tokens.take::<S>(block.inputs, block.shape, block.head, rows.clone());
                    block.load_values(scratch, rows.clone());
                    scratch.advance::<S>();
                }
                block.store_outputs(scratch, rows);
                done = end;
            }
            for slot in block.recurrence.emitted_at(block.segment, done) {
                block.store_state(scratch, slot);
            }
        }
        if segment.len > 0 {
            block.store_state(scratch, segment.slot as usize);
        }
    }
}

impl Block<'_> {
    /// Takes a segment of one token through its state.
    #[inline(always)]
    unsafe fn single<S: Simd>(&self, tokens: &mut Tokens, segment: RecurrentSegment) {
        let (row, slot, len) = (segment.first_row, segment.slot as usize, self.block.len());
        let place = |slot, key| self.shape.state(slot, self.head, key) + self.block.start;
        let value = self.shape.value(row, self.head) + self.block.start;
        let output = self.shape.output(row, self.head) + self.block.start;
        // SAFETY: the caller's promise; this block of the row, of the segment's slot and of those of
        // its emits belongs to this task.
        unsafe {
            tokens.take::<S>(self.inputs, self.shape, self.head, row..row + 1);
            let single = Single {
                tokens,
                key_dim: self.shape.key_dim,
                state: self.state,
                start: place(slot, 0),
                stride: self.shape.value_dim,
                value: &self.inputs.qkv[value..][..len],
                out: self.out.part(output, len),
            };
            single.advance::<S>();
            for kept in self.recurrence.emitted_at(self.segment, 1) {
                for key in 0..self.shape.key_dim {
                    let from = self.state.part(place(slot, key), len);
                    self.state.part(place(kept, key), len).copy_from_slice(from);
                }
            }
        }
    }

    fn load_state(&self, scratch: &mut Scratch, slot: usize) {
        for (key, row) in scratch.state.chunks_exact_mut(scratch.stride).enumerate() {
            let start = self.shape.state(slot, self.head, key) + self.block.start;
            // SAFETY: this block of the segment's slot belongs to this task.
            let from = unsafe { self.state.part(start, self.block.len()) };
            row[..from.len()].copy_from_slice(from);
        }
    }

    fn store_state(&self, scratch: &Scratch, slot: usize) {
        for (key, row) in scratch.state.chunks_exact(scratch.stride).enumerate() {
            let start = self.shape.state(slot, self.head, key) + self.block.start;
            // SAFETY: this block of each slot of the segment and its emits belongs to this task.
            let to = unsafe { self.state.part(start, self.block.len()) };
            to.copy_from_slice(&row[..to.len()]);
        }
    }

    fn load_values(&self, scratch: &mut Scratch, rows: Range<usize>) {
        for (values, row) in scratch.rows.chunks_exact_mut(scratch.stride).zip(rows) {
            let start = self.shape.value(row, self.head) + self.block.start;
            let from = &self.inputs.qkv[start..][..self.block.len()];
            values[..from.len()].copy_from_slice(from);
        }
    }

    fn store_outputs(&self, scratch: &Scratch, rows: Range<usize>) {
        for (outputs, row) in scratch.rows.chunks_exact(scratch.stride).zip(rows) {
            let start = self.shape.output(row, self.head) + self.block.start;
            // SAFETY: this block of each row of the segment belongs to this task.
            let to = unsafe { self.out.part(start, self.block.len()) };
            to.copy_from_slice(&outputs[..to.len()]);
        }
    }
}

impl Scratch {
    /// Takes the state over the prepared tokens, a few vectors of lanes at a time.
    #[inline(always)]
    unsafe fn advance<S: Simd>(&mut self) {
        let mut lane = 0;
        while lane < self.lanes {
            let vectors = ((self.lanes - lane) / LANES).min(S::STATE_VECTORS);
            let tile = Tile {
                tokens: &self.tokens,
                key_dim: self.key_dim,
                stride: self.stride,
                state: &mut self.state[lane..],
                rows: &mut self.rows[lane..],
            };
            // SAFETY: the caller's promise; `lane + 16 * vectors <= lanes`.
            unsafe {
                match vectors {
                    1 => tile.advance::<S, 1>(),
                    2 => tile.advance::<S, 2>(),
                    3 => tile.advance::<S, 3>(),
                    _ => tile.advance::<S, 4>(),
                }
            }
            lane += vectors.min(4) * LANES;
        }
    }
}

/// Some vectors of the lanes of a block.
struct Tile<'a> {
    tokens: &'a Tokens,
    key_dim: usize,
    /// Distance of rows.
    stride: usize,
    /// From the first lane of the tile on.
    state: &'a mut [f32],
    /// From the first lane of the tile on.
    rows: &'a mut [f32],
}

/// Products of a state with the key and the query of a token.
struct Products<S: Simd, const V: usize> {
    key: [S::F; V],
    query: [S::F; V],
}

impl Tile<'_> {
    /// One pass over the state for each token: it decays and takes in the token while the products
    /// with the next token's key and query are summed. The output comes from the state before the
    /// token, as `(exp(g) S + k u^T)^T q = exp(g) S^T q + (k q) u`.
    #[inline(always)]
    unsafe fn advance<S: Simd, const V: usize>(mut self) {
        // SAFETY: the caller's promise: the lanes of the tile lie inside every row.
        unsafe {
            let mut products = self.products::<S, V>();
            for token in 0..self.tokens.len {
                let decay = S::splat(self.tokens.log_decay[token].exp());
                let beta = S::splat(self.tokens.beta[token]);
                let qk = S::splat(self.tokens.qk[token]);
                let row = self.rows.as_mut_ptr().add(token * self.stride);
                let mut u = [S::splat(0.0); V];
                for v in 0..V {
                    let held = S::mul(decay, products.key[v]);
                    u[v] = S::mul(beta, S::sub(S::load(row.add(v * LANES)), held));
                    let read = S::mul(decay, products.query[v]);
                    S::store(row.add(v * LANES), S::fma(qk, u[v], read));
                }
                products = self.update::<S, V>(token, decay, u);
            }
        }
    }

    /// Products of the state with the first token.
    #[inline(always)]
    unsafe fn products<S: Simd, const V: usize>(&self) -> Products<S, V> {
        // SAFETY: the caller's promise.
        unsafe {
            let mut products = Products { key: [S::splat(0.0); V], query: [S::splat(0.0); V] };
            for i in 0..self.key_dim {
                let state = self.state.as_ptr().add(i * self.stride);
                let (k, q) = (&self.tokens.k[i], &self.tokens.q[i]);
                for v in 0..V {
                    let s = S::load(state.add(v * LANES));
                    products.key[v] = S::fma_splat(s, k, products.key[v]);
                    products.query[v] = S::fma_splat(s, q, products.query[v]);
                }
            }
            products
        }
    }

    /// Takes a token in; returns the products with the next one, if there is one.
    #[inline(always)]
    unsafe fn update<S: Simd, const V: usize>(
        &mut self,
        token: usize,
        decay: S::F,
        u: [S::F; V],
    ) -> Products<S, V> {
        // The last token has no next one; its own stands in, and nobody looks at the products.
        let next = (token + 1).min(self.tokens.len - 1) * self.key_dim;
        let k = self.tokens.k[token * self.key_dim..][..self.key_dim].as_ptr();
        let next_k = self.tokens.k[next..][..self.key_dim].as_ptr();
        let next_q = self.tokens.q[next..][..self.key_dim].as_ptr();
        // SAFETY: the caller's promise.
        unsafe {
            let mut products = Products { key: [S::splat(0.0); V], query: [S::splat(0.0); V] };
            for i in 0..self.key_dim {
                let state = self.state.as_mut_ptr().add(i * self.stride);
                for v in 0..V {
                    let s = S::mul(decay, S::load(state.add(v * LANES)));
                    let s = S::fma_splat(u[v], k.add(i), s);
                    S::store(state.add(v * LANES), s);
                    products.key[v] = S::fma_splat(s, next_k.add(i), products.key[v]);
                    products.query[v] = S::fma_splat(s, next_q.add(i), products.query[v]);
                }
            }
            products
        }
    }
}
