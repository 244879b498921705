//! `head_matmul` on GPUs: the kernels of `matmul`, with the heads along another axis of the grid.

use candle_core::Tensor;

use crate::error::Result;
use crate::gpu::Gpu;
use crate::matmul::gpu::Product;
use crate::matmul::{ActivationType, Matrix, Mode};

/// `out` is `[rows, heads, outputs]`, `x` is `[rows, heads, inputs]`.
pub(super) fn head_matmul(
    gpu: Gpu,
    out: &Tensor,
    x: &Tensor,
    weights: &[Matrix],
    rows: usize,
) -> Result<()> {
    let product = |weight, first, count| Product {
        op: "head_matmul",
        out,
        x,
        weight,
        shape: [weights[0].rows(), weights[0].cols()],
        rows,
        mode: Mode::Store,
        heads: [weights.len(), first, count],
        activation: ActivationType::F32,
        rounded: None,
    };
    if let Ok((first, _)) = Matrix::stack_of("head_matmul", "weights", weights) {
        // The first weight is where the stack begins.
        return product(first, 0, weights.len()).run(gpu);
    }
    let mut heads = weights.iter().filter_map(Matrix::on_device).enumerate();
    heads.try_for_each(|(head, weight)| product(weight, head, 1).run(gpu))
}
