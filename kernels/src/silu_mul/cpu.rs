//! `silu_mul` on the CPU.

use crate::isa::Isa;
use crate::pool::Pool;
use crate::simd::{Kernel, LANES, Simd, dispatch, exp};

/// Elements of a task.
const TASK: usize = 8 * 1024;

pub(super) fn silu_mul(out: &mut [f32], gate: &[f32], up: &[f32]) {
    let isa = Isa::current();
    Pool::current(|pool| {
        pool.run_chunks(out, TASK, |index, out| {
            let start = index * TASK;
            let (gate, up) = (&gate[start..][..out.len()], &up[start..][..out.len()]);
            dispatch(isa, SiluMul { out, gate, up });
        });
    });
}

struct SiluMul<'a> {
    out: &'a mut [f32],
    gate: &'a [f32],
    up: &'a [f32],
}

impl Kernel for SiluMul<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let whole = self.out.len() - self.out.len() % LANES;
        // SAFETY: the caller's promise; `start + 16 <= whole`, and the three are equally long.
        unsafe {
            for start in (0..whole).step_by(LANES) {
                let gate = self.gate.as_ptr().add(start);
                let up = self.up.as_ptr().add(start);
                lanes::<S>(self.out.as_mut_ptr().add(start), gate, up);
            }
            // The rest goes through a full vector too, so that an element's bits do not depend on
            // where it lies.
            let (mut out, mut gate, mut up) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
            let rest = self.out.len() - whole;
            gate[..rest].copy_from_slice(&self.gate[whole..]);
            up[..rest].copy_from_slice(&self.up[whole..]);
            lanes::<S>(out.as_mut_ptr(), gate.as_ptr(), up.as_ptr());
            self.out[whole..].copy_from_slice(&out[..rest]);
        }
    }
}

/// Sixteen elements.
#[inline(always)]
unsafe fn lanes<S: Simd>(out: *mut f32, gate: *const f32, up: *const f32) {
    // SAFETY: the caller's promise.
    unsafe {
        let gate = S::load(gate);
        let denominator = S::add(S::splat(1.0), exp::<S>(S::sub(S::splat(0.0), gate)));
        S::store(out, S::mul(S::div(gate, denominator), S::load(up)));
    }
}
