//! A pool of tiny pages, and what it takes to write to them and to read them back.

#[cfg(feature = "emulate")]
mod emulated;
mod histories;
mod holders;
mod pages;
mod points;
mod recurrent;

use candle_core::{Device, Tensor};
use sconce_kernels::KvType;

use super::*;

const PAGE: usize = 4;
const PAGES: usize = 12;
const SEQUENCES: usize = 4;

fn layout(layers: usize) -> StateLayout {
    let group =
        AttentionGroup { layers, kv_heads: 2, key_dim: 1, value_dim: 1, kv_type: KvType::F32 };
    StateLayout {
        attention: if layers == 0 { vec![] } else { vec![group] },
        recurrent: None,
        page_tokens: PAGE,
        pages_max: PAGES,
        sequences_max: SEQUENCES,
        points_max: 0,
    }
}

fn pool() -> StatePool {
    StatePool::new(layout(2), &Device::Cpu).unwrap()
}

const POINTS: usize = 3;

const RECURRENT: RecurrentGroup = RecurrentGroup {
    layers: 2,
    conv_tail: 3,
    conv_channels: 2,
    value_heads: 1,
    key_dim: 2,
    value_dim: 4,
};

/// A pool with recurrent layers too.
fn hybrid() -> StatePool {
    let layout = StateLayout { recurrent: Some(RECURRENT), points_max: POINTS, ..layout(2) };
    StatePool::new(layout, &Device::Cpu).unwrap()
}

/// Writes `value` all over a recurrent slot of the last layer.
fn fill(pool: &StatePool, slot: u32, value: f32) {
    let layer = pool.recurrent_layer(1).unwrap();
    for tensor in [&layer.conv, &layer.delta] {
        let one = tensor.narrow(0, slot as usize, 1).unwrap();
        let filled = Tensor::full(value, one.shape(), &Device::Cpu).unwrap();
        tensor.slice_set(&filled, 0, slot as usize).unwrap();
    }
}

/// The one value that a whole recurrent slot of the last layer has.
fn filled(pool: &StatePool, slot: u32) -> f32 {
    let layer = pool.recurrent_layer(1).unwrap();
    let mut values = Vec::new();
    for tensor in [&layer.conv, &layer.delta] {
        let one = tensor.narrow(0, slot as usize, 1).unwrap().flatten_all().unwrap();
        values.extend(one.to_vec1::<f32>().unwrap());
    }
    assert_eq!(values.len(), 3 * 2 + 2 * 4);
    assert!(values.iter().all(|value| *value == values[0]));
    values[0]
}

/// Writes `value` where token `position` of `id` lives, in both tensors of the last layer.
fn write(pool: &StatePool, id: SequenceId, position: usize, value: f32) {
    let page = pool.page_table(id).unwrap()[position / PAGE] as usize;
    let layer = pool.layer(1).unwrap();
    for tensor in [&layer.keys, &layer.values] {
        let old = tensor.narrow(0, page, 1).unwrap().flatten_all().unwrap();
        let mut data = old.to_vec1::<f32>().unwrap();
        data[position % PAGE] = value;
        data[PAGE + position % PAGE] = -value;
        let new = Tensor::from_vec(data, (1, 2, PAGE, 1), &Device::Cpu).unwrap();
        tensor.slice_set(&new, 0, page).unwrap();
    }
}

/// What lies at the positions of `id`, read back through its page table.
fn read(pool: &StatePool, id: SequenceId) -> Vec<f32> {
    let layer = pool.layer(1).unwrap();
    let keys = layer.keys.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let values = layer.values.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let table = pool.page_table(id).unwrap();
    let at = |position: usize| {
        let head = table[position / PAGE] as usize * 2 * PAGE + position % PAGE;
        assert_eq!(keys[head], values[head]);
        assert_eq!(keys[head], -keys[head + PAGE], "heads of a token were torn apart");
        keys[head]
    };
    (0..pool.len(id).unwrap()).map(at).collect()
}

fn extend(pool: &mut StatePool, id: SequenceId, values: &[f32]) -> Result<(), StateError> {
    pool.reserve(id, values.len())?;
    let len = pool.len(id)?;
    for (offset, &value) in values.iter().enumerate() {
        write(pool, id, len + offset, value);
    }
    pool.advance(id, values.len())
}
