//! What is remembered from one request to the next, and that it is never wrong: a simulated model's
//! tokens depend on every token and every bit of state before them.

use sconce_cache::{Event as Kept, Reason, Tier};

use super::*;

const PLAIN: &str = "sim:";
const RECURRENT: &str = "sim:recurrent=true";
const BOTH: [&str; 2] = [PLAIN, RECURRENT];

/// Steps of a page, so that every prompt takes several.
fn config() -> EngineConfig {
    EngineConfig { step_tokens_max: 64, ..EngineConfig::default() }
}

/// Runs a request to its end; its tokens must be those of a model that remembers nothing.
async fn ask(rig: &Rig, path: &str, tokens: &[u32]) -> Started {
    ask_with(rig, path, tokens, CacheUse::default()).await
}

async fn ask_with(rig: &Rig, path: &str, tokens: &[u32], cache: CacheUse) -> Started {
    let request = Request { cache, ..rig.request(tokens) };
    let told = read(&mut rig.engine.generate(request).unwrap()).await;
    assert_eq!(told.ids(), expected(path, tokens, 4));
    let started = told.started.expect("it started");
    let usage = told.finished().usage;
    assert_eq!(usage.cached_tokens, started.cache.resumed);
    assert_eq!(usage.evaluated_tokens, started.cache.recomputed);
    assert_eq!(started.cache.recomputed + started.cache.resumed, tokens.len());
    assert!(started.cache.resumed <= started.cache.matched);
    assert!(started.cache.resumed < tokens.len());
    started
}

/// A prompt, and what a model says to it.
fn conversation(path: &str, prompt: &[u32]) -> Vec<u32> {
    [prompt, &expected(path, prompt, 4)].concat()
}

#[tokio::test]
async fn a_repeat_computes_the_last_token_or_from_the_last_restore_point() {
    for (path, resumed) in [(PLAIN, 299), (RECURRENT, 296)] {
        let rig = Rig::open(path, config()).await;
        let tokens = prompt(300, 1);
        let cold = ask(&rig, path, &tokens).await.cache;
        let expected = (0, 0, None, Reason::NotFound, Some(0));
        let found = |r: CacheReport| (r.matched, r.resumed, r.tier, r.reason, r.divergence);
        assert_eq!(found(cold), expected);
        let warm = ask(&rig, path, &tokens).await.cache;
        assert_eq!((warm.matched, warm.resumed, warm.tier), (299, resumed, Some(Tier::Device)));
        let reason = if path == PLAIN { Reason::Full } else { Reason::NoRestorePoint };
        assert_eq!(warm.reason, reason);
    }
}

#[tokio::test]
async fn a_conversation_goes_on_where_the_last_answer_ended() {
    for path in BOTH {
        let rig = Rig::open(path, config()).await;
        let first = prompt(200, 1);
        ask(&rig, path, &first).await;
        // The last token of an answer is never computed.
        let mut second = conversation(path, &first);
        let kept = second.len() - 1;
        second.extend(prompt(50, 7));
        assert_eq!(ask(&rig, path, &second).await.cache.resumed, kept);
    }
}

#[tokio::test]
async fn a_change_costs_what_follows_it() {
    for path in BOTH {
        let rig = Rig::open(path, config()).await;
        let tokens = prompt(1000, 1);
        ask(&rig, path, &tokens).await;
        for back in [4, 100, 400] {
            let mut changed = tokens.clone();
            let at = changed.len() - back;
            changed[at] = 255;
            let report = ask(&rig, path, &changed).await.cache;
            assert_eq!((report.matched, report.divergence), (at, Some(at)));
            assert!(report.recomputed <= 4 * back + 128, "{report:?}");
            if path == PLAIN {
                assert_eq!((report.resumed, report.reason), (at, Reason::Diverged));
            }
        }
    }
}

