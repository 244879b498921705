//! What rows chose, in lists on a GPU: how they lie there, and the kernels that fill them. Nothing
//! is read back; grids are as large as any choice may need.

use candle_core::{DType, Device, DeviceLocation, Tensor};

use super::super::BLOCK_PAIRS;
use super::super::lists::blocks_max;
use super::super::routing::{RouterOptions, Scoring};
use crate::error::{Error, Result};
use crate::gpu::{Call, Gpu, Grid, WARP};

const OP: &str = "route";
/// Rows of a block of the routing kernels: those that chose an expert are the bits of a word.
const TILE_ROWS: usize = 32;
/// Threads of a block at most.
const THREADS_MAX: u32 = 256;
/// Bytes of shared memory of a block at most: what Metal has.
const SHARED_MAX: usize = 32 * 1024;
/// Bytes of shared memory that sums over a block take beside.
const SUMS_BYTES: usize = 1024;
/// Words of a block in its list: expert, first pair, number of pairs, nothing.
const BLOCK_WORDS: usize = 4;

/// Lists for the largest step; those of the last routing are their leading parts.
#[derive(Debug)]
pub(in super::super) struct GpuLists {
    experts: usize,
    /// `[rows, choices]`, the best first.
    ids: Tensor,
    /// `[rows, choices]`, f32.
    pub(super) weights: Tensor,
    /// `[rows, choices]`: the pair that a choice became.
    pub(super) pairs: Tensor,
    /// `[pairs]`: the row of each pair.
    pub(super) pair_rows: Tensor,
    /// `[blocks, BLOCK_WORDS]`: runs of pairs of one expert, of at most [`BLOCK_PAIRS`]; behind them
    /// blocks without pairs, up to [`blocks`](Self::blocks).
    pub(super) blocks: Tensor,
    /// `[tiles, experts]`: which rows of a tile chose an expert.
    masks: Tensor,
    /// `[experts]`: the correction where there is none.
    zeros: Tensor,
}

/// Sizes of the lists, in words of 4 bytes; one at least, as not every device can allocate nothing.
struct Sizes {
    pairs: usize,
    blocks: usize,
    masks: usize,
    experts: usize,
}

impl Sizes {
    fn new(rows: usize, experts: usize, choices: usize) -> Self {
        let pairs = rows.saturating_mul(choices);
        Self {
            pairs: pairs.max(1),
            blocks: blocks_max(experts, pairs).saturating_mul(BLOCK_WORDS).max(1),
            masks: rows.div_ceil(TILE_ROWS).saturating_mul(experts).max(1),
            experts: experts.max(1),
        }
    }

    fn bytes(&self) -> u64 {
        let lists = self.pairs.saturating_mul(4).saturating_add(self.blocks);
        (lists.saturating_add(self.masks).saturating_add(self.experts) as u64).saturating_mul(4)
    }
}

impl GpuLists {
    /// Room for `rows` rows that choose at most `choices` of `experts`.
    ///
    /// # Errors
    /// The device cannot allocate.
    pub(in super::super) fn new(
        rows: usize,
        experts: usize,
        choices: usize,
        device: &Device,
    ) -> Result<Self> {
        let sizes = Sizes::new(rows, experts, choices);
        let list = |len: usize, dtype| Tensor::zeros(len, dtype, device);
        Ok(Self {
            experts,
            ids: list(sizes.pairs, DType::U32)?,
            weights: list(sizes.pairs, DType::F32)?,
            pairs: list(sizes.pairs, DType::U32)?,
            pair_rows: list(sizes.pairs, DType::U32)?,
            blocks: list(sizes.blocks, DType::U32)?,
            masks: list(sizes.masks, DType::U32)?,
            zeros: list(sizes.experts, DType::F32)?,
        })
    }

    /// Bytes that lists of this size take.
    pub(in super::super) fn bytes_for(rows: usize, experts: usize, choices: usize) -> u64 {
        Sizes::new(rows, experts, choices).bytes()
    }

    /// Bytes they hold.
    pub(in super::super) fn bytes(&self) -> u64 {
        let pairs = [&self.ids, &self.weights, &self.pairs, &self.pair_rows];
        let lists = pairs.into_iter().chain([&self.blocks, &self.masks, &self.zeros]);
        lists.map(|list| list.elem_count() as u64 * 4).sum()
    }

    /// Where they lie.
    pub(in super::super) fn location(&self) -> DeviceLocation {
        self.ids.device().location()
    }

    /// Blocks of pairs that a grid must have for any choice of as many pairs.
    pub(super) fn blocks(&self, pairs: usize) -> usize {
        blocks_max(self.experts, pairs)
    }

