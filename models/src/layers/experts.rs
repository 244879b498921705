//! The experts of a layer, from each of the layouts that checkpoints have for them: one by one,
//! stacked with gate and up in one tensor, stacked apart.

use std::ops::Range;

use sconce_kernels::Matrix;

use super::moe::MoeShape;
use crate::checkpoint::RowSelection;
use crate::error::Error;
use crate::load::weights::Weights;

/// Weights of all experts, by index; those of a stack may differ in format.
#[derive(Debug)]
pub(crate) struct Experts {
    /// `[intermediate_size, hidden_size]` each.
    pub(crate) gate_proj: Vec<Matrix>,
    /// `[intermediate_size, hidden_size]` each.
    pub(crate) up_proj: Vec<Matrix>,
    /// `[hidden_size, intermediate_size]` each.
    pub(crate) down_proj: Vec<Matrix>,
}

impl Experts {
    /// Reads the experts of the block `name`, in the layout that is there: `experts.gate_up_proj` and
    /// `experts.down_proj` (transformers), `switch_mlp.{gate,up,down}_proj.weight` (MLX, GGUF), or
    /// `experts.<index>.{gate,up,down}_proj.weight`.
    ///
    /// # Errors
    /// A tensor that is missing, has another shape or cannot be read.
    pub(crate) fn load(
        weights: &mut Weights<'_>,
        name: &str,
        shape: &MoeShape,
    ) -> Result<Self, Error> {
        if weights.has(&format!("{name}.experts.gate_up_proj")) {
            return Self::fused(weights, &format!("{name}.experts"), shape);
        }
        let (wide, narrow) = (shape.intermediate_size, shape.hidden_size);
        let switch = format!("{name}.switch_mlp");
        let stacked = weights.has(&format!("{switch}.gate_proj.weight"));
        let mut read = |part: &str, rows: usize, cols: usize| match stacked {
            true => stack(weights, &format!("{switch}.{part}.weight"), shape.experts, (rows, cols)),
            false => (0..shape.experts)
                .map(|expert| {
                    weights.matrix(&format!("{name}.experts.{expert}.{part}.weight"), rows, cols)
                })
                .collect(),
        };
        Ok(Self {
            gate_proj: Matrix::stack(read("gate_proj", wide, narrow)?)?,
            up_proj: Matrix::stack(read("up_proj", wide, narrow)?)?,
            down_proj: Matrix::stack(read("down_proj", narrow, wide)?)?,
        })
    }

    /// Reads `<name>.gate_up_proj`, `[experts, 2 * intermediate_size, hidden_size]` with an expert's
    /// rows of the gate first, and `<name>.down_proj`.
    fn fused(weights: &mut Weights<'_>, name: &str, shape: &MoeShape) -> Result<Self, Error> {
        let MoeShape { hidden_size, experts, intermediate_size, .. } = *shape;
        let halves = run(2 * experts, intermediate_size);
        let gates = halves.clone().step_by(2);
        let ups = halves.skip(1).step_by(2);
        let mut gate_proj = weights.split(
            &format!("{name}.gate_up_proj"),
            &[experts, 2 * intermediate_size, hidden_size],
            gates.chain(ups).map(RowSelection::range),
        )?;
        let up_proj = gate_proj.split_off(experts);
        let down = (hidden_size, intermediate_size);
        let down_proj = stack(weights, &format!("{name}.down_proj"), experts, down)?;
        Ok(Self {
            gate_proj: Matrix::stack(gate_proj)?,
            up_proj: Matrix::stack(up_proj)?,
            down_proj: Matrix::stack(down_proj)?,
        })
    }
}

/// The experts of a stack, `[experts, rows, cols]`.
fn stack(
    weights: &mut Weights<'_>,
    name: &str,
    experts: usize,
    (rows, cols): (usize, usize),
) -> Result<Vec<Matrix>, Error> {
    weights.split(name, &[experts, rows, cols], run(experts, rows).map(RowSelection::range))
}

/// `count` runs of `len` rows, one after another.
fn run(count: usize, len: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    (0..count).map(move |index| index * len..(index + 1) * len)
}
