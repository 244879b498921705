//! `gate_mul` on the CPU.

use super::Activation;
use crate::isa::Isa;
use crate::pool::Pool;
use crate::simd::{Kernel, LANES, Simd, dispatch, exp, silu};

/// Elements of a task.
const TASK: usize = 8 * 1024;
/// `2 * sqrt(2 / pi)`.
const GELU_LINEAR: f32 = 2.0 * std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2;
/// Factor of the cube beside it.
const GELU_CUBIC: f32 = 0.044_715;

pub(super) fn gate_mul(out: &mut [f32], gate: &[f32], x: &[f32], activation: Activation) {
    let isa = Isa::current();
    Pool::current(|pool| {
        pool.run_chunks(out, TASK, |index, out| {
            let start = index * TASK;
            let (gate, x) = (&gate[start..][..out.len()], &x[start..][..out.len()]);
            dispatch(isa, GateMul { out, gate, x, activation });
        });
    });
}

struct GateMul<'a> {
    out: &'a mut [f32],
    gate: &'a [f32],
    x: &'a [f32],
    activation: Activation,
}

impl Kernel for GateMul<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let whole = self.out.len() - self.out.len() % LANES;
        // SAFETY: the caller's promise; `start + 16 <= whole`, and the three are equally long.
        unsafe {
            for start in (0..whole).step_by(LANES) {
                let gate = self.gate.as_ptr().add(start);
                let x = self.x.as_ptr().add(start);
                lanes::<S>(self.out.as_mut_ptr().add(start), gate, x, self.activation);
            }
            // The rest goes through a full vector too, so that an element's bits do not depend on
            // where it lies.
            let (mut out, mut gate, mut x) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
            let rest = self.out.len() - whole;
            gate[..rest].copy_from_slice(&self.gate[whole..]);
            x[..rest].copy_from_slice(&self.x[whole..]);
            lanes::<S>(out.as_mut_ptr(), gate.as_ptr(), x.as_ptr(), self.activation);
            self.out[whole..].copy_from_slice(&out[..rest]);
        }
    }
}

/// Sixteen elements.
#[inline(always)]
unsafe fn lanes<S: Simd>(out: *mut f32, gate: *const f32, x: *const f32, activation: Activation) {
    // SAFETY: the caller's promise.
    unsafe {
        let (gate, x) = (S::load(gate), S::load(x));
        let one = S::splat(1.0);
        let activated = match activation {
            Activation::Silu => silu::<S>(gate),
            Activation::GeluTanh => {
                // (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u)), which loses nothing where tanh nears -1.
                let cube = S::mul(S::mul(gate, gate), S::mul(gate, S::splat(-GELU_CUBIC)));
                let exponent = S::mul(S::sub(cube, gate), S::splat(GELU_LINEAR));
                S::div(gate, S::add(one, exp::<S>(exponent)))
            }
            Activation::Sigmoid => S::div(one, S::add(one, exp::<S>(S::sub(S::splat(0.0), gate)))),
        };
        S::store(out, S::mul(activated, x));
    }
}
