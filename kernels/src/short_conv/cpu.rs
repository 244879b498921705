//! `short_conv` on the CPU: blocks of channels of a segment over all cores, 16 channels to a vector.

use std::ops::Range;

use super::Inputs;
use crate::isa::Isa;
use crate::pool::{Parts, Pool};
use crate::recurrence::Recurrence;
use crate::simd::{Kernel, LANES, Simd, dispatch, silu};

/// Channels of a task.
const BLOCK: usize = 512;
/// Elements below which the calling thread works alone.
const PARALLEL_MIN: usize = 16 * 1024;

pub(super) fn short_conv(
    out: &mut [f32],
    state: &mut [f32],
    inputs: Inputs<'_>,
    recurrence: Recurrence<'_>,
) {
    let isa = Isa::current();
    let channels = inputs.channels;
    let blocks = channels.div_ceil(BLOCK);
    let (out, state) = (&Parts::new(out), &Parts::new(state));
    let task = |index: usize| {
        let (segment, start) = (index / blocks, index % blocks * BLOCK);
        let block = start..channels.min(start + BLOCK);
        dispatch(isa, Block { out, state, inputs, recurrence, segment, block });
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
        let whole = out.len() - out.len() % LANES;
        // SAFETY: the caller's promise; `lane + 16 <= whole`, within the block of every row.
        unsafe {
            for lane in (0..whole).step_by(LANES) {
                let from = |values: &[f32]| S::load(values.as_ptr().add(lane));
                S::store(out.as_mut_ptr().add(lane), self.sum::<S>(token, from));
            }
            let rest = out.len() - whole;
            if rest > 0 {
                let from = |values: &[f32]| {
                    let mut lanes = [0.0; LANES];
                    lanes[..rest].copy_from_slice(&values[whole..]);
                    S::load(lanes.as_ptr())
                };
                let mut lanes = [0.0; LANES];
                S::store(lanes.as_mut_ptr(), self.sum::<S>(token, from));
                out[whole..].copy_from_slice(&lanes[..rest]);
            }
        }
    }

    /// Sixteen channels of one token, which `from` takes out of the block of a row.
    #[inline(always)]
    unsafe fn sum<S: Simd>(&self, token: usize, from: impl Fn(&[f32]) -> S::F) -> S::F {
        let kernel = self.inputs.kernel();
        let weight = |k: usize| &self.inputs.weight[k * self.inputs.channels..][self.block.clone()];
        // SAFETY: the caller's promise.
        unsafe {
            let mut sum = S::splat(0.0);
            for k in 0..kernel {
                sum = S::fma(from(weight(k)), from(self.input(token + k)), sum);
            }
            silu::<S>(sum)
        }
    }

    /// The block of an input, counted from the oldest one in the state: `kernel - 1` is the first of
    /// the segment's own.
    #[inline(always)]
    fn input(&self, index: usize) -> &[f32] {
        let tail = self.inputs.kernel() - 1;
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
        for index in 0..self.inputs.kernel() - 1 {
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
        let row = slot * (self.inputs.kernel() - 1) + index;
        // SAFETY: the caller's promise.
        unsafe { self.state.part(row * channels + self.block.start, self.block.len()) }
    }
}
