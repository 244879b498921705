//! `gather_rows` on the CPU: copies.

pub(super) fn gather_rows(out: &mut [f32], x: &[f32], indices: &[u32], dim: usize) {
    for (i, index) in indices.iter().enumerate() {
        out[i * dim..][..dim].copy_from_slice(&x[*index as usize * dim..][..dim]);
    }
}
