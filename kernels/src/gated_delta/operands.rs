//! What must hold before the gated delta rule touches memory.

use candle_core::Tensor;

use super::{GatedDeltaInputs, GatedDeltaOptions, Shape};
use crate::access::{check, check_dim, rows_of, vector_of};
use crate::error::{Error, Result};

/// The sizes, and how many rows the operands have.
pub(crate) fn shape(
    op: &'static str,
    out: &Tensor,
    inputs: &GatedDeltaInputs<'_>,
    state: &Tensor,
    options: &GatedDeltaOptions,
) -> Result<(Shape, usize)> {
    let GatedDeltaOptions { key_heads, key_dim, value_dim, head_map, .. } = *options;
    let wrong = || Error::Shape {
        op,
        operand: "state",
        expected: format!("[slots, a multiple of {key_heads}, {key_dim}, {value_dim}]"),
        found: format!("{:?}", state.dims()),
    };
    check(op, "options", key_heads > 0 && key_dim > 0 && value_dim > 0, || {
        ("heads and widths of at least 1".to_owned(), format!("{options:?}"))
    })?;
    let [slots, value_heads, found_key_dim, found_value_dim] = *state.dims() else {
        return Err(wrong());
    };
    let heads_fit = value_heads > 0 && value_heads.is_multiple_of(key_heads);
    if !heads_fit || (found_key_dim, found_value_dim) != (key_dim, value_dim) {
        return Err(wrong());
    }
    let shape = Shape { slots, key_heads, value_heads, key_dim, value_dim, head_map };
    let mut rows = usize::MAX;
    for (operand, tensor, width) in [
        ("out", out, value_heads * value_dim),
        ("qkv", inputs.qkv, shape.qkv_width()),
        ("a", inputs.a, value_heads),
        ("b", inputs.b, value_heads),
    ] {
        let (capacity, found) = rows_of(op, operand, tensor, 0)?;
        check_dim(op, operand, found, width)?;
        rows = rows.min(capacity);
    }
    for (operand, tensor) in [("rate", inputs.rate), ("dt_bias", inputs.dt_bias)] {
        let found = vector_of(op, operand, tensor)?;
        check(op, operand, found == value_heads, || {
            (format!("[{value_heads}]"), format!("[{found}]"))
        })?;
    }
    Ok((shape, rows))
}
