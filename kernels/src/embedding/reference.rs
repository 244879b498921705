//! The definition of `embedding`, on the unpacked table.

/// `out[i, j] = table[ids[i], j]`, rows of `dim` elements.
pub fn embedding(out: &mut [f32], table: &[f32], ids: &[u32], dim: usize) {
    for (i, id) in ids.iter().enumerate() {
        for j in 0..dim {
            out[i * dim + j] = table[*id as usize * dim + j];
        }
    }
}
