//! Recurrent slots: one owner each, empty at first, copied by a fork.

use candle_core::{Device, Tensor};

use super::*;

const GROUP: RecurrentGroup = RecurrentGroup {
    layers: 2,
    conv_tail: 3,
    conv_channels: 2,
    value_heads: 1,
    key_dim: 2,
    value_dim: 4,
};

fn pool() -> StatePool {
    let attention = AttentionGroup { layers: 1, kv_heads: 1, key_dim: 2, value_dim: 6 };
    let layout = StateLayout {
        attention: vec![attention],
        recurrent: Some(GROUP),
        page_tokens: 4,
        pages_max: 8,
        sequences_max: 3,
    };
    StatePool::new(layout, &Device::Cpu).unwrap()
}

/// Writes `value` all over the state of a sequence in the last layer.
fn write(pool: &StatePool, id: SequenceId, value: f32) {
    let slot = pool.recurrent_slot(id).unwrap() as usize;
    let layer = pool.recurrent_layer(1).unwrap();
    for tensor in [&layer.conv, &layer.delta] {
        let one = tensor.narrow(0, slot, 1).unwrap();
        let filled = Tensor::full(value, one.shape(), &Device::Cpu).unwrap();
        tensor.slice_set(&filled, 0, slot).unwrap();
    }
}

/// The one value that the whole state of a sequence has in the last layer.
fn read(pool: &StatePool, id: SequenceId) -> f32 {
    let slot = pool.recurrent_slot(id).unwrap() as usize;
    let layer = pool.recurrent_layer(1).unwrap();
    let mut values = Vec::new();
    for tensor in [&layer.conv, &layer.delta] {
        let one = tensor.narrow(0, slot, 1).unwrap().flatten_all().unwrap();
        values.extend(one.to_vec1::<f32>().unwrap());
    }
    assert_eq!(values.len(), 3 * 2 + 2 * 4);
    assert!(values.iter().all(|value| *value == values[0]));
    values[0]
}

#[test]
fn a_slot_is_empty_for_every_sequence_that_is_opened_in_it() {
    let mut pool = pool();
    let first = pool.open().unwrap();
    write(&pool, first, 5.0);
    pool.close(first).unwrap();
    assert!(pool.recurrent_slot(first).is_err());
    let second = pool.open().unwrap();
    assert_eq!(read(&pool, second), 0.0);
}

#[test]
fn a_fork_has_the_state_of_its_origin_and_then_its_own() {
    let mut pool = pool();
    let origin = pool.open().unwrap();
    write(&pool, origin, 2.0);
    let fork = pool.fork(origin).unwrap();
    assert_eq!(read(&pool, fork), 2.0);
    write(&pool, fork, 3.0);
    assert_eq!((read(&pool, origin), read(&pool, fork)), (2.0, 3.0));
}

#[test]
fn a_recurrent_state_goes_back_to_nothing_or_stays() {
    let mut pool = pool();
    let id = pool.open().unwrap();
    pool.reserve(id, 6).unwrap();
    pool.advance(id, 6).unwrap();
    write(&pool, id, 1.0);
    let error = pool.truncate(id, 5).unwrap_err();
    assert!(matches!(error, StateError::Recurrent { requested: 5, len: 6, .. }), "{error}");
    assert_eq!((pool.len(id).unwrap(), read(&pool, id)), (6, 1.0));
    pool.truncate(id, 6).unwrap();
    assert_eq!(read(&pool, id), 1.0);
    pool.truncate(id, 0).unwrap();
    assert_eq!((pool.len(id).unwrap(), read(&pool, id)), (0, 0.0));
    write(&pool, id, 4.0);
    pool.truncate(id, 0).unwrap();
    assert_eq!(read(&pool, id), 0.0);
    pool.check_invariants().unwrap();
}

#[test]
fn bytes_count_a_slot_for_every_open_sequence() {
    let mut pool = pool();
    let slot = 2 * (3 * 2 + 2 * 4) * 4;
    assert_eq!(pool.layout().bytes_per_sequence(), slot);
    assert_eq!(pool.layout().bytes_max(), 3 * slot + 8 * 4 * (2 + 6) * 4);
    let id = pool.open().unwrap();
    assert_eq!(pool.bytes_used(), slot);
    pool.reserve(id, 1).unwrap();
    assert_eq!(pool.bytes_used(), slot + 4 * (2 + 6) * 4);
}