#[tokio::test]
async fn a_branch_is_resumed_at_once_the_next_time() {
    let rig = Rig::open(RECURRENT, config()).await;
    let shared = prompt(640, 1);
    let with = |seed| [shared.clone(), prompt(1300, seed)].concat();
    ask(&rig, RECURRENT, &with(2)).await;
    // Nobody knew that others would leave at 640.
    assert!(ask(&rig, RECURRENT, &with(3)).await.cache.resumed < 640);
    let third = ask(&rig, RECURRENT, &with(4)).await.cache;
    assert_eq!((third.resumed, third.matched, third.reason), (640, 640, Reason::Diverged));
}

#[tokio::test]
async fn restore_points_are_made_where_the_caller_says() {
    let rig = Rig::open(RECURRENT, config()).await;
    let shared = prompt(640, 1);
    let with = |seed| [shared.clone(), prompt(1300, seed)].concat();
    let cache = CacheUse { restore_points: vec![650], ..CacheUse::default() };
    ask_with(&rig, RECURRENT, &with(2), cache).await;
    assert_eq!(ask(&rig, RECURRENT, &with(3)).await.cache.resumed, 640);
}

#[tokio::test]
async fn equal_prompts_that_come_together_are_computed_once() {
    for path in BOTH {
        let mut rig = Rig::new(path, config()).await;
        rig.hold();
        let tokens = prompt(600, 1);
        let mut all: Vec<_> = (0..3).map(|_| rig.submit(&tokens)).collect();
        rig.gate.open();
        let [a, b, c] = &mut all[..] else { unreachable!() };
        let (one, two, three) = tokio::join!(read(a), read(b), read(c));
        let mut recomputed = 0;
        for told in [one, two, three] {
            assert_eq!(told.ids(), expected(path, &tokens, 4));
            recomputed += told.started.expect("it started").cache.recomputed;
        }
        assert!(recomputed < 600 + 2 * 128, "{recomputed} tokens computed");
    }
}

#[tokio::test]
async fn a_prompt_that_is_given_up_leaves_what_was_computed() {
    for path in BOTH {
        let mut rig = Rig::new(path, config()).await;
        let tokens = prompt(1000, 1);
        let generation = rig.submit(&tokens);
        rig.arrival();
        for _ in 0..5 {
            rig.next_step();
        }
        drop(generation);
        rig.gate.open();
        rig.status_where(|status| status.counters.cancelled == 1).await;
        let report = ask(&rig, path, &tokens).await.cache;
        assert!(report.resumed >= 320, "{report:?}");
    }
}

#[tokio::test]
async fn what_a_failed_step_has_left_is_not_remembered() {
    let path = "sim:fail_at=500";
    let rig = Rig::open(path, config()).await;
    let tokens = prompt(600, 1);
    let told = read(&mut rig.submit(&tokens)).await;
    assert!(matches!(told.error(), EngineError::Forward { .. }));
    let looked = rig.engine.match_prefix("m", &CacheUse::default(), tokens).await.unwrap();
    assert_eq!(looked.resumed, 448);
}

#[tokio::test]
async fn salts_do_not_share_and_a_bypass_neither_finds_nor_leaves() {
    for path in BOTH {
        let rig = Rig::open(path, config()).await;
        let tokens = prompt(300, 1);
        let bypass = CacheUse { bypass: true, ..CacheUse::default() };
        let salted = CacheUse { salt: Some("a".into()), ..CacheUse::default() };
        let report = ask_with(&rig, path, &tokens, bypass.clone()).await.cache;
        assert_eq!(report.reason, Reason::Bypassed);
        assert_eq!(ask_with(&rig, path, &tokens, salted.clone()).await.cache.resumed, 0);
        assert_eq!(ask(&rig, path, &tokens).await.cache.resumed, 0);
        assert!(ask_with(&rig, path, &tokens, salted).await.cache.resumed > 0);
        assert_eq!(ask_with(&rig, path, &tokens, bypass).await.cache.resumed, 0);
    }
}

#[tokio::test]
async fn a_cache_that_is_turned_off_says_so_and_holds_nothing() {
    let off = EngineConfig { cache: CacheConfig::off(), ..config() };
    for path in BOTH {
        let rig = Rig::open(path, off.clone()).await;
        let tokens = prompt(300, 1);
        ask(&rig, path, &tokens).await;
        let report = ask(&rig, path, &tokens).await.cache;
        assert_eq!((report.resumed, report.reason), (0, Reason::Disabled));
        rig.at_rest().await;
    }
}

