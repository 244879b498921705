//! `matmul` on GPUs: which kernel a product takes. With few rows the weight is streamed (`gemv.cuh`),
//! with many it is multiplied in blocks (`gemm.cuh`); `matmul.metal` has both for Metal.

use candle_core::{DType, Device, Tensor};

use super::{ActivationType, DeviceWeight, Kind, Mode, format_word};
use crate::error::Result;
use crate::gpu::{Call, Gpu, Grid, Language};

/// Planes of activations in bf16 that the kernels for few rows of CUDA take at most.
const GEMV_PLANES_MAX: usize = 32;
/// Rows that the kernels for few rows of Metal take at most.
const GEMV_ROWS_MAX: usize = 8;
/// Outputs of a block of the kernels for few rows; warps of it, each of which takes whole units of
/// columns.
const GEMV_OUTPUTS: [usize; 2] = [16, 8];
const GEMV_WARPS: usize = 8;

/// Outputs and threads of a block of the kernels for many rows of CUDA.
const GEMM_OUTPUTS: usize = 128;
const GEMM_THREADS: u32 = 256;
/// Rows up to which blocks of 32 rows are used instead of 128.
const SMALL_ROWS_MAX: usize = 64;
/// Bytes between rows of 32 columns in shared memory.
const GEMM_STRIDE: usize = 80;

/// Threads of a block that rounds activations.
const ROUND_THREADS: u32 = 256;

/// Rows, outputs and threads of a block of the kernel for many rows of Metal.
const METAL_TILE: [usize; 2] = [32, 64];
const METAL_THREADS: u32 = 128;

/// A product of some heads' rows with their weights, which follow each other from `weight` on.
pub(crate) struct Product<'a> {
    pub(crate) op: &'static str,
    /// `[capacity, heads, outputs]`.
    pub(crate) out: &'a Tensor,
    /// `[capacity, heads, inputs]`.
    pub(crate) x: &'a Tensor,
    pub(crate) weight: &'a DeviceWeight,
    /// Outputs and inputs of a head.
    pub(crate) shape: [usize; 2],
    pub(crate) rows: usize,
    pub(crate) mode: Mode,
    /// Heads in all; first of those that are computed; how many.
    pub(crate) heads: [usize; 3],
    pub(crate) activation: ActivationType,
    /// The rows of `x` as [`round`] has made them, of one head.
    pub(crate) rounded: Option<&'a Tensor>,
}

