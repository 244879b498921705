//! What the trie tells subscribers: events, the picture of what is held, what a flush leaves.

use sconce_cache::{Event, Landmark, Stretch, Tier};

use crate::rig::{KEY, Rig, budgets, run, then};
use crate::storage::PAGE;

const AMPLE: u64 = 1 << 20;

fn ample(needs_points: bool) -> Rig {
    Rig::new(budgets(AMPLE, AMPLE, AMPLE), needs_points)
}

#[test]
fn events_tell_what_came_and_went_and_hashes_chain() {
    let mut rig = ample(false);
    rig.request(&run(0, 20), &[]);
    rig.request(&run(0, 33), &[]);
    rig.trie.clear(&mut rig.store, Some(rig.domain));
    let events: Vec<_> = rig.trie.events().since(0).unwrap().cloned().collect();
    let [
        Event::Stored(first),
        Event::Stored(second),
        Event::Removed(gone),
        Event::Cleared { domain },
    ] = &events[..]
    else {
        panic!("{events:?}")
    };
    assert_eq!((first.start, &first.tokens[..]), (0, &run(0, 20)[..]));
    assert_eq!((second.start, &second.tokens[..]), (20, &run(20, 33)[..]));
    assert_eq!(first.hash_after, second.hash_before);
    assert_eq!((gone.start, gone.tokens.len(), gone.tier), (0, 33, Tier::Device));
    assert_eq!((gone.hash_before, gone.hash_after), (first.hash_before, second.hash_after));
    assert_eq!((*domain, first.domain), (KEY, KEY));
    assert_eq!(rig.trie.counters().nodes, 0);
}

#[test]
fn events_of_points_name_the_page_they_lie_in() {
    let mut rig = ample(true);
    let long = run(0, 3 * PAGE as u32 + 2);
    let points = [2 * PAGE, 3 * PAGE + 2];
    rig.request(&long, &points);
    let other = then(&long[..PAGE + 3], &run(900, 905));
    rig.request(&other, &[]);
    let events: Vec<_> = rig.trie.events().since(0).unwrap().cloned().collect();
    let stored: Vec<_> = events.iter().filter_map(landmark).collect();
    assert_eq!(stored.iter().map(|mark| mark.offset).collect::<Vec<_>>(), points);
    let last = &stored[1].page;
    assert_eq!((last.offset, &last.tokens[..]), (3 * PAGE, &long[3 * PAGE..]));

    // The branch begins in the middle of a page, whose first tokens come with it.
    let branch = events.iter().find_map(|event| match event {
        Event::Stored(stretch) if stretch.tokens.contains(&900) => Some(stretch),
        _ => None,
    });
    let branch = branch.expect("it is told");
    assert_eq!(branch.page.offset, branch.start / PAGE * PAGE);
    assert_eq!(&branch.page.tokens[..], &long[branch.page.offset..branch.start]);
    let first = events.iter().find_map(|event| match event {
        Event::Stored(stretch) => Some(stretch.hash_before),
        _ => None,
    });
    let hash = |symbols: &[u32]| {
        let start = first.expect("something was stored");
        symbols.iter().fold(start, |h, &s| {
            (h.rotate_left(5) ^ u64::from(s)).wrapping_mul(0x517c_c1b7_2722_0a95)
        })
    };
    assert_eq!(branch.page.hash, hash(&long[..branch.page.offset]));
    assert_eq!(last.hash, hash(&long[..3 * PAGE]));
}

#[test]
fn a_picture_tells_what_the_events_have_told() {
    for needs_points in [false, true] {
        let mut rig = ample(needs_points);
        let one = run(0, 300);
        rig.request(&one, &[128, 300]);
        rig.request(&then(&one[..200], &run(500, 600)), &[250]);
        let picture = rig.trie.picture(rig.domain, None);
        let tokens: usize = picture.iter().filter_map(stretch).map(|s| s.tokens.len()).sum();
        assert_eq!(tokens, 400);
        let mut ends = std::collections::BTreeSet::from([0]);
        for event in &picture {
            match event {
                Event::Stored(stretch) => {
                    assert!(ends.contains(&stretch.start), "what comes before comes first");
                    ends.insert(stretch.start + stretch.tokens.len());
                }
                Event::PointStored(mark) => assert!(ends.contains(&mark.offset)),
                other => panic!("{other:?} in a picture"),
            }
        }
        let points = picture.iter().filter(|event| landmark(event).is_some()).count();
        assert_eq!(points, if needs_points { 3 } else { 0 });
        assert!(rig.trie.picture(rig.domain, Some("salt")).is_empty());
    }
}

#[test]
fn a_flush_spares_what_snapshots_and_leases_need() {
    for needs_points in [false, true] {
        let mut rig = ample(needs_points);
        let (named, plain, leased) = (run(0, 200), run(1000, 1200), run(2000, 2200));
        for prompt in [&named, &plain, &leased] {
            rig.request(prompt, &[100, 200]);
        }
        rig.name(&named, 200, false);
        let lease = rig.lease(&then(&leased, &[7]));
        rig.trie.flush(&mut rig.store, rig.domain);
        rig.check();
        let held = [&named, &plain, &leased].map(|prompt| rig.held(prompt));
        assert_eq!(held, [200, 0, 200]);
        rig.trie.release(lease);
        rig.trie.flush(&mut rig.store, rig.domain);
        rig.check();
        assert_eq!(rig.held(&leased), 0);
    }
}

fn landmark(event: &Event) -> Option<&Landmark> {
    match event {
        Event::PointStored(mark) => Some(mark),
        _ => None,
    }
}

fn stretch(event: &Event) -> Option<&Stretch> {
    match event {
        Event::Stored(stretch) => Some(stretch),
        _ => None,
    }
}
