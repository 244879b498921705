//! `rms_norm_gated` on the CPU: a vector of partial sums per run, added up in one fixed order.

use super::Inputs;
use crate::isa::Isa;
use crate::pool::{Parts, Pool};
use crate::simd::{Kernel, LANES, Simd, dispatch, silu};

/// Elements that a task takes at least.
const TASK_MIN: usize = 8 * 1024;

pub(crate) fn rms_norm_gated(out: &mut [f32], inputs: Inputs<'_>) {
    let isa = Isa::current();
    let per_task = TASK_MIN.next_multiple_of(inputs.weight.len());
    let len = out.len();
    let out = Parts::new(out);
    let task = |index: usize| {
        let range = index * per_task..len.min((index + 1) * per_task);
        // SAFETY: each task has its own range.
        let out = unsafe { out.part(range.start, range.len()) };
        let (x, gate) = (&inputs.x[range.clone()], &inputs.gate[range]);
        dispatch(isa, Norm { out, inputs: Inputs { x, gate, ..inputs } });
    };
    Pool::current(|pool| pool.run(len.div_ceil(per_task), task));
}

struct Norm<'a> {
    out: &'a mut [f32],
    inputs: Inputs<'a>,
}

impl Kernel for Norm<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Inputs { x, gate, weight, eps } = self.inputs;
        let dim = weight.len();
        let runs = x.chunks_exact(dim).zip(gate.chunks_exact(dim));
        for (out, (x, gate)) in self.out.chunks_exact_mut(dim).zip(runs) {
            // SAFETY: the caller's promise.
            unsafe { normalize::<S>(out, Inputs { x, gate, weight, eps }) };
        }
    }
}

/// Sixteen elements. A function, as a closure would not be compiled with the level's instructions.
#[inline(always)]
unsafe fn gated<S: Simd>(x: *const f32, scale: S::F, weight: *const f32, gate: *const f32) -> S::F {
    // SAFETY: the caller's promise: 16 elements of each can be read.
    unsafe {
        let x = S::mul(S::mul(S::load(x), scale), S::load(weight));
        S::mul(x, silu::<S>(S::load(gate)))
    }
}

/// One run.
#[inline(always)]
unsafe fn normalize<S: Simd>(out: &mut [f32], inputs: Inputs<'_>) {
    let Inputs { x, gate, weight, eps } = inputs;
    let dim = weight.len();
    let whole = dim - dim % LANES;
    // SAFETY: the caller's promise; `start + 16 <= whole <= dim`, the length of all four.
    unsafe {
        let mut sums = S::splat(0.0);
        for start in (0..whole).step_by(LANES) {
            let x = S::load(x.as_ptr().add(start));
            sums = S::fma(x, x, sums);
        }
        let rest: f32 = x[whole..].iter().map(|x| x * x).sum();
        let mean = (S::sum(sums) + rest) / dim as f32;
        let scale = S::splat(1.0 / (mean + eps).sqrt());
        for start in (0..whole).step_by(LANES) {
            let (x, gate) = (x.as_ptr().add(start), gate.as_ptr().add(start));
            let value = gated::<S>(x, scale, weight.as_ptr().add(start), gate);
            S::store(out.as_mut_ptr().add(start), value);
        }
        let lanes = |from: &[f32]| {
            let mut lanes = [0.0; LANES];
            lanes[..dim - whole].copy_from_slice(&from[whole..]);
            lanes
        };
        let (x, weight, gate) = (lanes(x), lanes(weight), lanes(gate));
        let mut rest = [0.0; LANES];
        let value = gated::<S>(x.as_ptr(), scale, weight.as_ptr(), gate.as_ptr());
        S::store(rest.as_mut_ptr(), value);
        out[whole..].copy_from_slice(&rest[..dim - whole]);
    }
}
