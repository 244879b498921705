//! `matmul` on GPUs: which kernel products take. With few rows the weight is streamed (`gemv.cuh`),
//! with many it is multiplied in blocks (`gemm.cuh`); `matmul.metal` has both for Metal.

use candle_core::{DType, Device, Tensor};

use super::{ActivationType, DeviceWeight, Kind, Mode, PRODUCTS_MAX, Rounded, format_word};
use crate::error::{Error, Result};
use crate::gpu::{Call, Gpu, Grid, Language, WARP};

/// Planes of activations in bf16 that the kernels for few rows of CUDA take at most.
const GEMV_PLANES_MAX: usize = 32;
/// Rows that the kernels for few rows of Metal take at most.
const GEMV_ROWS_MAX: usize = 8;
/// Outputs of a block of the kernels for few rows, of CUDA and of Metal.
const GEMV_OUTPUTS: usize = 16;
const METAL_GEMV_OUTPUTS: usize = 8;
/// Warps of a block at most, each of which takes whole units of columns.
const GEMV_WARPS: usize = 8;
/// Of CUDA: units that a warp has on their way.
const GEMV_DEPTH: usize = 2;
/// Of CUDA: inputs of a column of activations in shared memory, of one tile of columns and of more,
/// and elements between columns.
const COLUMN_INPUTS: [usize; 2] = [2048, 1024];
const COLUMN_PAD: usize = 32;

/// Outputs and threads of a block of the kernels for many rows of CUDA.
const GEMM_OUTPUTS: usize = 128;
const GEMM_THREADS: u32 = 256;
/// Rows up to which blocks of 32 rows are used instead of 128.
const SMALL_ROWS_MAX: usize = 64;
/// Bytes between rows of 32 columns in shared memory.
const GEMM_STRIDE: usize = 80;

/// Of the kernels with `wgmma`: rows of a block and its warpgroups, with few blocks of rows and with
/// many, and outputs and threads of each warpgroup.
const WGMMA_TILES: [(usize, usize); 2] = [(32, 1), (128, 2)];
const WGMMA_OUTPUTS: usize = 64;
const WGMMA_THREADS: u32 = 128;
/// Stages of activations in shared memory, bytes of a row of one, and to what they are aligned.
const WGMMA_STAGES: usize = 4;
const WGMMA_ROW: usize = 128;
const WGMMA_ALIGN: usize = 1024;
/// Rows of activations that experts read, up to which weights are streamed in any case.
const FEW_FOR_EXPERTS: usize = 8;

/// Threads of a block that rounds activations.
const ROUND_THREADS: u32 = 256;

/// Rows, outputs and threads of a block of the kernel for many rows of Metal.
const METAL_TILE: [usize; 2] = [32, 64];
const METAL_THREADS: u32 = 128;

/// Products of the same activations of some heads with weights of one kind, which follow each other
/// from each target's on.
pub(crate) struct Products<'a> {
    pub(crate) op: &'static str,
    /// At least one.
    pub(crate) targets: &'a [Target<'a>],
    /// `[capacity, heads, inputs]`.
    pub(crate) x: &'a Tensor,
    /// Columns of a head.
    pub(crate) inputs: usize,
    pub(crate) rows: usize,
    pub(crate) mode: Mode,
    /// Heads in all; first of those that are computed; how many.
    pub(crate) heads: [usize; 3],
    pub(crate) activation: ActivationType,
    /// The rows of `x` as [`round`] has made them, of one head.
    pub(crate) rounded: Option<Rounded<'a>>,
}

/// A weight, and where its product goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    /// `[capacity, heads, outputs]`.
    pub(crate) out: &'a Tensor,
    pub(crate) weight: &'a DeviceWeight,
    /// Rows of a head's weight.
    pub(crate) outputs: usize,
}

