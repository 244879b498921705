//! Sequences and their pages: reservations, forks, truncations, bounds.

use candle_core::Device;

use super::*;

#[test]
fn a_stale_id_is_an_error_and_not_the_next_sequence_of_the_slot() {
    let mut pool = pool();
    let first = pool.open().unwrap();
    pool.close(first).unwrap();
    let second = pool.open().unwrap();
    assert_ne!(first, second);
    assert!(matches!(pool.len(first), Err(StateError::NotOpen(id)) if id == first));
    assert!(matches!(pool.close(first), Err(StateError::NotOpen(_))));
    assert!(matches!(pool.reserve(first, 1), Err(StateError::NotOpen(_))));
    assert_eq!(pool.len(second).unwrap(), 0);
}

#[test]
fn a_reservation_that_does_not_fit_says_both_numbers_and_changes_nothing() {
    let mut pool = pool();
    let id = pool.open().unwrap();
    extend(&mut pool, id, &[1.0; PAGE + 1]).unwrap();
    let error = pool.reserve(id, PAGE * PAGES).unwrap_err();
    // PAGES full pages and the token that spills, of which two are held already.
    let expected = (PAGES + 2 - 2, PAGES - 2, PAGES);
    assert!(
        matches!(error, StateError::OutOfPages { needed, free, max }
            if (needed, free, max) == expected),
        "{error}"
    );
    assert_eq!((pool.pages_used(), pool.room(id).unwrap()), (2, PAGE - 1));
    assert!(pool.reserve(id, usize::MAX).is_err());
    pool.check_invariants().unwrap();
}

#[test]
fn reserving_twice_takes_pages_once() {
    let mut pool = pool();
    let id = pool.open().unwrap();
    pool.reserve(id, PAGE + 1).unwrap();
    pool.reserve(id, PAGE + 2).unwrap();
    assert_eq!((pool.pages_used(), pool.room(id).unwrap()), (2, 2 * PAGE));
    pool.truncate(id, 0).unwrap();
    assert_eq!(pool.pages_used(), 0);
}

#[test]
fn tokens_without_a_reservation_are_refused() {
    let mut pool = pool();
    let id = pool.open().unwrap();
    let error = pool.advance(id, 1).unwrap_err();
    assert!(matches!(error, StateError::NoRoom { tokens: 1, room: 0, .. }), "{error}");
}

#[test]
fn the_slots_are_bounded_and_reused() {
    let mut pool = pool();
    let ids: Vec<_> = (0..SEQUENCES).map(|_| pool.open().unwrap()).collect();
    assert!(matches!(pool.open(), Err(StateError::OutOfSequences { max: SEQUENCES })));
    assert!(matches!(pool.fork(ids[0]), Err(StateError::OutOfSequences { .. })));
    pool.close(ids[2]).unwrap();
    pool.open().unwrap();
    assert_eq!(pool.sequences(), SEQUENCES);
}

#[test]
fn a_fork_shares_pages_until_one_of_the_two_goes_on_inside_one() {
    let mut pool = pool();
    let parent = pool.open().unwrap();
    extend(&mut pool, parent, &[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
    let child = pool.fork(parent).unwrap();
    assert_eq!(pool.pages_used(), 2);
    assert_eq!(pool.room(parent).unwrap(), 0, "the parent may not write to a shared page either");

    extend(&mut pool, child, &[6.0]).unwrap();
    assert_eq!(pool.pages_used(), 3);
    extend(&mut pool, parent, &[7.0]).unwrap();
    assert_eq!(pool.pages_used(), 3, "the parent is the last holder of its page");
    assert_eq!(read(&pool, parent), [1.0, 2.0, 3.0, 4.0, 5.0, 7.0]);
    assert_eq!(read(&pool, child), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);

    pool.close(parent).unwrap();
    assert_eq!(read(&pool, child), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    pool.close(child).unwrap();
    assert_eq!(pool.pages_used(), 0);
}

#[test]
fn a_fork_does_not_share_what_was_only_reserved() {
    let mut pool = pool();
    let parent = pool.open().unwrap();
    extend(&mut pool, parent, &[1.0; PAGE]).unwrap();
    pool.reserve(parent, 1).unwrap();
    let child = pool.fork(parent).unwrap();
    assert_eq!(pool.page_table(child).unwrap().len(), 1);
    extend(&mut pool, parent, &[2.0]).unwrap();
    extend(&mut pool, child, &[3.0]).unwrap();
    assert_eq!(read(&pool, parent)[PAGE], 2.0);
    assert_eq!(read(&pool, child)[PAGE], 3.0);
    pool.check_invariants().unwrap();
}

#[test]
fn a_copy_that_finds_no_page_leaves_the_shared_one_alone() {
    let mut pool = pool();
    let parent = pool.open().unwrap();
    extend(&mut pool, parent, &[1.0; PAGE * PAGES - 1]).unwrap();
    let child = pool.fork(parent).unwrap();
    let error = extend(&mut pool, child, &[2.0]).unwrap_err();
    assert!(matches!(error, StateError::OutOfPages { needed: 1, free: 0, .. }), "{error}");
    assert_eq!(read(&pool, child), vec![1.0; PAGE * PAGES - 1]);
    pool.check_invariants().unwrap();
}

#[test]
fn a_pool_without_layers_counts_pages_and_no_bytes() {
    let mut pool = StatePool::new(layout(0), &Device::Cpu).unwrap();
    let id = pool.open().unwrap();
    pool.reserve(id, PAGE * PAGES).unwrap();
    assert_eq!((pool.pages_free(), pool.bytes_used()), (0, 0));
    assert!(pool.layer(0).is_none());
}

#[test]
fn bytes_are_those_of_keys_and_values_in_all_layers() {
    let layout = layout(3);
    assert_eq!(layout.bytes_per_token(), 3 * 2 * 2 * 4);
    let mut pool = StatePool::new(layout, &Device::Cpu).unwrap();
    let held: usize = [pool.layer(0), pool.layer(1), pool.layer(2)]
        .iter()
        .map(|layer| layer.unwrap().keys.elem_count() * 2 * 4)
        .sum();
    assert_eq!(pool.layout().bytes_max(), held as u64);
    let id = pool.open().unwrap();
    pool.reserve(id, 1).unwrap();
    assert_eq!(pool.bytes_used(), pool.layout().bytes_per_page());
}

#[test]
fn a_layout_of_nothing_or_of_too_much_is_refused() {
    for broken in [
        StateLayout { pages_max: 0, ..layout(1) },
        StateLayout { page_tokens: 0, ..layout(1) },
        StateLayout { sequences_max: 0, ..layout(1) },
        StateLayout { points_max: 1, ..layout(1) },
        StateLayout { pages_max: 1 << 40, ..layout(0) },
        StateLayout { pages_max: usize::MAX, ..layout(1) },
    ] {
        let error = StatePool::new(broken, &Device::Cpu).unwrap_err();
        assert!(matches!(error, StateError::Layout { .. }), "{error}");
    }
}
