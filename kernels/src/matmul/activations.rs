//! The input of one or several matmuls: rows in f32, and their quantized form where a weight uses
//! it, made once for all of them.

use candle_core::{Device, DeviceLocation, Tensor};

use super::{Matrix, gpu, quantize};
use crate::access::{View, check, rows_of};
use crate::error::{Error, Result};
use crate::gpu::Gpu;

/// Activations that share a scale when quantized.
pub(crate) const GROUP: usize = 32;
/// Columns for which sums of codes are kept: the smallest group of a weight.
pub(crate) const HALF: usize = 16;

/// In what form weights whose codes are integers (affine, E2M1, IQ4_NL) read activations. Others
/// always read f32.
///
/// On a GPU nothing is quantized, whatever the weight: CUDA's tensor cores multiply bf16, and this says as the sum of how
/// many of them an activation is read: `F32` 3, which is all of it, `Int16` 2, `Int8` 1. With many
/// rows the values of weights are read as the sum of as many; plain f32 always as 3 and plain f16 as
/// 2 at least. Metal reads f32 in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ActivationType {
    /// As they are: exact up to the rounding of f32.
    F32,
    /// Groups of 32 consecutive columns share a scale and are rounded to 8 bits, so that products
    /// are sums of small integers.
    Int8,
    /// The same in 15 bits, as two 8-bit halves: twice the arithmetic of `Int8`, the same reading
    /// of weights, an error some hundred times smaller.
    Int16,
}

impl ActivationType {
    /// Rows of 8-bit codes that one row of activations makes.
    pub fn planes(self) -> usize {
        match self {
            Self::F32 => 0,
            Self::Int8 => 1,
            Self::Int16 => 2,
        }
    }
}

/// Room for the quantized form of the rows of a step, allocated once.
#[derive(Debug)]
pub struct ActivationBuffer {
    activation: ActivationType,
    rows_max: usize,
    dim_max: usize,
    codes: Vec<i8>,
    scales: Vec<f32>,
    offsets: Vec<f32>,
    sums: Vec<i32>,
    /// On a GPU, where its kernels read one, the form in bf16.
    rounded: Option<Tensor>,
}

/// Rows to be multiplied with weights, from [`ActivationBuffer::prepare`].
#[derive(Debug, Clone, Copy)]
pub struct Activations<'a> {
    pub(crate) tensor: &'a Tensor,
    pub(crate) rows: usize,
    pub(crate) quantized: Option<Quantized<'a>>,
    /// How closely weights may read them.
    pub(crate) activation: ActivationType,
    /// On a GPU their form in bf16, if they are many (`gpu::round`).
    pub(crate) rounded: Option<Rounded<'a>>,
}

/// Rows in bf16, filled up with zeros to windows of 32 columns.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rounded<'a> {
    pub(crate) tensor: &'a Tensor,
    /// Whether they are in the order of the kernels with `wgmma` (`matmul_wgmma.cu`), which are then
    /// those that read them.
    pub(crate) wgmma: bool,
}

impl<'a> Activations<'a> {
    /// The leading `rows` of `x`, `[capacity, dim]`, which every weight reads as they are.
    ///
    /// # Errors
    /// Fewer rows than that.
    pub fn exact(x: &'a Tensor, rows: usize) -> Result<Self> {
        rows_of("matmul", "x", x, rows)?;
        let activation = ActivationType::F32;
        Ok(Self { tensor: x, rows, quantized: None, activation, rounded: None })
    }
}

/// Quantized rows. A plane is a row of codes: one for each row of activations in `Int8`, two
/// consecutive ones in `Int16`, whose products are added.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quantized<'a> {
    /// `[planes, groups * GROUP]`, zero beyond the last column.
    pub(crate) codes: &'a [i8],
    /// `[planes, groups]`: value of a code's unit.
    pub(crate) scales: &'a [f32],
    /// `[planes, groups]`: scale times the sum of the group's codes.
    pub(crate) offsets: &'a [f32],
    /// `[planes, groups, 2]`: sums of the codes of each half of a group.
    pub(crate) sums: &'a [i32],
    /// Groups of a row.
    pub(crate) groups: usize,
    /// Planes of a row: 1 or 2.
    pub(crate) planes: usize,
}

