//! `random_words` on the CPU: small tensors only, so one core and a plain loop.

use super::reference::word;

pub(super) fn random_words(out: &mut [u32], seed: u64) {
    for (index, out) in out.iter_mut().enumerate() {
        *out = word(index as u32, seed);
    }
}
