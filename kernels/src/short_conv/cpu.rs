//! `short_conv` on the CPU: blocks of channels of a segment over all cores, 16 channels to a vector.

use std::ops::Range;

use super::Inputs;
use crate::isa::Isa;
use crate::pool::{Parts, Pool};
use crate::recurrence::Recurrence;
use crate::simd::{Kernel, LANES, Simd, dispatch, silu};

/// Channels of a task.
const BLOCK: usize = 512;
/// Vectors of a token that are computed together: finding their operands costs as much as adding up
/// a few.
const WIDE: usize = 4;
/// Elements below which the calling thread works alone.
const PARALLEL_MIN: usize = 16 * 1024;

pub(crate) fn short_conv(
    out: &mut [f32],
    state: &mut [f32],
    inputs: Inputs<'_>,
    recurrence: Recurrence<'_>,
) {
    let isa = Isa::current();
    let (channels, kernel) = (inputs.channels, inputs.kernel());
    let blocks = channels.div_ceil(BLOCK);
    let (out, state) = (&Parts::new(out), &Parts::new(state));
    let task = |index: usize| {
        let (segment, start) = (index / blocks, index % blocks * BLOCK);
        let block = start..channels.min(start + BLOCK);
        dispatch(isa, Block { out, state, inputs, kernel, recurrence, segment, block });
    };
    let tasks = recurrence.segments.len() * blocks;
    match recurrence.tokens() * channels < PARALLEL_MIN {
        true => (0..tasks).for_each(task),
        false => Pool::current(|pool| pool.run(tasks, task)),
    }
}

/// Some channels of a segment.
struct Block<'a> {
    out: &'a Parts<'a, f32>,
    state: &'a Parts<'a, f32>,
    inputs: Inputs<'a>,
    /// Inputs that an output is made of.
    kernel: usize,
    recurrence: Recurrence<'a>,
    segment: usize,
    block: Range<usize>,
}

impl Kernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let segment = self.recurrence.segments[self.segment];
        for token in 0..segment.len {
            // SAFETY: the caller's promise.
            unsafe { self.token::<S>(token) };
        }
        let mut done = 0;
        while done < segment.len {
            done = self.recurrence.next_stop(self.segment, done);
            for slot in self.recurrence.emitted_at(self.segment, done) {
                self.keep(done, slot);
            }
        }
        // Last, as the states copied out may reach back into the one from before the segment.
        if segment.len > 0 {
            self.keep(segment.len, segment.slot as usize);
        }
    }
}

impl Block<'_> {
    /// Output of one token.
    #[inline(always)]
    unsafe fn token<S: Simd>(&self, token: usize) {
        let channels = self.inputs.channels;
        let row = self.recurrence.segments[self.segment].first_row + token;
        // SAFETY: this block of this row belongs to this task.
        let out = unsafe { self.out.part(row * channels + self.block.start, self.block.len()) };
        // SAFETY: the caller's promise; `lane + 16 * V <= out.len()`, the length of the block.
        unsafe {
            let mut lane = 0;
            while lane + WIDE * LANES <= out.len() {
                self.vectors::<S, WIDE>(token, lane, &mut out[lane..]);
                lane += WIDE * LANES;
            }
            while lane + LANES <= out.len() {
                self.vectors::<S, 1>(token, lane, &mut out[lane..]);
                lane += LANES;
            }
            if lane < out.len() {
                self.rest::<S>(token, lane, &mut out[lane..]);
            }
        }
    }

    /// `V` vectors of one token, from channel `lane` of the block on.
    #[inline(always)]
    unsafe fn vectors<S: Simd, const V: usize>(&self, token: usize, lane: usize, out: &mut [f32]) {
        // SAFETY: the caller's promise: the vectors lie inside the block, and so inside every row.
        unsafe {
            let mut sums = [S::splat(0.0); V];
            for k in 0..self.kernel {
                let weight = self.weight(k)[lane..].as_ptr();
                let input = self.input(token + k)[lane..].as_ptr();
                for (v, sum) in sums.iter_mut().enumerate() {
                    let (weight, input) = (weight.add(v * LANES), input.add(v * LANES));
                    *sum = S::fma(S::load(weight), S::load(input), *sum);
                }
            }
            for (v, sum) in sums.into_iter().enumerate() {
                S::store(out.as_mut_ptr().add(v * LANES), silu::<S>(sum));
            }
        }
    }

    /// The channels of one token from `lane` on, fewer than a vector. They go through a full one, so
    /// that a channel's bits do not depend on where it lies.
    #[inline(always)]
    unsafe fn rest<S: Simd>(&self, token: usize, lane: usize, out: &mut [f32]) {
        let mut lanes = [0.0; LANES];
        // SAFETY: the caller's promise; the arrays are vectors.
        unsafe {
            let mut sum = S::splat(0.0);
            for k in 0..self.kernel {
                let mut weight = [0.0; LANES];
                let mut input = [0.0; LANES];
                weight[..out.len()].copy_from_slice(&self.weight(k)[lane..]);
                input[..out.len()].copy_from_slice(&self.input(token + k)[lane..]);
                sum = S::fma(S::load(weight.as_ptr()), S::load(input.as_ptr()), sum);
            }
            S::store(lanes.as_mut_ptr(), silu::<S>(sum));
        }
        out.copy_from_slice(&lanes[..out.len()]);
    }

    /// The block's weights for input `k`.
    #[inline(always)]
    fn weight(&self, k: usize) -> &[f32] {
        &self.inputs.weight[k * self.inputs.channels..][self.block.clone()]
    }

    /// The block of an input, counted from the oldest one in the state: `kernel - 1` is the first of
    /// the segment's own.
    #[inline(always)]
    fn input(&self, index: usize) -> &[f32] {
        let tail = self.kernel - 1;
        match index.checked_sub(tail) {
            Some(own) => {
                let row = self.recurrence.segments[self.segment].first_row + own;
                &self.inputs.x[row * self.inputs.channels..][self.block.clone()]
            }
            None => {
                let slot = self.recurrence.segments[self.segment].slot as usize;
                // SAFETY: this block of the segment's slot belongs to this task, which writes it only
                // when no input is borrowed.
                unsafe { self.state_row(slot, index) }
            }
        }
    }

    /// Makes the inputs up to `done` tokens of the segment, at least one, the state of `slot`.
    fn keep(&self, done: usize, slot: usize) {
        for index in 0..self.kernel - 1 {
            let from = self.input(done + index);
            // SAFETY: this block of each slot of the segment and its emits belongs to this task, and
            // `from` is a later row of the segment's slot or no row of a state.
            unsafe { self.state_row(slot, index) }.copy_from_slice(from);
        }
    }

    /// The block of a row of a slot's state.
    ///
    /// # Safety
    /// The slot is the segment's or one of its emits', and no other borrow of the row is alive.
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    unsafe fn state_row(&self, slot: usize, index: usize) -> &mut [f32] {
        let channels = self.inputs.channels;
        let row = slot * (self.kernel - 1) + index;
        // SAFETY: the caller's promise.
        unsafe { self.state.part(row * channels + self.block.start, self.block.len()) }
    }
}
