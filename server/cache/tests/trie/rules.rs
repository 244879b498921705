//! The rules of the trie one by one: what is found, what is kept, what is shared.

use std::time::Duration;

use sconce_cache::{
    Adopted, Error, Lost, Match, Reason, SnapshotSpec, Tier, TrieConfig, What, media_symbol,
};

use crate::rig::{Rig, budgets, run, then};
use crate::storage::{Integers, PAGE, PAGE_BYTES};

const AMPLE: u64 = 1 << 20;

fn ample(needs_points: bool) -> Rig {
    Rig::new(budgets(AMPLE, AMPLE, AMPLE), needs_points)
}

#[test]
fn a_full_hit_is_matched_on_all_symbols_but_the_last() {
    let mut rig = ample(false);
    let prompt = run(0, 50);
    assert_eq!(rig.request(&prompt, &[]).reason, Reason::NotFound);
    let found = rig.lookup(&prompt);
    let expected = Match {
        matched: 49,
        known: 49,
        resumed: 49,
        tier: Some(Tier::Device),
        reason: Reason::Full,
        divergence: None,
    };
    assert_eq!(found, expected);
    assert_eq!(rig.lookup(&prompt[..1]).reason, Reason::NotFound);
    assert_eq!(rig.lookup(&[]).reason, Reason::NotFound);
}

#[test]
fn the_reason_says_why_no_more_was_resumed() {
    let mut rig = ample(true);
    let prompt = run(0, 50);
    rig.request(&prompt, &[20, 40]);
    let edited = |at: usize| then(&run(0, at as u32), &run(500, 520));
    let told = |rig: &Rig, prompt: &[u32]| {
        let found = rig.lookup(prompt);
        (found.matched, found.resumed, found.reason, found.divergence)
    };
    assert_eq!(told(&rig, &edited(40)), (40, 40, Reason::Diverged, Some(40)));
    assert_eq!(told(&rig, &edited(39)), (39, 20, Reason::NoRestorePoint, Some(39)));
    assert_eq!(told(&rig, &edited(0)), (0, 0, Reason::NotFound, Some(0)));
    assert_eq!(told(&rig, &prompt), (49, 40, Reason::NoRestorePoint, None));
    assert_eq!(told(&rig, &prompt[..41]), (40, 40, Reason::Full, None));
    assert_eq!(told(&rig, &run(0, 60)), (50, 40, Reason::NoRestorePoint, Some(50)));
    // The cheaper point is dropped: eviction is to blame where it would have served.
    let mut rig = Rig::new(budgets(AMPLE, 0, 0), true);
    rig.request(&prompt, &[20, 40]);
    let points = |store: &Integers| store.alive.values().filter(|one| one.is_point).count();
    assert!(
        rig.trie.evict(&mut rig.store, rig.domain, What::Points, &mut |store| points(store) < 2)
    );
    rig.check();
    assert_eq!(told(&rig, &edited(30)), (30, 0, Reason::Evicted, Some(30)));
    assert_eq!(told(&rig, &edited(10)), (10, 0, Reason::NoRestorePoint, Some(10)));
    assert_eq!(told(&rig, &edited(45)), (45, 40, Reason::NoRestorePoint, Some(45)));
}

#[test]
fn evicted_spans_are_told_from_what_never_was() {
    let mut rig = Rig::new(budgets(AMPLE, 0, 0), false);
    rig.request(&run(0, 50), &[]);
    assert!(!rig.trie.evict(&mut rig.store, rig.domain, What::Pages, &mut |_| false));
    rig.check();
    assert!(rig.store.alive.is_empty(), "nothing was leased");
    let found = rig.lookup(&run(0, 50));
    assert_eq!((found.matched, found.known, found.reason), (0, 49, Reason::Evicted));
    assert_eq!(rig.lookup(&run(7, 50)).reason, Reason::NotFound);
}

#[test]
fn another_image_at_the_same_place_is_said_to_differ() {
    let mut rig = ample(false);
    let image = |hash| (0..10).map(|index| media_symbol(hash, index)).collect::<Vec<_>>();
    rig.request(&then(&run(0, 9), &image(1)), &[]);
    let told = |rig: &Rig, prompt: &[u32]| {
        let found = rig.lookup(prompt);
        (found.resumed, found.reason, found.divergence)
    };
    let other = then(&run(0, 9), &image(2));
    assert_eq!(told(&rig, &other), (9, Reason::MediaDiffers, Some(9)));
    assert_eq!(told(&rig, &run(0, 15)), (9, Reason::Diverged, Some(9)));
    // Also where the paths have parted already.
    rig.request(&run(0, 15), &[]);
    assert_eq!(told(&rig, &other), (9, Reason::MediaDiffers, Some(9)));
}

