//! The definition of `head_matmul`.

/// `out` is `[rows, heads, outputs]`, `x` is `[rows, heads, inputs]`; `weights` has the values of
/// each head, `[outputs, inputs]`.
pub fn head_matmul(out: &mut [f32], x: &[f32], weights: &[Vec<f32>], inputs: usize) {
    let heads = weights.len();
    let rows = x.len() / (heads * inputs);
    for row in 0..rows {
        for (head, weight) in weights.iter().enumerate() {
            let x = &x[(row * heads + head) * inputs..][..inputs];
            let outputs = weight.len() / inputs;
            for output in 0..outputs {
                let mut sum = 0.0;
                for i in 0..inputs {
                    sum += x[i] * weight[output * inputs + i];
                }
                out[(row * heads + head) * outputs + output] = sum;
            }
        }
    }
}
