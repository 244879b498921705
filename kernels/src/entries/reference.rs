//! The definitions of the operators on entries, over words.

use super::Packing;

/// `packed[i * stride + offset + j] = pool[entries[i], j]`, entries of `len` words.
pub fn gather_entries(
    packed: &mut [u32],
    pool: &[u32],
    entries: &[u32],
    len: usize,
    Packing { stride, offset }: Packing,
) {
    for (i, entry) in entries.iter().enumerate() {
        for j in 0..len {
            packed[i * stride + offset + j] = pool[*entry as usize * len + j];
        }
    }
}

/// `pool[entries[i], j] = packed[i * stride + offset + j]`, entries of `len` words.
pub fn scatter_entries(
    pool: &mut [u32],
    packed: &[u32],
    entries: &[u32],
    len: usize,
    Packing { stride, offset }: Packing,
) {
    for (i, entry) in entries.iter().enumerate() {
        for j in 0..len {
            pool[*entry as usize * len + j] = packed[i * stride + offset + j];
        }
    }
}