#[test]
fn what_is_known_already_is_not_made_again() {
    let mut rig = ample(true);
    let prompt = run(0, 300);
    let lease = rig.lease(&prompt);
    assert_eq!(rig.extend(lease, &prompt), (300, 300));
    // A second one computes the same at the same time, and then something else.
    let edited = then(&run(0, 200), &run(900, 950));
    let second = rig.lease(&edited);
    assert_eq!(rig.trie.leased(second), 0, "there is no point to resume from");
    assert_eq!(rig.extend(second, &edited), (250, 50));
    let bytes = 300_u64.div_ceil(PAGE as u64) + 50_u64.div_ceil(PAGE as u64);
    assert_eq!(rig.trie.used(rig.domain, Tier::Device), bytes * PAGE_BYTES);
    rig.trie.release(lease);
    rig.trie.release(second);
    rig.check();
}

#[test]
fn ghosts_get_their_state_again() {
    let mut rig = Rig::new(budgets(AMPLE, 0, 0), false);
    let (one, other) = (run(0, 100), then(&run(0, 30), &run(500, 600)));
    rig.request(&one, &[]);
    rig.request(&other, &[]);
    rig.trie.evict(&mut rig.store, rig.domain, What::Pages, &mut |_| false);
    let ghosts = rig.trie.counters().nodes;
    let lease = rig.lease(&one);
    assert_eq!(rig.extend(lease, &one), (100, 100));
    assert_eq!(rig.trie.counters().nodes, ghosts);
    assert_eq!(rig.lookup(&other).reason, Reason::Evicted);
}

#[test]
fn a_lease_keeps_its_path_and_nothing_else() {
    let mut rig = Rig::new(budgets(AMPLE, 0, 0), false);
    let (one, other) = (run(0, 100), then(&run(0, 42), &run(500, 600)));
    rig.request(&one, &[]);
    let (lease, found) = rig.trie.lease(rig.domain, None, &other);
    assert_eq!(found.resumed, 42);
    // The rest of the edge goes, on the page grid, the part that is leased stays.
    assert!(!rig.trie.evict(&mut rig.store, rig.domain, What::Pages, &mut |_| false));
    rig.check();
    assert_eq!((rig.trie.leased(lease), rig.held(&one)), (42, 42_usize.next_multiple_of(PAGE)));
    // Two leases on one path.
    let second = rig.lease(&run(0, 13));
    rig.trie.release(lease);
    assert!(!rig.trie.evict(&mut rig.store, rig.domain, What::Pages, &mut |_| false));
    assert_eq!(rig.held(&one), 12_usize.next_multiple_of(PAGE));
    rig.trie.release(second);
    assert!(!rig.trie.evict(&mut rig.store, rig.domain, What::Pages, &mut |_| false));
    assert!(rig.store.alive.is_empty());
}

#[test]
fn only_the_point_that_a_lease_stands_on_is_kept_for_it() {
    let mut rig = Rig::new(budgets(AMPLE, 0, 0), true);
    let prompt = run(0, 50);
    rig.request(&prompt, &[8, 16, 24]);
    let (lease, found) = rig.trie.lease(rig.domain, None, &run(0, 20));
    assert_eq!(found.resumed, 16);
    assert!(!rig.trie.evict(&mut rig.store, rig.domain, What::Points, &mut |_| false));
    rig.check();
    let left: Vec<_> = rig.store.alive.values().filter(|one| one.is_point).collect();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].end(), 16);
    assert!(rig.trie.point(lease).is_some());
}

#[test]
fn a_fork_cuts_the_edge_and_both_ways_stay() {
    let mut rig = ample(false);
    let (one, other) = (run(0, 100), then(&run(0, 42), &run(500, 600)));
    rig.request(&one, &[]);
    rig.request(&other, &[]);
    assert_eq!((rig.held(&one), rig.held(&other)), (100, 142));
    let edges: Vec<_> = rig.trie.describe(rig.domain).iter().map(|view| view.edge_tokens).collect();
    assert_eq!(edges, [42, 58, 100]);
}

#[test]
fn a_conversation_that_grows_is_a_few_edges() {
    let mut rig = ample(false);
    for turn in 1..20 {
        rig.request(&run(0, turn * 37), &[]);
    }
    let views = rig.trie.describe(rig.domain);
    // One for each halving of how often it was used.
    assert!(views.len() <= 5, "{views:?}");
}