#[tokio::test]
async fn what_is_remembered_gives_way_to_what_runs() {
    for path in ["sim:pages=12", "sim:pages=12,recurrent=true"] {
        let rig = Rig::open(path, config()).await;
        for seed in 0..6 {
            let tokens = prompt(400, seed);
            assert_eq!(ask(&rig, path, &tokens).await.cache.resumed, 0);
            assert!(ask(&rig, path, &tokens).await.cache.resumed > 300);
        }
        let status = rig.engine.status();
        assert_eq!((status.counters.failed, status.counters.preemptions), (0, 0));
        assert!(status.cache.trie.tokens_dropped[Tier::Device as usize] > 0);
    }
}

#[tokio::test]
async fn a_shared_beginning_outlives_prompts_that_come_once() {
    for path in ["sim:pages=40", "sim:pages=40,recurrent=true"] {
        let rig = Rig::open(path, config()).await;
        let shared = prompt(640, 1);
        let with = |seed| [shared.clone(), prompt(64, seed)].concat();
        ask(&rig, path, &with(100)).await;
        ask(&rig, path, &with(101)).await;
        for round in 0..10 {
            for seed in 0..4 {
                ask(&rig, path, &prompt(500, 2 + round * 4 + seed)).await;
            }
            let report = ask(&rig, path, &with(102 + round)).await.cache;
            assert_eq!(report.resumed, 640, "{path}, round {round}");
        }
    }
}

#[tokio::test]
async fn subscribers_are_told_what_is_kept_and_what_goes() {
    let rig = Rig::open(PLAIN, config()).await;
    let tokens = prompt(300, 1);
    ask(&rig, PLAIN, &tokens).await;
    let first = rig.engine.cache_events(0).await.unwrap();
    let stored = first.events.iter().filter_map(|event| match event {
        Kept::Stored(stretch) => Some((stretch.start, &stretch.tokens[..])),
        _ => None,
    });
    let told: Vec<u32> = stored.flat_map(|(_, tokens)| tokens.to_vec()).collect();
    assert_eq!(told[..300], tokens);
    assert_eq!((first.next, first.lagged), (first.events.len() as u64, false));
    let later = rig.engine.cache_events(first.next).await.unwrap();
    assert_eq!(later, CacheEvents { next: first.next, ..CacheEvents::default() });
    rig.engine.unload("m", false).await.unwrap();
    let gone = rig.engine.cache_events(first.next).await.unwrap();
    assert!(gone.events.iter().any(|event| matches!(event, Kept::Removed(_))), "{gone:?}");
}

#[tokio::test]
async fn a_picture_and_a_flush_tell_the_same_as_the_events() {
    let rig = Rig::open(PLAIN, config()).await;
    ask(&rig, PLAIN, &prompt(300, 1)).await;
    let picture = rig.engine.cache_picture("m").await.unwrap();
    let events = rig.engine.cache_events(0).await.unwrap();
    assert_eq!(picture.next, events.next);
    assert_eq!(rig.engine.status().cache.events, events.next);
    assert!(picture.domain.is_some() && !picture.needs_points);
    let held: usize = picture.events.iter().map(stored_tokens).sum();
    assert_eq!(held, events.events.iter().map(stored_tokens).sum::<usize>());
    rig.engine.flush_cache("m").await.unwrap();
    let after = rig.engine.cache_picture("m").await.unwrap();
    assert_eq!(after.events, []);
    let gone = rig.engine.cache_events(events.next).await.unwrap();
    assert!(gone.events.iter().all(|event| matches!(event, Kept::Removed(_))), "{gone:?}");
    assert!(!gone.events.is_empty());
}

fn stored_tokens(event: &Kept) -> usize {
    match event {
        Kept::Stored(stretch) => stretch.tokens.len(),
        _ => 0,
    }
}
