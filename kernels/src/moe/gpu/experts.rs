//! `expert_matmul` on GPUs: which kernels the products of pairs with their experts take. With few
//! pairs for each expert the weights are streamed (`expert_gemv.cuh`), with many they are multiplied
//! in blocks (`expert_gemm.cuh`); `expert_matmul.metal` has both for Metal.

use candle_core::Tensor;

use super::super::{BLOCK_PAIRS, ExpertProduct};
use super::GpuLists;
use crate::error::Result;
use crate::gpu::{Call, Gpu, Grid, Language, WARP, in_fours};
use crate::matmul::{
    ActivationType, Activations, Kind, Matrix, columns_bytes, format_word, sharing_warps,
    wgmma_bytes, wgmma_store,
};

const OP: &str = "expert_matmul";
/// Products of one launch.
const PRODUCTS: usize = 2;

/// Pairs for each expert, on average, up to which weights are streamed.
const GEMV_PAIRS_MAX: usize = 4;
/// Rows up to which they are whatever the average: an expert has as many pairs at most.
const GEMV_ROWS_MAX: usize = 8;
/// Outputs of a group of warps that share them, and warps of a block.
const GEMV_OUTPUTS: usize = 16;
const GEMV_WARPS: usize = 8;
/// Of Metal: warps that share outputs at most, and units of inputs that each of them has at least.
const SPLIT_MAX: usize = 4;
const SPLIT_UNITS: usize = 2;
/// Of CUDA: columns of activations in shared memory at most.
const GEMV_COLUMNS: usize = 8;

/// Tells the kernels of CUDA for many pairs that activations were rounded before.
const ROUNDED: u32 = 2;

/// The pairs of a routing, and what they read.
#[derive(Clone, Copy)]
pub(in super::super) struct Pairs<'a> {
    pub(in super::super) x: &'a Activations<'a>,
    pub(in super::super) lists: &'a GpuLists,
    /// Number of pairs, and of rows.
    pub(in super::super) pairs: usize,
    pub(in super::super) rows: usize,
    /// Whether they read rows of `x` by `lists.pair_rows`; each its own otherwise.
    pub(in super::super) gather: bool,
    /// Number of experts.
    pub(in super::super) experts: usize,
}

