//! `rms_norm` on the CPU: a vector of partial sums per run, added up in one fixed order.

use crate::isa::Isa;
use crate::pool::{Parts, Pool};
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// Elements that a task takes at least.
const TASK_MIN: usize = 16 * 1024;

pub(crate) fn rms_norm(out: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    let isa = Isa::current();
    let per_task = TASK_MIN.next_multiple_of(weight.len());
    let tasks = x.len().div_ceil(per_task);
    let out = Parts::new(out);
    let task = |index: usize| {
        let start = index * per_task;
        let x = &x[start..x.len().min(start + per_task)];
        // SAFETY: each task has its own range.
        let out = unsafe { out.part(start, x.len()) };
        dispatch(isa, Norm { out, x, weight, eps });
    };
    Pool::current(|pool| pool.run(tasks, task));
}

struct Norm<'a> {
    out: &'a mut [f32],
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
}

impl Kernel for Norm<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let dim = self.weight.len();
        let whole = dim - dim % LANES;
        for (out, x) in self.out.chunks_exact_mut(dim).zip(self.x.chunks_exact(dim)) {
            // SAFETY: the caller's promise; `start + 16 <= whole <= dim`.
            unsafe {
                let mut sums = S::splat(0.0);
                for start in (0..whole).step_by(LANES) {
                    let x = S::load(x.as_ptr().add(start));
                    sums = S::fma(x, x, sums);
                }
                let rest: f32 = x[whole..].iter().map(|x| x * x).sum();
                let mean = (S::sum(sums) + rest) / dim as f32;
                let scale = 1.0 / (mean + self.eps).sqrt();
                for start in (0..whole).step_by(LANES) {
                    let x = S::mul(S::load(x.as_ptr().add(start)), S::splat(scale));
                    let weight = S::load(self.weight.as_ptr().add(start));
                    S::store(out.as_mut_ptr().add(start), S::mul(x, weight));
                }
                for i in whole..dim {
                    out[i] = x[i] * scale * self.weight[i];
                }
            }
        }
    }
}