/// All products of the same activations.
pub(super) fn matmuls(
    gpu: Gpu,
    products: &[super::Product<'_>],
    x: &super::Activations<'_>,
    mode: Mode,
) -> Result<()> {
    for super::Product { out, weight } in products {
        // The operator has checked where each lies.
        let Some(on_device) = weight.on_device() else { continue };
        let product = Product {
            op: "matmul",
            out,
            x: x.tensor,
            weight: on_device,
            shape: [weight.rows(), weight.cols()],
            rows: x.rows,
            mode,
            heads: [1, 0, 1],
            activation: x.activation,
            rounded: x.rounded,
        };
        product.run(gpu)?;
    }
    Ok(())
}

impl<'a> Product<'a> {
    /// Starts its kernel.
    ///
    /// # Errors
    /// Operands that are not f32 and contiguous, sizes beyond 32 bits, a kernel that fails.
    pub(crate) fn run(&self, gpu: Gpu) -> Result<()> {
        let [outputs, inputs] = self.shape;
        let [_, _, heads] = self.heads;
        let kind = Kind::of(self.weight.format);
        let mut call = self.call(gpu)?;
        let (kernel, grid) = match gpu.language() {
            Language::Cuda => {
                let planes = planes(kind, self.activation);
                if self.rows * planes <= GEMV_PLANES_MAX {
                    call.size("x", planes)?;
                    let warps = inputs.div_ceil(kind.unit()).clamp(1, GEMV_WARPS) as u32;
                    let tiles = (self.rows * planes).div_ceil(8).next_power_of_two().ilog2();
                    let blocks = [outputs.div_ceil(GEMV_OUTPUTS[0]), heads, 1];
                    (GEMV[kind as usize][tiles as usize], Grid::of(blocks, warps * 32))
                } else if let Some(rounded) = self.rounded.filter(|_| planes == 1) {
                    call.read::<u32>("x", rounded)?;
                    gemm(GEMM_ROUNDED, outputs, self.rows, heads, planes)
                } else {
                    gemm(GEMM[planes - 1], outputs, self.rows, heads, planes)
                }
            }
            Language::Metal if self.rows <= GEMV_ROWS_MAX => {
                let warps = inputs.div_ceil(kind.unit()).clamp(1, GEMV_WARPS) as u32;
                let rows = self.rows.next_power_of_two().ilog2() as usize;
                let blocks = [outputs.div_ceil(GEMV_OUTPUTS[1]), heads, 1];
                (METAL_GEMV[kind as usize][rows], Grid::of(blocks, warps * 32))
            }
            Language::Metal => {
                let blocks =
                    [outputs.div_ceil(METAL_TILE[1]), self.rows.div_ceil(METAL_TILE[0]), heads];
                ("matmul_gemm", Grid::of(blocks, METAL_THREADS))
            }
        };
        if self.rows == 0 {
            return Ok(());
        }
        // SAFETY: the parameters that all these kernels have, and the planes of those that take them;
        // the operator has checked the shapes of its operands.
        unsafe { call.launch(kernel, grid) }
    }

    /// The call with the arguments that all kernels take.
    fn call(&self, gpu: Gpu) -> Result<Call<'a>> {
        let [outputs, inputs] = self.shape;
        let [heads, first, _] = self.heads;
        let layout = self.weight.layout;
        let mut call = Call::new(self.op, gpu);
        call.write::<f32>("out", self.out)?.read::<f32>("x", self.x)?;
        call.read::<u32>("weight", &self.weight.codes)?;
        call.read::<u32>("weight", &self.weight.scales)?;
        call.size("weight", layout.row_words)?.size("weight", layout.scale_words)?;
        call.word(format_word(self.weight.format));
        call.size("out", outputs)?.size("x", inputs)?.size("x", self.rows)?;
        call.word(u32::from(self.mode == Mode::Add));
        call.size("heads", heads)?.size("heads", first)?;
        Ok(call)
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
    if gpu.language() != Language::Cuda || planes(Kind::Bf16, activation) != 1 {
        return Ok(None);
    }
    let words = rows.saturating_mul(rounded_words(dim)).max(1);
    Ok(Some(Tensor::zeros(words, DType::U32, device)?))
}

/// Rounds rows of `x` to bf16, once for all weights, if they are many; none if they are few.
pub(super) fn round<'a>(
    gpu: Gpu,
    room: &'a Tensor,
    x: &Tensor,
    rows: usize,
    inputs: usize,
) -> Result<Option<&'a Tensor>> {
    let octets = rows * rounded_words(inputs) / 4;
    if rows <= GEMV_PLANES_MAX || octets == 0 {
        return Ok(None);
    }
    let mut call = Call::new("matmul", gpu);
    call.write::<u32>("activations", room)?.read::<f32>("x", x)?;
    call.size("x", octets)?.size("x", inputs)?;
    let blocks = octets.div_ceil(ROUND_THREADS as usize);
    // SAFETY: the parameters of the kernel; there is room for the rows, as the caller has checked.
    unsafe { call.launch("matmul_round", Grid::row(blocks, ROUND_THREADS)) }?;
    Ok(Some(room))
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

/// The kernel for many rows of CUDA, and its grid.
fn gemm(
    kernels: [&'static str; 2],
    outputs: usize,
    rows: usize,
    heads: usize,
    parts: usize,
) -> (&'static str, Grid) {
    let small = rows <= SMALL_ROWS_MAX;
    let tile = if small { 32 } else { 128 };
    let kernel = kernels[usize::from(!small)];
    // Three parts leave no room for a second stage on every GPU.
    let stages = if parts == 3 { 1 } else { 2 };
    let shared = stages * parts * (tile + GEMM_OUTPUTS) * GEMM_STRIDE;
    let blocks = [outputs.div_ceil(GEMM_OUTPUTS), rows.div_ceil(tile), heads];
    (kernel, Grid::of(blocks, GEMM_THREADS).with_shared(shared))
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

/// By parts, and blocks of 32 or 128 rows.
const GEMM: [[&str; 2]; 3] = [
    ["matmul_gemm_1_32", "matmul_gemm_1_128"],
    ["matmul_gemm_2_32", "matmul_gemm_2_128"],
    ["matmul_gemm_3_32", "matmul_gemm_3_128"],
];

/// By blocks of 32 or 128 rows, for activations that were rounded before.
const GEMM_ROUNDED: [&str; 2] = ["matmul_gemm_rounded_32", "matmul_gemm_rounded_128"];

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
