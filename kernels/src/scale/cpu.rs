//! `scale` on the CPU: once a step and bound by memory, so one core and a plain loop.

pub(super) fn scale(out: &mut [f32], factor: f32) {
    for out in out {
        *out *= factor;
    }
}
