//! Points, and sequences that start from them.

use super::*;

fn bytes_of(pool: &StatePool, point: PointId) -> Vec<u8> {
    let mut bytes = vec![7; pool.layout().bytes_per_sequence() as usize];
    pool.read_point(point, &mut bytes).unwrap();
    bytes
}

/// A sequence of `values`, with a recurrent state of its last value.
fn sequence(pool: &mut StatePool, values: &[f32]) -> SequenceId {
    let id = pool.open().unwrap();
    extend(pool, id, values).unwrap();
    fill(pool, pool.recurrent_slot(id).unwrap(), *values.last().unwrap());
    id
}

fn state(pool: &StatePool, id: SequenceId) -> f32 {
    filled(pool, pool.recurrent_slot(id).unwrap())
}

#[test]
fn points_are_bounded_and_leave_every_sequence_its_slot() {
    let mut pool = hybrid();
    let points: Vec<_> = (0..POINTS).map(|_| pool.take_point().unwrap()).collect();
    assert!(matches!(pool.take_point(), Err(StateError::OutOfPoints { max: POINTS })));
    let ids: Vec<_> = (0..SEQUENCES).map(|_| pool.open().unwrap()).collect();
    assert!(matches!(pool.save_point(ids[0]), Err(StateError::OutOfPoints { .. })));
    assert!(matches!(pool.close_to_point(ids[0]), Err(StateError::OutOfPoints { .. })));
    assert_eq!((pool.sequences(), pool.points_used(), pool.points_free()), (SEQUENCES, POINTS, 0));
    let mut slots: Vec<u32> = ids.iter().map(|&id| pool.recurrent_slot(id).unwrap()).collect();
    slots.extend(points.iter().map(|&point| pool.point_slot(point).unwrap()));
    slots.sort_unstable();
    slots.dedup();
    assert_eq!(slots.len(), SEQUENCES + POINTS);
    pool.check_invariants().unwrap();
    points.into_iter().for_each(|point| pool.release_point(point).unwrap());
    pool.close_to_point(ids[0]).unwrap();
    pool.check_invariants().unwrap();
}

#[test]
fn a_pool_without_recurrent_layers_has_no_points() {
    let mut pool = pool();
    assert!(matches!(pool.take_point(), Err(StateError::OutOfPoints { max: 0 })));
    let id = pool.open().unwrap();
    assert!(pool.close_to_point(id).is_err());
    assert_eq!(pool.len(id).unwrap(), 0);
}

#[test]
fn a_saved_point_keeps_what_the_sequence_had() {
    let mut pool = hybrid();
    let id = sequence(&mut pool, &[2.0]);
    let point = pool.save_point(id).unwrap();
    fill(&pool, pool.recurrent_slot(id).unwrap(), 3.0);
    assert_eq!(filled(&pool, pool.point_slot(point).unwrap()), 2.0);
    pool.release_point(point).unwrap();
    assert!(matches!(pool.point_slot(point), Err(StateError::NotAPoint(id)) if id == point));
    assert!(matches!(pool.read_point(point, &mut []), Err(StateError::NotAPoint(_))));
    assert!(pool.release_point(point).is_err());
}

#[test]
fn a_closed_sequence_leaves_its_slot_as_a_point() {
    let mut pool = hybrid();
    let id = sequence(&mut pool, &[1.0, 2.0]);
    let slot = pool.recurrent_slot(id).unwrap();
    let point = pool.close_to_point(id).unwrap();
    assert!(matches!(pool.len(id), Err(StateError::NotOpen(_))));
    assert_eq!((pool.point_slot(point).unwrap(), filled(&pool, slot)), (slot, 2.0));
    assert_eq!((pool.pages_used(), pool.sequences(), pool.points_used()), (0, 0, 1));
    let next = pool.open().unwrap();
    assert_eq!(state(&pool, next), 0.0);
    assert_eq!(filled(&pool, slot), 2.0);
    pool.check_invariants().unwrap();
}

#[test]
fn bytes_of_a_point_are_its_state_and_nothing_else() {
    let mut pool = hybrid();
    let id = sequence(&mut pool, &[4.0]);
    let point = pool.save_point(id).unwrap();
    let bytes = bytes_of(&pool, point);
    assert_eq!(bytes.len() as u64, pool.layout().bytes_per_sequence());
    let other = pool.take_point().unwrap();
    fill(&pool, pool.point_slot(other).unwrap(), 9.0);
    pool.write_point(other, &bytes).unwrap();
    assert_eq!(
        (filled(&pool, pool.point_slot(other).unwrap()), bytes_of(&pool, other)),
        (4.0, bytes.clone())
    );
    let fresh = pool.open().unwrap();
    pool.write_recurrent(fresh, &bytes).unwrap();
    assert_eq!((state(&pool, fresh), state(&pool, id)), (4.0, 4.0));
    let error = pool.write_point(other, &bytes[1..]).unwrap_err().to_string();
    assert_eq!(error, "state of a sequence: expected 112 bytes, found 111");
    assert!(matches!(pool.write_recurrent(fresh, &[]), Err(StateError::Bytes { .. })));
}

