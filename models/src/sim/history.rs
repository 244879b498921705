//! What a simulated model remembers of a sequence, and where: in the pages and recurrent slots of the
//! pool, as a real model does, so that a page or a state that is not the sequence's own shows in the
//! tokens that follow.
//!
//! One attention layer has a record of the history after each token: the hash as the four elements of
//! its key, 16 bits each, and the count as its value. A recurrent model has the same record in a slot.

use candle_core::{DType, Device, Tensor};
use sconce_kernels::{KvPages, KvType, write_kv, write_rows};

use super::mix;
use crate::error::Error;
use crate::layers::step::Step;
use crate::load::architecture::StateShape;
use crate::state::{AttentionGroup, LayerKv, RecurrentGroup, StatePool, bytes};

/// Elements of a key: 16 bits of the hash each, which f32 holds exactly.
const KEY_DIM: usize = 4;

/// What a sequence's state is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct History {
    /// Of all tokens.
    pub(super) hash: u64,
    /// Completion tokens since the last token that was not one; at most 2^24, as f32 counts.
    pub(super) completed: u64,
    /// Of the records at the ends of the pages that are full: what attention to all of them gives.
    pub(super) pages: u64,
}

impl History {
    /// Takes the last token of a page to be that.
    pub(super) fn end_page(&mut self) {
        self.pages = mix(self.pages ^ self.hash);
    }
}

/// The state of the model's layers.
pub(super) fn shape(recurrent: bool) -> StateShape {
    let attention = AttentionGroup {
        layers: 1,
        kv_heads: 1,
        key_dim: KEY_DIM,
        value_dim: 1,
        kv_type: KvType::F32,
    };
    let group = RecurrentGroup {
        layers: 1,
        conv_tail: 1,
        conv_channels: 1,
        value_heads: 1,
        key_dim: KEY_DIM,
        value_dim: 1,
    };
    StateShape { attention: vec![attention], recurrent: recurrent.then_some(group) }
}

/// Reads histories of a pool, and collects those of a step until they are written.
#[derive(Debug)]
pub(super) struct Memory {
    /// History before the first token.
    first: History,
    /// The records of a step, `[step_tokens_max, KEY_DIM]` and `[step_tokens_max, 1]`.
    keys: Tensor,
    values: Tensor,
    key_rows: Vec<f32>,
    value_rows: Vec<f32>,
}

impl Memory {
    /// Room for steps of `tokens` tokens.
    ///
    /// # Errors
    /// Memory that cannot be allocated.
    pub(super) fn new(seed: u64, tokens: usize) -> Result<Self, Error> {
        Ok(Self {
            first: History { hash: mix(!seed), completed: 0, pages: 0 },
            keys: Tensor::zeros((tokens, KEY_DIM), DType::F32, &Device::Cpu)?,
            values: Tensor::zeros((tokens, 1), DType::F32, &Device::Cpu)?,
            key_rows: Vec::new(),
            value_rows: Vec::new(),
        })
    }

    /// The history that segment `segment` of a step follows.
    ///
    /// # Errors
    /// State that cannot be read.
    pub(super) fn recall(
        &self,
        pool: &StatePool,
        step: &Step,
        segment: usize,
    ) -> Result<History, Error> {
        let of = step.segments[segment];
        let pages = &step.pages[of.first_page..][..of.page_count];
        let page_tokens = pool.layout().page_tokens;
        let kv = pool.layer(0).expect("a simulated model has one attention layer");
        let mut history = match pool.recurrent_layer(0) {
            Some(_) => self.read_slot(pool, step.recurrent[segment].slot)?,
            None => self.first,
        };
        if let Some(last) = of.first_position.checked_sub(1) {
            let record = record(kv, pages[last / page_tokens], last % page_tokens)?;
            let recurrent = pool.recurrent_layer(0).is_some();
            // The page has to agree with the slot, or neither is to be trusted.
            let hash = match recurrent && record.hash != history.hash {
                true => mix(record.hash ^ history.hash.rotate_left(1)),
                false => record.hash,
            };
            let completed = if recurrent { history.completed } else { record.completed };
            history = History { hash, completed, ..history };
        }
        for page in &pages[..of.first_position / page_tokens] {
            let History { hash, .. } = record(kv, *page, page_tokens - 1)?;
            history.pages = mix(history.pages ^ hash);
        }
        Ok(history)
    }