/// All products of the same activations, those with weights of one kind in one launch.
pub(super) fn matmuls(
    gpu: Gpu,
    products: &[super::Product<'_>],
    x: &super::Activations<'_>,
    mode: Mode,
) -> Result<()> {
    // The operator has checked where each lies.
    let on_device = |it: &super::Product<'_>| it.weight.on_device().map(|it| Kind::of(it.format));
    for (index, first) in products.iter().enumerate() {
        let kind = on_device(first);
        if products[..index].iter().any(|before| on_device(before) == kind) {
            continue;
        }
        let same = products[index..].iter().filter(|it| on_device(it) == kind);
        let mut targets = Vec::with_capacity(PRODUCTS_MAX);
        targets.extend(same.filter_map(|super::Product { out, weight }| {
            Some(Target { out, weight: weight.on_device()?, outputs: weight.rows() })
        }));
        let launch = Products {
            op: "matmul",
            targets: &targets,
            x: x.tensor,
            inputs: first.weight.cols(),
            rows: x.rows,
            mode,
            heads: [1, 0, 1],
            activation: x.activation,
            rounded: x.rounded,
        };
        launch.run(gpu)?;
    }
    Ok(())
}

impl<'a> Products<'a> {
    /// Starts their kernel.
    ///
    /// # Errors
    /// Operands that are not f32 and contiguous, sizes beyond 32 bits, a kernel that fails.
    pub(crate) fn run(&self, gpu: Gpu) -> Result<()> {
        let Some(first) = self.targets.first() else { return Ok(()) };
        let kind = Kind::of(first.weight.format);
        let planes = planes(kind, self.activation);
        let few = match gpu.language() {
            Language::Cuda => self.rows * planes <= GEMV_PLANES_MAX,
            Language::Metal => self.rows <= GEMV_ROWS_MAX,
        };
        let rounded = self.rounded.filter(|_| planes == 1 && !few);
        let (kernel, grid) = match gpu.language() {
            Language::Cuda if few => {
                let tiles = (self.rows * planes).div_ceil(8).next_power_of_two();
                let shared = columns_bytes(self.inputs, self.rows * planes, tiles);
                let grid = self.few(kind, Language::Cuda).with_shared(shared);
                (GEMV[kind as usize][tiles.ilog2() as usize], grid)
            }
            Language::Cuda => match rounded {
                Some(Rounded { wgmma: true, .. }) => self.wgmma(kind),
                Some(_) => self.many(GEMM_ROUNDED, planes),
                None => {
                    // One part is rounded before, unless it has no columns.
                    let parts = planes.max(2);
                    self.many(GEMM[parts - 2], parts)
                }
            },
            Language::Metal if few => {
                let rows = self.rows.next_power_of_two().ilog2() as usize;
                (METAL_GEMV[kind as usize][rows], self.few(kind, Language::Metal))
            }
            Language::Metal => {
                let [rows, outputs] = METAL_TILE;
                let blocks = [self.blocks(outputs), self.rows.div_ceil(rows), self.heads[2]];
                ("matmul_gemm", Grid::of(blocks, METAL_THREADS))
            }
        };
        if self.rows == 0 {
            return Ok(());
        }
        let call = self.call(gpu, rounded, planes)?;
        // SAFETY: the parameters that all these kernels have; the operator has checked the shapes of
        // its operands, and what is rounded has as many rows and columns as `x`.
        unsafe { call.launch(kernel, grid) }
    }

    /// The call with its arguments.
    fn call(&self, gpu: Gpu, rounded: Option<Rounded<'a>>, planes: usize) -> Result<Call<'a>> {
        let [heads, first_head, _] = self.heads;
        let mut call = Call::new(self.op, gpu);
        for Target { out, weight, outputs } in self.targets {
            call.write::<f32>("out", out)?;
            call.read::<u32>("weight", &weight.codes)?.read::<u32>("weight", &weight.scales)?;
            call.size("weight", weight.layout.scale_words)?.word(format_word(weight.format));
            call.size("out", *outputs)?;
        }
        let weight = self.targets[0].weight;
        for _ in self.targets.len()..PRODUCTS_MAX {
            // Something to point to; without outputs nothing is read or written there.
            call.read::<f32>("x", self.x)?;
            call.read::<u32>("weight", &weight.codes)?.read::<u32>("weight", &weight.scales)?;
            call.word(0).word(0).word(0);
        }
        match rounded {
            Some(rounded) => call.read::<u32>("x", rounded.tensor)?,
            None => call.read::<f32>("x", self.x)?,
        };
        call.size("weight", weight.layout.row_words)?.size("x", self.inputs)?;
        call.size("x", self.rows)?.size("heads", heads)?.size("heads", first_head)?;
        call.word(u32::from(self.mode == Mode::Add) | (planes as u32) << 1);
        Ok(call)
    }

    /// Blocks of so many outputs of each target.
    fn blocks(&self, outputs: usize) -> usize {
        self.targets.iter().map(|target| target.outputs.div_ceil(outputs)).sum()
    }

    /// The grid of a kernel for few rows: its warps share the units of columns.
    fn few(&self, kind: Kind, language: Language) -> Grid {
        let (outputs, warps) = match language {
            Language::Cuda => (GEMV_OUTPUTS, sharing_warps(self.inputs, kind)),
            Language::Metal => {
                (METAL_GEMV_OUTPUTS, self.inputs.div_ceil(kind.unit()).clamp(1, GEMV_WARPS))
            }
        };
        Grid::of([self.blocks(outputs), self.heads[2], 1], warps as u32 * WARP)
    }

    /// The kernel for many rows of CUDA, of those for blocks of 32 or 128, and its grid.
    fn many(&self, kernels: [&'static str; 2], parts: usize) -> (&'static str, Grid) {
        let small = self.rows <= SMALL_ROWS_MAX;
        let tile = if small { 32 } else { 128 };
        // Three parts leave no room for a second stage on every GPU.
        let stages = if parts == 3 { 1 } else { 2 };
        let shared = stages * parts * (tile + GEMM_OUTPUTS) * GEMM_STRIDE;
        let blocks = [self.blocks(GEMM_OUTPUTS), self.rows.div_ceil(tile), self.heads[2]];
        let grid = Grid::of(blocks, GEMM_THREADS).with_shared(shared);
        (kernels[usize::from(!small)], grid)
    }

    /// The kernel with `wgmma` for a kind that is one part of bf16, and its grid.
    fn wgmma(&self, kind: Kind) -> (&'static str, Grid) {
        let large = self.rows > SMALL_ROWS_MAX;
        let (tile, groups) = WGMMA_TILES[usize::from(large)];
        let outputs = self.blocks(WGMMA_OUTPUTS * groups);
        let blocks = [outputs, self.rows.div_ceil(tile), self.heads[2]];
        let grid = Grid::of(blocks, WGMMA_THREADS * groups as u32).with_shared(wgmma_bytes(tile));
        (WGMMA[wgmma_store(kind)][usize::from(large)], grid)
    }
}

/// Warps that share the outputs of a block of `gemv.cuh`, a power of two: each has as many units of
/// inputs as it asks for at once, where there are enough.
pub(crate) fn sharing_warps(inputs: usize, kind: Kind) -> usize {
    let units = inputs.div_ceil(kind.unit());
    (units / GEMV_DEPTH).clamp(1, GEMV_WARPS).next_power_of_two()
}

/// Dynamic shared memory of the kernels of `gemv.cuh`: `columns` columns of parts, in `tiles` of
/// eight, and the sums of every 16 of them.
pub(crate) fn columns_bytes(inputs: usize, columns: usize, tiles: usize) -> usize {
    let held = inputs.min(COLUMN_INPUTS[usize::from(tiles > 1)]).next_multiple_of(64);
    columns * (held + COLUMN_PAD) * 2 + held / 16 * 8 * tiles * 4
}

/// Dynamic shared memory of the kernels of `wgmma.cuh` for blocks of so many rows.
pub(crate) fn wgmma_bytes(rows: usize) -> usize {
    WGMMA_STAGES * WGMMA_ROW * rows + WGMMA_ALIGN
}

/// Which of them reads a kind that is one part of bf16: nibbles, bytes, or bf16.
pub(crate) fn wgmma_store(kind: Kind) -> usize {
    match kind {
        Kind::Nibbles | Kind::E2m1 | Kind::Iq4Nl => 0,
        Kind::Bytes | Kind::E4m3 => 1,
        Kind::Bf16 | Kind::F16 | Kind::F32 => 2,
    }
}

/// Words of the rounded form of a row.
fn rounded_words(inputs: usize) -> usize {
    inputs.next_multiple_of(32) / 2
}

/// Room for the rounded form of `rows` rows of `dim` columns where kernels read one: of CUDA, for
/// activations of 8 bits.
///
/// # Errors
/// The device cannot allocate.
pub(super) fn room(
    gpu: Gpu,
    rows: usize,
    dim: usize,
    activation: ActivationType,
    device: &Device,
) -> Result<Option<Tensor>> {
    match room_words(gpu, rows, dim, activation) {
        0 => Ok(None),
        words => Ok(Some(Tensor::zeros(words, DType::U32, device)?)),
    }
}

/// Words of it.
pub(super) fn room_words(gpu: Gpu, rows: usize, dim: usize, activation: ActivationType) -> usize {
    if gpu.language() != Language::Cuda || planes(Kind::Bf16, activation) != 1 {
        return 0;
    }
    rows.saturating_mul(rounded_words(dim)).max(1)
}

/// What reads activations: weights, or experts, of which each has a part of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readers {
    Weights,
    Experts,
}

/// Rounds rows of `x` to bf16, once for all weights, if they are many; none if they are few.
pub(super) fn round<'a>(
    gpu: Gpu,
    room: &'a Tensor,
    x: &Tensor,
    (rows, inputs): (usize, usize),
    readers: Readers,
) -> Result<Option<Rounded<'a>>> {
    let octets = rows * rounded_words(inputs) / 4;
    let wgmma = gpu.wgmma().map_err(|what| Error::Device { op: "matmul", what })?;
    // Kernels without `wgmma` give a pair the same bits either way; with it, all must have been
    // rounded that are multiplied in blocks, and experts may be when no weight is.
    let few = match (wgmma, readers) {
        (true, Readers::Experts) => FEW_FOR_EXPERTS,
        _ => GEMV_PLANES_MAX,
    };
    if rows <= few || octets == 0 {
        return Ok(None);
    }
    let kernel = if wgmma { "matmul_round_wgmma" } else { "matmul_round" };
    let mut call = Call::new("matmul", gpu);
    call.write::<u32>("activations", room)?.read::<f32>("x", x)?;
    call.size("x", octets)?.size("x", inputs)?;
    let blocks = octets.div_ceil(ROUND_THREADS as usize);
    // SAFETY: the parameters of the kernel; there is room for the rows, as the caller has checked.
    unsafe { call.launch(kernel, Grid::row(blocks, ROUND_THREADS)) }?;
    Ok(Some(Rounded { tensor: room, wgmma }))
}