#[test]
fn a_sequence_opened_at_a_prefix_goes_on_as_its_own() {
    let mut pool = hybrid();
    let values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    let origin = sequence(&mut pool, &values);
    let pages = pool.page_table(origin).unwrap().to_vec();
    pool.share_pages(&pages).unwrap();
    let point = pool.close_to_point(origin).unwrap();
    let bytes = bytes_of(&pool, point);
    let opened: Vec<_> = [PrefixPoint::Slot(point), PrefixPoint::Bytes(&bytes)]
        .into_iter()
        .map(|point| pool.open_at(Prefix { len: 6, pages: &pages, point }).unwrap())
        .collect();
    for (index, &id) in opened.iter().enumerate() {
        assert_eq!((read(&pool, id), state(&pool, id)), (values.to_vec(), 6.0));
        assert_eq!(pool.room(id).unwrap(), 0, "the border page is shared");
        extend(&mut pool, id, &[10.0 + index as f32]).unwrap();
        fill(&pool, pool.recurrent_slot(id).unwrap(), 10.0 + index as f32);
    }
    assert_eq!((read(&pool, opened[0])[6], read(&pool, opened[1])[6]), (10.0, 11.0));
    assert_eq!(filled(&pool, pool.point_slot(point).unwrap()), 6.0);
    assert_eq!(pool.page_holders(pages[0]), 3);
    // In the middle of the last page a prefix may end before what the page has.
    let short = Prefix { len: 5, pages: &pages, point: PrefixPoint::Slot(point) };
    let short = pool.open_at(short).unwrap();
    extend(&mut pool, short, &[7.0]).unwrap();
    assert_eq!(read(&pool, short), [1.0, 2.0, 3.0, 4.0, 5.0, 7.0]);
    pool.check_invariants().unwrap();
}

#[test]
fn a_prefix_that_cannot_be_is_refused_and_changes_nothing() {
    let mut pool = hybrid();
    let origin = sequence(&mut pool, &[1.0; PAGE + 1]);
    let pages = pool.page_table(origin).unwrap().to_vec();
    let point = pool.save_point(origin).unwrap();
    let stale = pool.take_point().unwrap();
    pool.release_point(stale).unwrap();
    let slot = PrefixPoint::Slot(point);
    let len = PAGE + 1;
    for (prefix, expected) in [
        (Prefix { len, pages: &pages[..1], point: slot }, "expected 2 pages for 5 tokens, found 1"),
        (
            Prefix { len: PAGE, pages: &pages, point: slot },
            "expected 1 pages for 4 tokens, found 2",
        ),
        (Prefix { len, pages: &pages, ..Prefix::default() }, "a recurrent state for 5 tokens"),
        (Prefix { len: 0, pages: &[], point: slot }, "no recurrent state for 0 tokens"),
        (Prefix { len, pages: &[pages[0], 9], point: slot }, "page 9 is not held"),
        (Prefix { len, pages: &[99, pages[0]], point: slot }, "page 99 is not held"),
        (Prefix { len, pages: &pages, point: PrefixPoint::Slot(stale) }, "is not held"),
        (Prefix { len, pages: &pages, point: PrefixPoint::Bytes(&[0; 4]) }, "found 4"),
        (Prefix { len: usize::MAX, pages: &pages, point: slot }, "found 2"),
    ] {
        let error = pool.open_at(prefix).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!((pool.sequences(), pool.page_holders(pages[0])), (1, 1));
        pool.check_invariants().unwrap();
    }
    let empty = pool.open_at(Prefix::default()).unwrap();
    assert_eq!((pool.len(empty).unwrap(), state(&pool, empty)), (0, 0.0));
    while pool.sequences() < SEQUENCES {
        pool.open().unwrap();
    }
    let prefix = Prefix { len, pages: &pages, point: slot };
    assert!(matches!(pool.open_at(prefix), Err(StateError::OutOfSequences { .. })));
    let mut plain = super::pool();
    let id = plain.open().unwrap();
    extend(&mut plain, id, &[1.0]).unwrap();
    let bytes = PrefixPoint::Bytes(&[]);
    assert!(plain.open_at(Prefix { len: 1, pages: &[0], point: bytes }).is_err());
    assert!(plain.open_at(Prefix { len: 1, pages: &[0], ..Prefix::default() }).is_ok());
}
