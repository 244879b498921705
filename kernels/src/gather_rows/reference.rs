//! The definition of `gather_rows`.

/// `out[i, j] = x[indices[i], j]`, rows of `dim` elements.
pub fn gather_rows(out: &mut [f32], x: &[f32], indices: &[u32], dim: usize) {
    for (i, index) in indices.iter().enumerate() {
        for j in 0..dim {
            out[i * dim + j] = x[*index as usize * dim + j];
        }
    }
}