/// Parts in bf16 that activations, and in blocks weights, are split into: plain f32 and f16 are not
/// rounded to fewer than they have.
fn planes(kind: Kind, activation: ActivationType) -> usize {
    let asked = match activation {
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

/// By kind, and 1, 2 or 4 tiles of 8 planes.
const GEMV: [[&str; 3]; 8] = [
    ["matmul_gemv_nibbles_1", "matmul_gemv_nibbles_2", "matmul_gemv_nibbles_4"],
    ["matmul_gemv_bytes_1", "matmul_gemv_bytes_2", "matmul_gemv_bytes_4"],
    ["matmul_gemv_e2m1_1", "matmul_gemv_e2m1_2", "matmul_gemv_e2m1_4"],
    ["matmul_gemv_iq4_nl_1", "matmul_gemv_iq4_nl_2", "matmul_gemv_iq4_nl_4"],
    ["matmul_gemv_e4m3_1", "matmul_gemv_e4m3_2", "matmul_gemv_e4m3_4"],
    ["matmul_gemv_bf16_1", "matmul_gemv_bf16_2", "matmul_gemv_bf16_4"],
    ["matmul_gemv_f16_1", "matmul_gemv_f16_2", "matmul_gemv_f16_4"],
    ["matmul_gemv_f32_1", "matmul_gemv_f32_2", "matmul_gemv_f32_4"],
];

/// By parts, of which there are two or three, and blocks of 32 or 128 rows.
const GEMM: [[&str; 2]; 2] =
    [["matmul_gemm_2_32", "matmul_gemm_2_128"], ["matmul_gemm_3_32", "matmul_gemm_3_128"]];

/// By blocks of 32 or 128 rows, for activations that were rounded before.
const GEMM_ROUNDED: [&str; 2] = ["matmul_gemm_rounded_32", "matmul_gemm_rounded_128"];

/// By how weights are stored, and blocks of 32 or 128 rows.
const WGMMA: [[&str; 2]; 3] = [
    ["matmul_wgmma_nibbles_32", "matmul_wgmma_nibbles_128"],
    ["matmul_wgmma_bytes_32", "matmul_wgmma_bytes_128"],
    ["matmul_wgmma_bf16_32", "matmul_wgmma_bf16_128"],
];

/// By kind, and 1, 2, 4 or 8 rows.
const METAL_GEMV: [[&str; 4]; 8] = [
    ["matmul_nibbles_1", "matmul_nibbles_2", "matmul_nibbles_4", "matmul_nibbles_8"],
    ["matmul_bytes_1", "matmul_bytes_2", "matmul_bytes_4", "matmul_bytes_8"],
    ["matmul_e2m1_1", "matmul_e2m1_2", "matmul_e2m1_4", "matmul_e2m1_8"],
    ["matmul_iq4_nl_1", "matmul_iq4_nl_2", "matmul_iq4_nl_4", "matmul_iq4_nl_8"],
    ["matmul_e4m3_1", "matmul_e4m3_2", "matmul_e4m3_4", "matmul_e4m3_8"],
    ["matmul_bf16_1", "matmul_bf16_2", "matmul_bf16_4", "matmul_bf16_8"],
    ["matmul_f16_1", "matmul_f16_2", "matmul_f16_4", "matmul_f16_8"],
    ["matmul_f32_1", "matmul_f32_2", "matmul_f32_4", "matmul_f32_8"],
];