#[test]
fn a_point_that_is_dropped_leaves_no_seam() {
    let mut rig = Rig::new(budgets(AMPLE, 0, 0), true);
    rig.request(&run(0, 60), &[20, 40, 60]);
    assert_eq!(rig.trie.describe(rig.domain).len(), 3);
    let points = |store: &Integers| store.alive.values().filter(|one| one.is_point).count();
    rig.trie.evict(&mut rig.store, rig.domain, What::Points, &mut |store| points(store) == 1);
    rig.check();
    let views = rig.trie.describe(rig.domain);
    let inner = views.iter().filter(|view| view.depth < 60);
    assert!(inner.clone().all(|view| view.restore_point), "{views:?}");
    assert!(inner.count() <= 1 && views.len() <= 2);
}

#[test]
fn a_long_span_is_trimmed_from_its_end_on_the_page_grid() {
    let mut rig = Rig::new(budgets(AMPLE, 0, 0), false);
    let prompt = run(0, 1003);
    rig.request(&prompt, &[]);
    let all = rig.store.used(Tier::Device);
    let enough = &mut |store: &Integers| store.used(Tier::Device) < all;
    assert!(rig.trie.evict(&mut rig.store, rig.domain, What::Pages, enough));
    rig.check();
    let held = rig.held(&prompt);
    assert!(held > 900 && held < 1003 && held.is_multiple_of(PAGE), "{held} held");
}

#[test]
fn a_span_beyond_the_last_point_goes_first() {
    let mut rig = Rig::new(budgets(AMPLE, 0, 0), true);
    rig.request(&run(0, 60), &[40]);
    rig.request(&run(100, 160), &[160 - 100]);
    let all = rig.store.used(Tier::Device);
    let enough = &mut |store: &Integers| store.used(Tier::Device) < all;
    assert!(rig.trie.evict(&mut rig.store, rig.domain, What::Pages, enough));
    assert_eq!((rig.held(&run(0, 60)), rig.held(&run(100, 160))), (40, 60));
}

#[test]
fn a_shared_beginning_survives_a_scan_of_one_shot_prompts() {
    for needs_points in [false, true] {
        let mut rig = Rig::new(budgets(4000, 0, 0), needs_points);
        let system = run(0, 400);
        for request in 0..200_u32 {
            let prompt = then(&system, &run(1000 * request + 1000, 1000 * request + 1300));
            let found = rig.request(&prompt, &[400, 700]);
            assert_eq!(found.resumed, if request == 0 { 0 } else { 400 });
        }
        for scan in 0..12_u32 {
            let from = 1_000_000 + 1000 * scan;
            rig.request(&run(from, from + 500), &[500]);
        }
        assert_eq!(rig.held(&system), 400, "needs points: {needs_points}");
    }
}

#[test]
fn a_snapshot_that_is_not_pinned_disappears_with_its_state() {
    let mut rig = Rig::new(budgets(AMPLE, 0, 0), false);
    let (loose, pinned) = (run(0, 40), run(100, 140));
    rig.request(&loose, &[]);
    rig.request(&pinned, &[]);
    rig.name(&loose, 30, false);
    let id = rig.name(&pinned, 30, true);
    assert_eq!(rig.trie.snapshots().len(), 2);
    assert!(!rig.trie.evict(&mut rig.store, rig.domain, What::Pages, &mut |_| false));
    rig.check();
    let views = rig.trie.snapshots();
    assert_eq!(views.len(), 1);
    assert_eq!((views[0].id, views[0].tokens, views[0].tier), (id, 30, Tier::Device));
    assert_eq!((rig.held(&loose), rig.held(&pinned)), (0, 30));
    let (lease, symbols) = rig.trie.lease_snapshot(id).unwrap();
    assert_eq!((symbols, rig.trie.leased(lease)), (run(100, 130), 30));
}

#[test]
fn a_pinned_snapshot_may_be_paged_out() {
    let mut rig = Rig::new(budgets(AMPLE, AMPLE, 0), true);
    rig.request(&run(0, 40), &[32]);
    rig.name(&run(0, 40), 32, true);
    assert!(!rig.trie.evict(&mut rig.store, rig.domain, What::Pages, &mut |_| false));
    rig.check();
    assert_eq!(rig.trie.snapshots()[0].tier, Tier::Host);
    let found = rig.lookup(&run(0, 40));
    assert_eq!((found.resumed, found.tier), (32, Some(Tier::Host)));
}

