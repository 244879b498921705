//! Recurrent slots: one owner each, empty at first, copied by a fork.

use super::*;

fn write(pool: &StatePool, id: SequenceId, value: f32) {
    fill(pool, pool.recurrent_slot(id).unwrap(), value);
}

fn read(pool: &StatePool, id: SequenceId) -> f32 {
    filled(pool, pool.recurrent_slot(id).unwrap())
}

#[test]
fn a_slot_is_empty_for_every_sequence_that_is_opened_in_it() {
    let mut pool = hybrid();
    let first = pool.open().unwrap();
    write(&pool, first, 5.0);
    pool.close(first).unwrap();
    assert!(pool.recurrent_slot(first).is_err());
    let second = pool.open().unwrap();
    assert_eq!(read(&pool, second), 0.0);
}

#[test]
fn a_fork_has_the_state_of_its_origin_and_then_its_own() {
    let mut pool = hybrid();
    let origin = pool.open().unwrap();
    write(&pool, origin, 2.0);
    let fork = pool.fork(origin).unwrap();
    assert_eq!(read(&pool, fork), 2.0);
    write(&pool, fork, 3.0);
    assert_eq!((read(&pool, origin), read(&pool, fork)), (2.0, 3.0));
}

#[test]
fn a_recurrent_state_goes_back_to_nothing_or_stays() {
    let mut pool = hybrid();
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
fn bytes_count_a_slot_for_every_open_sequence_and_every_point() {
    let mut pool = hybrid();
    let slot = 2 * (3 * 2 + 2 * 4) * 4;
    assert_eq!(pool.layout().bytes_per_sequence(), slot);
    let slots = (SEQUENCES + POINTS) as u64 * slot;
    assert_eq!(pool.layout().bytes_max(), slots + PAGES as u64 * pool.layout().bytes_per_page());
    let id = pool.open().unwrap();
    assert_eq!(pool.bytes_used(), slot);
    pool.reserve(id, 1).unwrap();
    assert_eq!(pool.bytes_used(), slot + pool.layout().bytes_per_page());
    pool.take_point().unwrap();
    assert_eq!(pool.bytes_used(), 2 * slot + pool.layout().bytes_per_page());
}
