//! The tiers: what moves where when a model goes, when room is short, and when a tier is off.

use sconce_cache::{Class, Reason, Tier, What};

use crate::rig::{KEY, Rig, budgets, run, shape, then};
use crate::storage::{Integers, PAGE, PAGE_BYTES};

#[test]
fn a_model_that_goes_finds_its_state_again() {
    let mut rig = Rig::new(budgets(10_000, 10_000, 0), true);
    let (one, other) = (run(0, 60), then(&run(0, 40), &run(500, 540)));
    rig.request(&one, &[20, 40, 60]);
    rig.request(&other, &[80]);
    rig.trie.close_domain(&mut rig.store, rig.domain);
    rig.check();
    assert_eq!(rig.store.used(Tier::Device), 0);
    assert_eq!(rig.trie.open_domain(KEY, shape(true)), rig.domain);
    let found = rig.lookup(&then(&other, &[7]));
    assert_eq!((found.resumed, found.tier), (80, Some(Tier::Host)));
    let lease = rig.lease(&then(&other, &[7]));
    assert_eq!(rig.trie.page_in(&mut rig.store, lease), 80);
    rig.check();
    assert!(rig.trie.spans(lease).all(|(_, tier, _)| tier == Tier::Device));
}

#[test]
fn what_is_worth_most_gets_the_room_below() {
    let mut rig = Rig::new(budgets(10_000, 0, 0), false);
    let mut small = Rig::new(budgets(10_000, 400, 0), false);
    for rig in [&mut rig, &mut small] {
        for _ in 0..5 {
            rig.request(&run(0, 120), &[]);
        }
        for scan in 1..6 {
            rig.request(&run(scan * 1000, scan * 1000 + 120), &[]);
        }
        rig.trie.close_domain(&mut rig.store, rig.domain);
        rig.check();
    }
    assert!(rig.store.alive.is_empty(), "without a tier below all of it is dropped");
    assert_eq!(small.held(&run(0, 120)), 120);
    assert!(small.store.used(Tier::Host) > 300, "the room is used");
}

#[test]
fn parked_state_lies_on_disk() {
    let mut rig = Rig::new(budgets(10_000, 10_000, 10_000), true);
    rig.request(&run(0, 60), &[20, 60]);
    rig.trie.close_domain(&mut rig.store, rig.domain);
    rig.trie.park(&mut rig.store);
    rig.check();
    assert!(rig.store.alive.values().all(|record| record.tier == Tier::Disk));
    assert_eq!(rig.lookup(&run(0, 61)).resumed, 60);
}

#[test]
fn without_a_device_tier_new_state_goes_to_the_next() {
    for (limits, tier) in [(budgets(0, 5000, 5000), Tier::Host), (budgets(0, 0, 5000), Tier::Disk)]
    {
        let mut rig = Rig::new(limits, true);
        rig.request(&run(0, 60), &[20, 60]);
        rig.request(&then(&run(0, 20), &run(90, 99)), &[]);
        assert!(rig.store.alive.values().all(|record| record.tier == tier));
        let found = rig.lookup(&run(0, 61));
        assert_eq!((found.resumed, found.tier), (60, Some(tier)));
        let lease = rig.lease(&run(0, 61));
        assert_eq!(rig.trie.page_in(&mut rig.store, lease), 60, "it is read from where it lies");
    }
}

#[test]
fn without_any_tier_nothing_is_kept() {
    let mut rig = Rig::new(budgets(0, 0, 0), true);
    let found = rig.request(&run(0, 60), &[20, 60]);
    assert_eq!((found.resumed, found.reason), (0, Reason::NotFound));
    assert!(rig.store.alive.is_empty());
    assert_eq!(rig.trie.counters().nodes, 0);
}

