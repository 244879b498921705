//! The pool against a model that keeps every sequence as a plain list of what was written.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use proptest::prelude::*;

use super::*;

const PAGE: usize = 4;
const PAGES: usize = 12;
const SEQUENCES: usize = 4;

fn layout(layers: usize) -> StateLayout {
    let group = AttentionGroup { layers, kv_heads: 2, key_dim: 1, value_dim: 1 };
    StateLayout {
        attention: if layers == 0 { vec![] } else { vec![group] },
        recurrent: None,
        page_tokens: PAGE,
        pages_max: PAGES,
        sequences_max: SEQUENCES,
    }
}

fn pool() -> StatePool {
    StatePool::new(layout(2), &Device::Cpu).unwrap()
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
        StateLayout { pages_max: 1 << 40, ..layout(0) },
        StateLayout { pages_max: usize::MAX, ..layout(1) },
    ] {
        let error = StatePool::new(broken, &Device::Cpu).unwrap_err();
        assert!(matches!(error, StateError::Layout { .. }), "{error}");
    }
}

/// One step of a random history; indices choose among the open sequences.
#[derive(Debug, Clone)]
enum Action {
    Open,
    Extend(usize, usize),
    Reserve(usize, usize),
    Fork(usize),
    Truncate(usize, usize),
    Close(usize),
}

fn action() -> impl Strategy<Value = Action> {
    let which = 0..SEQUENCES;
    prop_oneof![
        Just(Action::Open),
        (which.clone(), 0..3 * PAGE).prop_map(|(s, n)| Action::Extend(s, n)),
        (which.clone(), 0..2 * PAGE).prop_map(|(s, n)| Action::Reserve(s, n)),
        which.clone().prop_map(Action::Fork),
        (which.clone(), 0..4 * PAGE).prop_map(|(s, n)| Action::Truncate(s, n)),
        which.prop_map(Action::Close),
    ]
}

/// Applies `action` to both; the naive model follows where the pool succeeded.
fn apply(
    pool: &mut StatePool,
    naive: &mut BTreeMap<SequenceId, Vec<f32>>,
    action: &Action,
    next: &mut f32,
) {
    let pick = |index: &usize| naive.keys().nth(*index).copied();
    let tables = |pool: &StatePool| -> Vec<Vec<u32>> {
        naive.keys().map(|&id| pool.page_table(id).unwrap().to_vec()).collect()
    };
    let before = (pool.pages_free(), pool.sequences(), tables(pool));
    let result = match action {
        Action::Open => pool.open().map(|id| {
            naive.insert(id, vec![]);
        }),
        Action::Fork(index) => pick(index).map_or(Ok(()), |id| {
            pool.fork(id).map(|fork| {
                naive.insert(fork, naive[&id].clone());
            })
        }),
        Action::Reserve(index, tokens) => {
            pick(index).map_or(Ok(()), |id| pool.reserve(id, *tokens))
        }
        Action::Extend(index, tokens) => pick(index).map_or(Ok(()), |id| {
            let values: Vec<f32> = (0..*tokens).map(|offset| *next + offset as f32).collect();
            *next += *tokens as f32;
            extend(pool, id, &values).map(|()| naive.get_mut(&id).unwrap().extend(values))
        }),
        Action::Truncate(index, len) => pick(index).map_or(Ok(()), |id| {
            pool.truncate(id, *len).map(|()| naive.get_mut(&id).unwrap().truncate(*len))
        }),
        Action::Close(index) => pick(index).map_or(Ok(()), |id| {
            naive.remove(&id);
            pool.close(id)
        }),
    };
    if let Err(error) = result {
        let after: Vec<Vec<u32>> =
            naive.keys().map(|&id| pool.page_table(id).unwrap().to_vec()).collect();
        assert_eq!(before, (pool.pages_free(), pool.sequences(), after), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_sequence_reads_what_it_wrote_whatever_the_others_do(
        actions in prop::collection::vec(action(), 1..60)
    ) {
        let mut pool = pool();
        let mut naive = BTreeMap::new();
        let mut next = 1.0;
        for action in &actions {
            apply(&mut pool, &mut naive, action, &mut next);
            pool.check_invariants().map_err(TestCaseError::fail)?;
            prop_assert_eq!(pool.sequences(), naive.len());
            for (&id, values) in &naive {
                prop_assert_eq!(&read(&pool, id), values);
            }
        }
        for &id in naive.keys() {
            pool.close(id).unwrap();
        }
        prop_assert_eq!(pool.pages_free(), PAGES);
    }
}
