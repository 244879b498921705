//! Whose state is shared with whom, what a caller may say of it, and what it is told.

use sconce_cache::{Reason, Tier};
use sconce_engine::CacheUse;

use crate::support::*;

async fn twins_of(fixture: &'static Fixture) -> Twins {
    Twins::start(&Setup::warm(fixture, Default::default())).await
}

#[tokio::test]
async fn nothing_is_shared_among_salts() {
    for fixture in [&QWEN3, &QWEN3_5] {
        let twins = twins_of(fixture).await;
        let prompt = long_prompt(&twins.warm, 1);
        let asks = [Ask::salted(&prompt, "a"), Ask::salted(&prompt, "b"), Ask::new(&prompt), {
            // No salt is not the same as an empty one.
            Ask::salted(&prompt, "")
        }];
        for ask in &asks {
            let answer = twins.ask(ask, fixture.name).await;
            let report = answer.report;
            assert_eq!((report.matched, report.reason), (0, Reason::NotFound), "{:?}", ask.cache);
        }
        for ask in &asks {
            let answer = twins.ask(ask, fixture.name).await;
            assert!(answer.report.recomputed <= repeat_max(fixture), "{:?}", ask.cache);
        }
        twins.end().await;
    }
}

#[tokio::test]
async fn a_request_that_bypasses_the_cache_neither_uses_nor_fills_it() {
    for fixture in [&GEMMA3, &QWEN3_NEXT] {
        let twins = twins_of(fixture).await;
        let ask = Ask::new(&long_prompt(&twins.warm, 1));
        let bypassing =
            Ask { cache: CacheUse { bypass: true, ..CacheUse::default() }, ..ask.clone() };
        for _ in 0..2 {
            let report = twins.ask(&bypassing, fixture.name).await.report;
            assert_eq!((report.resumed, report.reason), (0, Reason::Bypassed));
        }
        assert_eq!(twins.ask(&ask, fixture.name).await.report.reason, Reason::NotFound);
        let report = twins.ask(&bypassing, fixture.name).await.report;
        assert_eq!((report.resumed, report.reason), (0, Reason::Bypassed));
        assert!(twins.ask(&ask, fixture.name).await.report.resumed > 0);
        twins.end().await;
    }
}

#[tokio::test]
async fn a_restore_point_is_made_where_the_caller_asks_for_one() {
    for fixture in [&QWEN3_NEXT, &QWEN3_5, &QWEN3_5_MOE] {
        let mut setup = Setup::warm(fixture, Default::default());
        let spacing = &mut setup.config.cache.spacing;
        (spacing.every, spacing.tail_factor) = (0, 0);
        let (hint, boundary) = (2 * PAGE + 5, 4 * PAGE + 1);
        for hinted in [false, true] {
            let twins = Twins::start(&setup).await;
            let mut ask = Ask::new(&long_prompt(&twins.warm, 1));
            if hinted {
                ask.cache.restore_points = vec![hint];
                ask.cache.boundaries = vec![boundary];
            }
            twins.ask(&ask, fixture.name).await;
            for (place, expected) in [(hint, 2 * PAGE), (boundary, 4 * PAGE)] {
                let mut forked = Ask::new(&ask.prompt);
                forked.prompt[place + 3] ^= 1;
                let report = twins.ask(&forked, fixture.name).await.report;
                assert_eq!(report.matched, place + 3);
                assert_eq!(report.divergence, Some(place + 3));
                let expected = if hinted { expected } else { 0 };
                // The branch point of the first fork is a restore point by the second one.
                let branched = if !hinted && place == boundary { 2 * PAGE } else { expected };
                assert_eq!(report.resumed, branched, "{}: {report:?}", fixture.name);
                assert_eq!(report.reason, Reason::NoRestorePoint);
            }
            twins.end().await;
        }
    }
}

#[tokio::test]
async fn where_two_prompts_part_the_second_one_leaves_a_restore_point_for_the_third() {
    for fixture in [&QWEN3_NEXT, &QWEN3_5] {
        let mut setup = Setup::warm(fixture, Default::default());
        let spacing = &mut setup.config.cache.spacing;
        (spacing.every, spacing.tail_factor) = (0, 0);
        let twins = Twins::start(&setup).await;
        let first = long_prompt(&twins.warm, 1);
        let fork = |seed| {
            let mut prompt = long_prompt(&twins.warm, seed);
            prompt[..3 * PAGE + 9].copy_from_slice(&first[..3 * PAGE + 9]);
            prompt
        };
        twins.ask(&Ask::new(&first), fixture.name).await;
        assert_eq!(twins.ask(&Ask::new(&fork(2)), fixture.name).await.report.resumed, 0);
        let third = twins.ask(&Ask::new(&fork(3)), fixture.name).await.report;
        assert_eq!(third.resumed, 3 * PAGE, "{third:?}");
        twins.end().await;
    }
}

#[tokio::test]
async fn a_dry_run_says_what_a_request_then_does() {
    for fixture in [&LLAMA, &QWEN3_5] {
        let twins = twins_of(fixture).await;
        let engine = &twins.warm.engine;
        let vocabulary = twins.warm.model.info.vocab_size as u32;
        let mut random = Random::new(5);
        let mut past = vec![long_prompt(&twins.warm, 1)];
        for _ in 0..6 {
            let longest = twins.warm.model.info.context_length - 4;
            let (prompt, edit) = edited(&mut random, &past, vocabulary, longest);
            let ask = Ask::new(&prompt);
            let foreseen = engine.match_prefix(MODEL, &ask.cache, prompt.clone()).await.unwrap();
            // Asking changes nothing.
            let again = engine.match_prefix(MODEL, &ask.cache, prompt.clone()).await.unwrap();
            assert_eq!(foreseen, again);
            let report = twins.ask(&ask, &edit).await.report;
            assert_eq!(foreseen, report, "{}: {edit}", fixture.name);
            past.push(prompt);
        }
        twins.end().await;
    }
}

#[tokio::test]
async fn the_trie_that_is_described_is_the_one_that_serves() {
    for fixture in [&QWEN3, &QWEN3_5] {
        let twins = twins_of(fixture).await;
        let prompt = long_prompt(&twins.warm, 1);
        let mut forked = prompt.clone();
        forked[130] ^= 1;
        let mut deepest = 0;
        for prompt in [&prompt, &forked] {
            let answer = twins.ask(&Ask::new(prompt), fixture.name).await;
            deepest = deepest.max(prompt.len() + answer.said.tokens.len() - 1);
        }
        let nodes = twins.warm.engine.describe_cache(MODEL).await.unwrap();
        assert_eq!(nodes.iter().map(|node| node.depth).max(), Some(deepest));
        assert!(nodes.iter().any(|node| node.depth == 130), "the place where they part");
        for node in &nodes {
            let above = node.parent.map_or(0, |parent| nodes[parent].depth);
            assert_eq!(above + node.edge_tokens, node.depth, "{nodes:?}");
            assert!(!node.leased && !node.pinned, "{node:?}");
            assert!(fixture.recurrent || !node.restore_point || node.depth > 0, "{node:?}");
        }
        let status = twins.warm.engine.status();
        let device = status.memory.tier(Tier::Device).used(sconce_cache::Class::CachedState);
        let bytes: u64 = nodes.iter().map(|node| node.span_bytes + node.point_bytes).sum();
        assert_eq!(bytes, device, "what is described is what is charged");
        twins.end().await;
    }
}