impl ActivationBuffer {
    /// A buffer for steps of at most `rows_max` rows of at most `dim_max` columns. It takes no
    /// memory for [`ActivationType::F32`]; on a GPU at most 2 bytes for each element.
    ///
    /// # Errors
    /// A device without an implementation, or without the kernels that were chosen
    /// ([`WGMMA_VARIABLE`](crate::gpu::WGMMA_VARIABLE)).
    pub fn new(
        rows_max: usize,
        dim_max: usize,
        activation: ActivationType,
        device: &Device,
    ) -> Result<Self> {
        let (gpu, location) = (Gpu::of_device(device), device.location());
        if gpu.is_none() && location != DeviceLocation::Cpu {
            return Err(Error::Unsupported { op: "matmul", device: location });
        }
        if let Some(gpu) = gpu {
            // Better told here than by the first prompt.
            gpu.wgmma().map_err(|what| Error::Device { op: "matmul", what })?;
        }
        let planes = if gpu.is_some() { 0 } else { activation.planes() };
        let groups = rows_max * planes * dim_max.div_ceil(GROUP);
        Ok(Self {
            activation,
            rows_max,
            dim_max,
            codes: vec![0; groups * GROUP],
            scales: vec![0.0; groups],
            offsets: vec![0.0; groups],
            sums: vec![0; groups * 2],
            rounded: match gpu {
                Some(gpu) => gpu::room(gpu, rows_max, dim_max, activation, device)?,
                None => None,
            },
        })
    }

    /// Bytes that one of these bounds on `device` holds.
    pub fn bytes_for(
        rows_max: usize,
        dim_max: usize,
        activation: ActivationType,
        device: &Device,
    ) -> u64 {
        if let Some(gpu) = Gpu::of_device(device) {
            return gpu::room_words(gpu, rows_max, dim_max, activation) as u64 * 4;
        }
        let groups = rows_max as u64 * (activation.planes() * dim_max.div_ceil(GROUP)) as u64;
        // A code for each column, and four words.
        groups * (GROUP as u64 + 4 * 4)
    }

    /// Bytes it holds.
    pub fn bytes(&self) -> usize {
        let rounded = self.rounded.as_ref().map_or(0, Tensor::elem_count);
        let words = self.scales.len() + self.offsets.len() + self.sums.len() + rounded;
        self.codes.len() + 4 * words
    }

    /// Readies the leading `rows` of `x`, `[capacity, dim]`, for matmuls with `weights`: quantizes
    /// them if one of the weights reads that form, or rounds them on a GPU. `x` must not change until they are done.
    ///
    /// # Errors
    /// More rows or columns than the buffer has room for, a tensor that is not f32 and contiguous,
    /// a device without an implementation.
    pub fn prepare<'a>(
        &'a mut self,
        x: &'a Tensor,
        rows: usize,
        weights: &[&Matrix],
    ) -> Result<Activations<'a>> {
        let integers = weights.iter().any(|weight| weight.integers().is_some());
        self.prepare_for(x, rows, integers, gpu::Readers::Weights)
    }

    /// The same for stacks of experts, which may be of several formats each.
    ///
    /// # Errors
    /// As for [`prepare`](Self::prepare).
    pub fn prepare_experts<'a>(
        &'a mut self,
        x: &'a Tensor,
        rows: usize,
        stacks: &[&[Matrix]],
    ) -> Result<Activations<'a>> {
        let mut experts = stacks.iter().copied().flatten();
        let integers = experts.any(|expert| expert.integers().is_some());
        self.prepare_for(x, rows, integers, gpu::Readers::Experts)
    }

    /// Readies rows; `integers` tells whether a weight reads their quantized form.
    fn prepare_for<'a>(
        &'a mut self,
        x: &'a Tensor,
        rows: usize,
        integers: bool,
        readers: gpu::Readers,
    ) -> Result<Activations<'a>> {
        const OP: &str = "matmul";
        let (_, dim) = rows_of(OP, "x", x, rows)?;
        let (activation, planes, gpu) = (self.activation, self.activation.planes(), Gpu::of(x));
        let as_it_is = Activations { tensor: x, rows, quantized: None, activation, rounded: None };
        if planes == 0 || !integers && gpu.is_none() {
            return Ok(as_it_is);
        }
        check(OP, "x", rows <= self.rows_max && dim <= self.dim_max, || {
            (format!("at most [{}, {}]", self.rows_max, self.dim_max), format!("[{rows}, {dim}]"))
        })?;
        if let Some(gpu) = gpu {
            let Some(room) = &self.rounded else { return Ok(as_it_is) };
            let rounded = gpu::round(gpu, room, x, (rows, dim), readers)?;
            return Ok(Activations { rounded, ..as_it_is });
        }
        let groups = dim.div_ceil(GROUP);
        let used = rows * planes * groups;
        let target = quantize::Target {
            codes: &mut self.codes[..used * GROUP],
            scales: &mut self.scales[..used],
            offsets: &mut self.offsets[..used],
            sums: &mut self.sums[..used * 2],
            groups,
            planes,
        };
        let view = View::new(OP, "x", x)?;
        quantize::rows(&view.slice()?[..rows * dim], dim, target);
        let quantized = Quantized {
            codes: &self.codes[..used * GROUP],
            scales: &self.scales[..used],
            offsets: &self.offsets[..used],
            sums: &self.sums[..used * 2],
            groups,
            planes,
        };
        Ok(Activations { quantized: Some(quantized), ..as_it_is })
    }
}
