//! A mixture of experts (Shazeer et al., 2017): the choice of a few experts for each token, their
//! linear layers over the tokens that chose them, and the weighted sum of their results.
//!
//! A *pair* is a token and one of the experts it chose. Pairs are sorted by expert, so that an
//! expert's weights are read once for all of its tokens.

mod cpu;
mod gather;
mod gpu;
mod lists;
pub mod reference;
mod routing;
mod select;

use candle_core::Tensor;

pub use self::routing::{Choices, RouterOptions, Routing, Scoring};

use crate::access::{View, check, check_dim, distinct, rows_of, write};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::matmul::{Activations, Matrix};
use crate::pool::Parts;

/// What the rows of the input of [`expert_matmul`] belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PairInput {
    /// Tokens: each of a token's pairs reads its row.
    Rows,
    /// Pairs, in their order, as an [`expert_matmul`] before wrote them.
    Pairs,
}

/// `out[p, o] = sum over i of x[row of p, i] * experts[expert of p][o, i]` for every pair `p` of
/// `routing`.
///
/// `out` is `[capacity, outputs]` with a row for each pair; `experts` has one `[outputs, inputs]` for
/// each expert, in formats that may differ. A pair has the bits that `matmul` gives its row with its
/// expert. Threads keep what they gather, at most [`BLOCK_PAIRS`] rows each.
///
/// On a GPU the experts are one stack ([`Matrix::stack`]) of one format. The bits of a pair are those
/// of the pair alone among few pairs, and among many (`gpu/experts.rs`).
///
/// # Errors
/// Experts of other number or shape, rows of another number than the routing's, shapes that do not
/// fit, an output that is not f32 and contiguous, another device than the routing's, activations in
/// the same storage as `out`.
pub fn expert_matmul(
    out: &Tensor,
    x: &Activations<'_>,
    experts: &[Matrix],
    routing: &Routing,
    input: PairInput,
) -> Result<()> {
    expert_matmuls(&[ExpertProduct { out, experts }], x, routing, input)
}

/// A stack of experts, and where its results go.
#[derive(Debug, Clone, Copy)]
pub struct ExpertProduct<'a> {
    /// `[capacity, outputs]`, with a row for each pair.
    pub out: &'a Tensor,
    /// `[outputs, inputs]` for each expert.
    pub experts: &'a [Matrix],
}

/// Products of the same activations with several stacks, each with the bits that [`expert_matmul`]
/// gives: the cores are called together, and a block's rows gathered, once for all, as for gate and
/// up.
///
/// # Errors
/// As for [`expert_matmul`]; outputs that share storage.
pub fn expert_matmuls(
    products: &[ExpertProduct<'_>],
    x: &Activations<'_>,
    routing: &Routing,
    input: PairInput,
) -> Result<()> {
    const OP: &str = "expert_matmul";
    let (pairs, rows) = (routing.pairs(), x.rows);
    let expected = match input {
        PairInput::Rows => routing.rows(),
        PairInput::Pairs => pairs,
    };
    let (_, inputs) = rows_of(OP, "x", x.tensor, rows)?;
    for (index, ExpertProduct { out, experts }) in products.iter().enumerate() {
        let (outputs, cols) = stack_shape(OP, experts, routing.experts())?;
        check_dim(OP, "out", rows_of(OP, "out", out, pairs)?.1, outputs)?;
        check(OP, "x", rows == expected, || {
            (format!("[{expected}, {cols}]"), format!("{rows} rows"))
        })?;
        check_dim(OP, "x", inputs, cols)?;
        let gpu = Gpu::of(out);
        experts.iter().try_for_each(|expert| expert.check_place(OP, "experts", gpu))?;
        distinct(OP, out, &[("x", x.tensor)])?;
        products[..index]
            .iter()
            .try_for_each(|before| distinct(OP, out, &[("out", before.out)]))?;
    }
    if let Some((gpu, lists)) = routing.on_gpu(OP, x.tensor)? {
        if pairs == 0 {
            return Ok(());
        }
        let gather = input == PairInput::Rows;
        let (rows, experts) = (routing.rows(), routing.experts());
        let pairs = gpu::Pairs { x, lists, pairs, rows, gather, experts };
        return gpu::expert_matmuls(gpu, products, pairs);
    }
    let view = View::new(OP, "x", x.tensor)?;
    let x = cpu::Input { x: &view.slice()?[..rows * inputs], quantized: x.quantized, input };
    with_outputs(products, x, routing, None)
}

/// Locks the output of the first product, then of the others, and computes all.
fn with_outputs(
    rest: &[ExpertProduct<'_>],
    x: cpu::Input<'_>,
    routing: &Routing,
    locked: Option<&cpu::Output<'_>>,
) -> Result<()> {
    let Some((ExpertProduct { out, experts }, rest)) = rest.split_first() else {
        if let Some(last) = locked {
            cpu::expert_matmuls(x, routing.on_host("expert_matmul")?, last);
        }
        return Ok(());
    };
    write("expert_matmul", out, |out| {
        let outputs = experts.first().map_or(0, Matrix::rows);
        let out = Parts::new(&mut out[..routing.pairs() * outputs]);
        with_outputs(rest, x, routing, Some(&cpu::Output { out, experts, before: locked }))
    })
}

/// `out[r, i] += sum over the choices of row r, the best first, of weight * y[pair, i]`.
///
/// `out` is `[capacity, dim]`, `y` is `[capacity, dim]` with a row for each pair of `routing`.
///
/// # Errors
/// Shapes that do not fit, tensors that are not f32 and contiguous, a device without an
/// implementation, `y` in the same storage as `out`.
pub fn combine_experts(out: &Tensor, y: &Tensor, routing: &Routing) -> Result<()> {
    const OP: &str = "combine_experts";
    let (rows, pairs) = (routing.rows(), routing.pairs());
    let (_, dim) = rows_of(OP, "out", out, rows)?;
    check_dim(OP, "y", rows_of(OP, "y", y, pairs)?.1, dim)?;
    distinct(OP, out, &[("y", y)])?;
    if let Some((gpu, lists)) = routing.on_gpu(OP, out)? {
        return gpu::combine(gpu, out, y, lists, (rows, routing.choices_of_row()));
    }
    let lists = routing.on_host(OP)?;
    let y = View::new(OP, "y", y)?;
    let y = &y.slice()?[..pairs * dim];
    write(OP, out, |out| {
        cpu::combine(&mut out[..rows * dim], y, lists);
        Ok(())
    })
}

/// Most pairs that a task of [`expert_matmul`] takes: what it gathers stays in the second-level
/// cache while the panels of an expert pass by.
pub const BLOCK_PAIRS: usize = 64;

/// The shape that all experts of a stack have.
fn stack_shape(op: &'static str, experts: &[Matrix], expected: usize) -> Result<(usize, usize)> {
    let shape = experts.first().map_or((0, 0), |first| (first.rows(), first.cols()));
    let odd = experts.iter().find(|expert| (expert.rows(), expert.cols()) != shape);
    check(op, "experts", experts.len() == expected && odd.is_none(), || {
        let (outputs, inputs) = shape;
        let found = match odd {
            None => experts.len().to_string(),
            Some(odd) => format!("one of [{}, {}]", odd.rows(), odd.cols()),
        };
        (format!("{expected}, all [{outputs}, {inputs}]"), found)
    })?;
    Ok(shape)
}