#[test]
fn names_are_bounded_replaced_and_expire() {
    let config = TrieConfig { snapshots_max: 2, ..TrieConfig::new(budgets(400, 0, 0)) };
    let mut rig = Rig::with(config, false);
    let prompt = run(0, 120);
    let lease = rig.lease(&prompt);
    rig.extend(lease, &prompt);
    let name = |rig: &mut Rig, name: &str, offset, pinned, expires| {
        let spec = SnapshotSpec { name: name.into(), pinned, expires };
        rig.trie.name(&mut rig.store, lease, offset, spec)
    };
    let soon = Some(Duration::from_secs(5));
    let first = name(&mut rig, "a", 40, true, soon).unwrap();
    let full = name(&mut rig, "b", 100, true, None).unwrap_err();
    assert_eq!(full, Error::PinsFull { wanted: 250, bound: 200 });
    name(&mut rig, "b", 100, false, None).unwrap();
    let many = name(&mut rig, "c", 100, false, None).unwrap_err();
    assert_eq!(many, Error::TooManySnapshots { max: 2 });
    assert_eq!(
        name(&mut rig, "c", 121, false, None).unwrap_err(),
        Error::NotARestorePoint { offset: 121, covered: 120 }
    );
    let again = name(&mut rig, "a", 60, true, soon).unwrap();
    assert!(!rig.trie.drop_snapshot(&mut rig.store, first), "it was replaced by {again}");
    assert_eq!(rig.trie.next_expiry(), soon);
    rig.trie.expire(&mut rig.store, Duration::from_secs(5));
    assert_eq!(rig.trie.next_expiry(), None);
    let left: Vec<_> = rig.trie.snapshots().into_iter().map(|view| view.name).collect();
    assert_eq!(left, ["b"]);
    rig.check();
}

#[test]
fn damage_takes_what_depends_on_it_and_cuts_leases() {
    let mut rig = Rig::new(budgets(AMPLE, AMPLE, 0), true);
    let prompt = run(0, 60);
    rig.request(&prompt, &[20, 40]);
    rig.name(&prompt, 40, true);
    rig.trie.evict(&mut rig.store, rig.domain, What::Pages, &mut |_| false);
    let lease = rig.lease(&prompt);
    assert_eq!(rig.trie.leased(lease), 40);
    let bad: Vec<_> = rig
        .store
        .alive
        .iter()
        .filter(|(_, record)| !record.is_point && record.start == 20)
        .map(|(&id, _)| id)
        .collect();
    let lost = &mut |lost: Lost<'_, _, _>| match lost {
        Lost::Span(crate::storage::Span(id)) => bad.contains(id),
        Lost::Point(_) => false,
    };
    assert_eq!(rig.trie.forget(&mut rig.store, lost), 1);
    rig.check();
    assert_eq!(rig.trie.leased(lease), 20);
    assert!(rig.trie.point(lease).is_some());
    assert!(rig.trie.snapshots().is_empty());
    assert_eq!(rig.lookup(&prompt).reason, Reason::Evicted);
}

#[test]
fn a_record_from_outside_is_adopted_as_far_as_it_is_new() {
    let mut rig = ample(true);
    rig.request(&run(0, 30), &[]);
    let owner = rig.owner();
    let longer = run(0, 80);
    // Nothing is known of what it builds on.
    let stray = rig.store.make_span(&owner, &run(7, 80), 20, Tier::Disk);
    let adopted = Adopted::Span(20, stray);
    assert!(!rig.trie.adopt(&mut rig.store, rig.domain, None, &run(7, 80), adopted, Tier::Disk));
    let span = rig.store.make_span(&owner, &longer, 20, Tier::Disk);
    let adopted = Adopted::Span(20, span);
    assert!(rig.trie.adopt(&mut rig.store, rig.domain, None, &longer, adopted, Tier::Disk));
    let point = rig.store.make_point(&owner, &longer[..64], Tier::Disk);
    let adopted = Adopted::Point(point);
    assert!(rig.trie.adopt(&mut rig.store, rig.domain, None, &longer[..64], adopted, Tier::Disk));
    rig.check();
    let found = rig.lookup(&longer);
    assert_eq!((found.matched, found.resumed, found.tier), (79, 64, Some(Tier::Disk)));
    let lease = rig.lease(&longer);
    assert_eq!(rig.trie.page_in(&mut rig.store, lease), 64);
    rig.check();
    let tiers: Vec<_> = rig.trie.spans(lease).map(|(range, tier, _)| (range, tier)).collect();
    assert_eq!(tiers, [(0..64, Tier::Device)], "what came is joined with what was there");
    assert_eq!(rig.trie.point(lease).map(|(tier, _)| tier), Some(Tier::Disk));
}