/// Multiplies the pairs with their experts of each stack.
///
/// # Errors
/// Experts that are no stack, stacks of one launch that differ in kind; the kernels' errors.
pub(in super::super) fn expert_matmuls(
    gpu: Gpu,
    products: &[ExpertProduct<'_>],
    pairs: Pairs<'_>,
) -> Result<()> {
    let mut rest = products;
    while let Some(first) = rest.first() {
        let kind = Kind::of(first.experts[0].format());
        let alike = |next: &&ExpertProduct<'_>| Kind::of(next.experts[0].format()) == kind;
        let together = 1 + usize::from(rest.get(1).filter(alike).is_some()).min(PRODUCTS - 1);
        launch(gpu, &rest[..together], kind, pairs)?;
        rest = &rest[together..];
    }
    Ok(())
}

/// Starts the kernel for one or two stacks of a kind.
fn launch(gpu: Gpu, products: &[ExpertProduct<'_>], kind: Kind, pairs: Pairs<'_>) -> Result<()> {
    let Pairs { x, lists, .. } = pairs;
    let inputs = products[0].experts[0].cols();
    let mut call = Call::new(OP, gpu);
    for product in products {
        stack(&mut call, product)?;
    }
    if products.len() == 1 {
        nothing(&mut call, x.tensor, products[0].experts)?;
    }
    let few = pairs.rows <= GEMV_ROWS_MAX || pairs.pairs <= GEMV_PAIRS_MAX * pairs.experts;
    // Where weights are streamed, parting activations costs less than another launch.
    let rounded = x.rounded.filter(|_| !few && planes(kind, x) == 1);
    match rounded {
        Some(rounded) => call.read::<u32>("x", rounded.tensor)?,
        None => call.read::<f32>("x", x.tensor)?,
    };
    call.read::<u32>("pair_rows", &lists.pair_rows)?.read::<u32>("blocks", &lists.blocks)?;
    let reading = match rounded {
        Some(_) => ROUNDED,
        None => u32::from(in_fours(inputs, &[x.tensor])),
    };
    call.size("x", inputs)?.word(u32::from(pairs.gather)).word(reading);
    let tiling = match (few, gpu.language()) {
        (true, language) => gemv(&mut call, language, kind, (inputs, planes(kind, x)))?,
        (false, Language::Cuda) if rounded.is_some_and(|rounded| rounded.wgmma) => Tiling {
            kernel: WGMMA[wgmma_store(kind)],
            outputs: 256,
            threads: 256,
            shared: wgmma_bytes(BLOCK_PAIRS),
        },
        (false, Language::Cuda) => {
            let kernel = GEMM[kind as usize][usize::from(planes(kind, x) > 1)];
            Tiling { kernel, outputs: 256, threads: 256, shared: 0 }
        }
        (false, Language::Metal) => {
            Tiling { kernel: "expert_gemm", outputs: 64, threads: 128, shared: 0 }
        }
    };
    let tiles = |product: &ExpertProduct<'_>| product.experts[0].rows().div_ceil(tiling.outputs);
    let blocks = [lists.blocks(pairs.pairs), products.iter().map(tiles).sum(), 1];
    let grid = Grid::of(blocks, tiling.threads).with_shared(tiling.shared);
    // SAFETY: the parameters of the kernel; the operator has checked that outputs have a row for each
    // pair, activations for each pair or row, and the stacks an expert for each of the routing's.
    unsafe { call.launch(tiling.kernel, grid) }
}

/// A kernel, and what a block of it does.
struct Tiling {
    kernel: &'static str,
    outputs: usize,
    threads: u32,
    shared: usize,
}

/// The kernel that streams weights.
fn gemv(
    call: &mut Call<'_>,
    language: Language,
    kind: Kind,
    (inputs, planes): (usize, usize),
) -> Result<Tiling> {
    let (split, shared) = match language {
        Language::Cuda => {
            call.size("x", planes)?;
            let columns = GEMV_COLUMNS / planes * planes;
            (sharing_warps(inputs, kind), columns_bytes(inputs, columns, 1))
        }
        Language::Metal => {
            let units = inputs.div_ceil(kind.unit()) / SPLIT_UNITS;
            (units.clamp(1, SPLIT_MAX).next_power_of_two(), 0)
        }
    };
    call.size("x", split)?;
    let outputs = GEMV_WARPS / split * GEMV_OUTPUTS;
    Ok(Tiling { kernel: GEMV[kind as usize], outputs, threads: GEMV_WARPS as u32 * WARP, shared })
}

/// Arguments of a stack.
fn stack<'a>(call: &mut Call<'a>, product: &ExpertProduct<'a>) -> Result<()> {
    let (first, stack) = Matrix::stack_of(OP, "experts", product.experts)?;
    call.write::<f32>("out", product.out)?.read::<u32>("experts", &stack.codes)?;
    call.read::<u32>("experts", &stack.scales)?;
    call.size("experts", first.layout.row_words)?.size("experts", first.layout.scale_words)?;
    call.word(format_word(first.format)).size("experts", product.experts[0].rows())?;
    Ok(())
}

/// Arguments of a stack without outputs; `x` stands for what is not written.
fn nothing<'a>(call: &mut Call<'a>, x: &'a Tensor, experts: &'a [Matrix]) -> Result<()> {
    let (_, stack) = Matrix::stack_of(OP, "experts", experts)?;
    call.read::<f32>("x", x)?.read::<u32>("experts", &stack.codes)?;
    call.read::<u32>("experts", &stack.scales)?;
    call.word(0).word(0).word(0).word(0);
    Ok(())
}

/// Parts in bf16 that activations are split into.
fn planes(kind: Kind, x: &Activations<'_>) -> usize {
    let asked = match x.activation {
        ActivationType::F32 => 3,
        ActivationType::Int16 => 2,
        ActivationType::Int8 => 1,
    };
    match kind {
        Kind::F32 => 3,
        Kind::F16 => asked.max(2),
        _ => asked,
    }
}

/// By kind.
const GEMV: [&str; 8] = [
    "expert_gemv_nibbles",
    "expert_gemv_bytes",
    "expert_gemv_e2m1",
    "expert_gemv_iq4_nl",
    "expert_gemv_e4m3",
    "expert_gemv_bf16",
    "expert_gemv_f16",
    "expert_gemv_f32",
];

/// Of CUDA with `wgmma`, by how experts are stored.
const WGMMA: [&str; 3] = ["expert_wgmma_nibbles", "expert_wgmma_bytes", "expert_wgmma_bf16"];

/// Of CUDA, by kind, and whether activations have several parts.
const GEMM: [[&str; 2]; 8] = [
    ["expert_gemm_nibbles_1", "expert_gemm_nibbles_3"],
    ["expert_gemm_bytes_1", "expert_gemm_bytes_3"],
    ["expert_gemm_nibbles_1", "expert_gemm_nibbles_3"],
    ["expert_gemm_nibbles_1", "expert_gemm_nibbles_3"],
    ["expert_gemm_bytes_1", "expert_gemm_bytes_3"],
    ["expert_gemm_bf16_1", "expert_gemm_bf16_3"],
    ["expert_gemm_f16_3", "expert_gemm_f16_3"],
    ["expert_gemm_f32_3", "expert_gemm_f32_3"],
];