    /// Forgets what was collected.
    pub(super) fn clear(&mut self) {
        self.key_rows.clear();
        self.value_rows.clear();
    }

    /// Collects the record of the next row of the step.
    pub(super) fn push(&mut self, history: History) {
        self.key_rows.extend(elements(history.hash));
        self.value_rows.push(history.completed as f32);
    }

    /// Writes the collected records where the rows of the step belong.
    ///
    /// # Errors
    /// State that cannot be written.
    pub(super) fn write(&self, pool: &StatePool, step: &Step) -> Result<(), Error> {
        write_rows(&self.keys, &self.key_rows)?;
        write_rows(&self.values, &self.value_rows)?;
        let kv = pool.layer(0).expect("a simulated model has one attention layer");
        let pages = KvPages { keys: &kv.keys, values: &kv.values };
        Ok(write_kv(pages, &self.keys, &self.values, &step.slots)?)
    }

    /// Writes a history to a recurrent slot, if the model has any. A slot of zeros is the history
    /// before the first token.
    ///
    /// # Errors
    /// State that cannot be written.
    pub(super) fn write_slot(
        &self,
        pool: &StatePool,
        slot: u32,
        history: History,
    ) -> Result<(), Error> {
        let Some(layer) = pool.recurrent_layer(0) else { return Ok(()) };
        let hash = elements(history.hash ^ self.first.hash);
        bytes::write(&layer.delta, slot, bytemuck::cast_slice(&hash))?;
        bytes::write(&layer.conv, slot, bytemuck::bytes_of(&(history.completed as f32)))?;
        Ok(())
    }

    fn read_slot(&self, pool: &StatePool, slot: u32) -> Result<History, Error> {
        let layer = pool.recurrent_layer(0).expect("the caller has seen it");
        let (hash, completed) = (entry(&layer.delta, slot)?, entry(&layer.conv, slot)?);
        let hash = hash_of(hash.into_iter()) ^ self.first.hash;
        Ok(History { hash, completed: completed[0] as u64, pages: 0 })
    }
}

/// The record of the token at `offset` of a page; keys are transposed, see `write_kv`.
fn record(kv: &LayerKv, page: u32, offset: usize) -> Result<History, Error> {
    let (keys, values) = (entry(&kv.keys, page)?, entry(&kv.values, page)?);
    let hash = hash_of(keys.into_iter().skip(offset).step_by(values.len()));
    Ok(History { hash, completed: values[offset] as u64, pages: 0 })
}

/// Elements of an entry of the first dimension.
fn entry(tensor: &Tensor, index: u32) -> Result<Vec<f32>, Error> {
    let data = bytes::read(tensor, index)?;
    let element = |four: &[u8]| f32::from_le_bytes(four.try_into().expect("chunks of four"));
    Ok(data.chunks_exact(bytes::ELEMENT).map(element).collect())
}

fn elements(hash: u64) -> [f32; KEY_DIM] {
    std::array::from_fn(|index| f32::from((hash >> (16 * index)) as u16))
}

fn hash_of(elements: impl Iterator<Item = f32>) -> u64 {
    elements
        .take(KEY_DIM)
        .enumerate()
        .fold(0, |hash, (index, element)| hash | u64::from(element as u16) << (16 * index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_four_numbers_that_f32_holds() {
        for hash in [0, u64::MAX, 0x0123_4567_89ab_cdef] {
            assert_eq!(hash_of(elements(hash).into_iter()), hash);
        }
        assert_eq!(elements(0xffff_0000_0001_0002), [2.0, 1.0, 0.0, 65535.0]);
    }
}