    /// Chooses for the leading `rows` of `logits`, with or without a correction, and sorts the pairs.
    ///
    /// # Errors
    /// More experts than shared memory has room for; the kernels' errors.
    pub(in super::super) fn route(
        &self,
        gpu: Gpu,
        inputs: (&Tensor, Option<&Tensor>),
        options: &RouterOptions,
        rows: usize,
    ) -> Result<()> {
        let (tiles, warps) = (rows.div_ceil(TILE_ROWS), self.warps(options.groups)?);
        let mut call = Call::new(OP, gpu);
        self.choosing(&mut call, inputs, options, rows)?;
        if tiles == 1 {
            self.sorting(&mut call, options, rows)?;
            let grid = self.grid(1, warps.min(rows), options);
            // SAFETY: the parameters of the kernel; there is room for `rows` rows in all lists.
            return unsafe { call.launch("route_few", grid) };
        }
        // SAFETY: as above.
        unsafe { call.launch("route_choose", self.grid(tiles, warps, options)) }?;
        // It holds the lists that the sort reads.
        drop(call);
        let mut call = Call::new(OP, gpu);
        call.read::<u32>("ids", &self.ids)?.read::<u32>("masks", &self.masks)?;
        call.size("rows", rows)?.size("experts", self.experts)?;
        call.size("choices", options.experts_per_token)?;
        self.sorting(&mut call, options, rows)?;
        let grid = Grid::row(tiles, THREADS_MAX).with_shared(self.experts * 4);
        // SAFETY: as above.
        unsafe { call.launch("route_sort", grid) }
    }

    /// Ids, weights and pairs of the leading pairs, copied to the host.
    ///
    /// # Errors
    /// The device cannot be read.
    pub(in super::super) fn copied(&self, pairs: usize) -> Result<(Vec<u32>, Vec<f32>, Vec<u32>)> {
        if pairs == 0 {
            return Ok(Default::default());
        }
        let part = |list: &Tensor| list.narrow(0, 0, pairs);
        let (ids, weights) = (part(&self.ids)?.to_vec1()?, part(&self.weights)?.to_vec1()?);
        Ok((ids, weights, part(&self.pairs)?.to_vec1()?))
    }

    /// Arguments of the choice.
    fn choosing<'a>(
        &'a self,
        call: &mut Call<'a>,
        (logits, correction): (&'a Tensor, Option<&'a Tensor>),
        options: &RouterOptions,
        rows: usize,
    ) -> Result<()> {
        call.write::<u32>("ids", &self.ids)?.write::<f32>("weights", &self.weights)?;
        call.write::<u32>("masks", &self.masks)?.read::<f32>("logits", logits)?;
        call.read::<f32>("correction", correction.unwrap_or(&self.zeros))?;
        call.size("rows", rows)?.size("experts", self.experts)?;
        call.size("choices", options.experts_per_token)?.size("groups", options.groups)?;
        call.size("groups_per_token", options.groups_per_token)?;
        call.word(u32::from(options.scoring == Scoring::Sigmoid));
        call.word(u32::from(options.renormalize)).real(options.scale);
        Ok(())
    }

    /// Arguments of the sort that the choice has not.
    fn sorting<'a>(
        &'a self,
        call: &mut Call<'a>,
        options: &RouterOptions,
        rows: usize,
    ) -> Result<()> {
        call.write::<u32>("pairs", &self.pairs)?.write::<u32>("pair_rows", &self.pair_rows)?;
        call.write::<u32>("blocks", &self.blocks)?;
        call.size("blocks", self.blocks(rows * options.experts_per_token))?;
        call.word(BLOCK_PAIRS as u32);
        Ok(())
    }

    /// Warps of a block that choose side by side: each keeps a word for each expert and each group.
    fn warps(&self, groups: usize) -> Result<usize> {
        let room = (SHARED_MAX - SUMS_BYTES).saturating_sub(self.experts * 4);
        let warps = room / ((self.experts + groups) * 4).max(1);
        if warps == 0 {
            return Err(Error::Shape {
                op: OP,
                operand: "experts",
                expected: "at most 3968, or half as many in groups of one".to_owned(),
                found: self.experts.to_string(),
            });
        }
        Ok(warps.min((THREADS_MAX / WARP) as usize))
    }

    /// Blocks of as many warps that choose.
    fn grid(&self, tiles: usize, warps: usize, options: &RouterOptions) -> Grid {
        let words = self.experts + warps * (self.experts + options.groups);
        Grid::row(tiles, warps as u32 * WARP).with_shared(words * 4)
    }
}