#[test]
fn what_no_pool_is_reserved_for_is_not_kept() {
    let mut rig = Rig::new(budgets(1000, 0, 0), false);
    // Somebody else counts the pool as theirs.
    let mut other = rig.ledger.reclassify(Tier::Device, Class::LiveState, Class::Workspace);
    other.resize(1000).unwrap();
    rig.request(&run(0, 60), &[]);
    assert!(rig.store.alive.is_empty());
    other.resize(0).unwrap();
    rig.request(&run(0, 60), &[]);
    assert_eq!(rig.held(&run(0, 60)), 60);
}

#[test]
fn as_much_of_a_prompt_is_kept_as_there_is_room_for() {
    let mut rig = Rig::new(budgets(100 * PAGE_BYTES, 0, 0), false);
    let prompt = run(0, 1000);
    let lease = rig.lease(&prompt);
    let (covered, _) = rig.extend(lease, &prompt);
    assert!((80 * PAGE..=100 * PAGE).contains(&covered), "{covered} covered");
    assert_eq!(rig.trie.leased(lease), covered);
}

#[test]
fn a_refused_page_in_shortens_the_lease_to_what_can_be_resumed() {
    let mut rig = Rig::new(budgets(10_000, 10_000, 0), true);
    let prompt = run(0, 60);
    rig.request(&prompt, &[20, 40, 60]);
    rig.trie.close_domain(&mut rig.store, rig.domain);
    let lease = rig.lease(&then(&prompt, &[7]));
    assert_eq!(rig.trie.leased(lease), 60);
    rig.store.moods.get_mut().refuse = 0b100;
    assert_eq!(rig.trie.page_in(&mut rig.store, lease), 40);
    rig.check();
    assert!(rig.trie.point(lease).is_some());
    // What was refused is still there for the next one.
    assert_eq!(rig.lookup(&then(&prompt, &[7])).resumed, 60);
    // What turns out to be damaged is not.
    rig.store.moods.get_mut().damage = 1;
    let second = rig.lease(&then(&prompt, &[7]));
    assert_eq!(rig.trie.page_in(&mut rig.store, second), 40);
    rig.check();
    assert_eq!(rig.lookup(&then(&prompt, &[7])).resumed, 40);
}

#[test]
fn room_below_is_made_only_for_what_is_worth_more() {
    // The host has room for one of the two; the one that is used more stays wherever it is.
    let mut rig = Rig::new(budgets(10_000, 32 * PAGE_BYTES, 0), false);
    let (dear, cheap) = (run(0, 120), run(1000, 1120));
    for _ in 0..9 {
        rig.request(&dear, &[]);
    }
    rig.request(&cheap, &[]);
    rig.trie.evict(&mut rig.store, rig.domain, What::Pages, &mut |_| false);
    rig.check();
    assert_eq!(rig.held(&dear), 120);
    assert!(rig.held(&cheap) < 20);
    // Now the dear one lies in the host; another cheap one cannot push it out.
    rig.request(&run(2000, 2120), &[]);
    rig.trie.evict(&mut rig.store, rig.domain, What::Pages, &mut |_| false);
    assert_eq!(rig.held(&dear), 120);
}

#[test]
fn paging_out_stops_as_soon_as_there_is_enough() {
    let mut rig = Rig::new(budgets(10_000, 10_000, 0), false);
    rig.request(&run(0, 200), &[]);
    let before = rig.store.used(Tier::Device);
    let enough = &mut |store: &Integers| store.used(Tier::Device) + 50 <= before;
    assert!(rig.trie.evict(&mut rig.store, rig.domain, What::Pages, enough));
    let left = before - rig.store.used(Tier::Device);
    assert!((50..=16 * PAGE_BYTES).contains(&left), "{left} bytes left");
    assert_eq!(rig.held(&run(0, 200)), 200);
    let found = rig.lookup(&run(0, 200));
    assert_eq!(found.tier, Some(Tier::Host));
    assert_eq!(rig.lookup(&run(0, 100)).tier, Some(Tier::Device));
}
