//! Too little room: small pools, small budgets, requests that are preempted or go away in the middle.

use std::sync::Arc;

use sconce_cache::Tier;
use sconce_models::Precision;

use crate::support::*;

/// Where a pool of few contexts has room for some points: beside pages in 8 bits the states of the
/// small hybrids are large.
const WIDE_PAGES: Precision = Precision::Fine;

/// A few conversations in turn, more than there is room for; what was resumed of them in all.
async fn conversations_in_turn(twins: &Twins, case: &str) -> usize {
    let (mut random, info) = (Random::new(3), &twins.warm.model.info);
    let vocabulary = info.vocab_size as u32;
    let shared = random_tokens(&mut random, 2 * PAGE + 10, vocabulary);
    let mut talks = vec![shared; 3];
    let mut resumed = 0;
    for turn in 0..3 {
        for (number, talk) in talks.iter_mut().enumerate() {
            let len = 30 + random.below(40);
            talk.extend(random_tokens(&mut random, len, vocabulary));
            talk.truncate(info.context_length - 5);
            let case = format!("{case}, conversation {number}, turn {turn}");
            let answer = twins.ask(&Ask::new(talk), &case).await;
            resumed += answer.report.resumed;
            talk.extend(answer.said.tokens);
        }
    }
    resumed
}

#[tokio::test]
async fn a_pool_that_is_too_small_for_all_of_it_gives_the_right_answers() {
    for fixture in ALL {
        let mut setup = Setup::warm(fixture, WIDE_PAGES);
        setup.contexts = Some(1);
        setup.config.running_max = 2;
        let twins = Twins::start(&setup).await;
        assert!(conversations_in_turn(&twins, fixture.name).await > 0, "{}", fixture.name);
        let asks: Vec<_> = (0..4).map(|i| Ask::new(&long_prompt(&twins.warm, i % 3))).collect();
        twins.ask_together(&asks, fixture.name).await;
        twins.end().await;
    }
}

#[tokio::test]
async fn a_small_budget_of_the_device_is_never_exceeded_and_gives_the_right_answers() {
    for fixture in [&QWEN3, &GLM4, &QWEN3_5] {
        let setup = Setup::warm(fixture, Default::default());
        let (page, point) = setup.sizes();
        for pages in [1, 5] {
            let device = pages * page + 3 * point + 1;
            let twins = Twins::start(&setup.clone().limits(device, 0, 0)).await;
            let case = format!("{}, {pages} pages", fixture.name);
            let resumed = conversations_in_turn(&twins, &case).await;
            assert!(resumed > 0 || pages == 1, "{case}");
            let asks: Vec<_> = (0..3).map(|i| Ask::new(&long_prompt(&twins.warm, i))).collect();
            twins.ask_together(&asks, &case).await;
            twins.end().await;
        }
    }
}

#[tokio::test]
async fn what_leaves_the_device_is_resumed_from_the_host() {
    for fixture in ALL {
        let mut setup = Setup::warm(fixture, WIDE_PAGES).limits(u64::MAX, u64::MAX, 0);
        setup.contexts = Some(1);
        setup.config.running_max = 1;
        let twins = Twins::start(&setup).await;
        let prompts: Vec<_> = (0..3).map(|i| Ask::new(&long_prompt(&twins.warm, i))).collect();
        for ask in &prompts {
            assert_eq!(twins.ask(ask, fixture.name).await.report.resumed, 0);
        }
        for ask in prompts.iter().chain(&prompts) {
            let report = twins.ask(ask, fixture.name).await.report;
            assert_eq!(report.tier, Some(Tier::Host), "{}: {report:?}", fixture.name);
            // The pool has no page to spare for a copy of one that was remembered in part.
            let most = repeat_max(fixture).max(PAGE);
            assert!(report.recomputed <= most, "{}: {report:?}", fixture.name);
        }
        twins.end().await;
    }
}

#[tokio::test]
async fn a_prefill_that_is_cancelled_leaves_the_chunks_that_it_finished() {
    for fixture in ALL {
        let mut setup = Setup::warm(fixture, Default::default());
        setup.config.step_tokens_max = PAGE;
        let (loader, permits) = WatchedLoader::gated();
        // The load steps the model once, before it is behind the gate.
        let warm = setup.start_with(Arc::new(loader)).await;
        let cold = Twins::cold_of(&setup).await;
        let twins = Twins { warm, cold };
        let ask = Ask::new(&long_prompt(&twins.warm, 1));
        let generation = twins.warm.submit(&ask);
        permits.arrival();
        permits.next_step();
        permits.next_step();
        drop(generation);
        drop(permits);
        let report = twins.ask(&ask, fixture.name).await.report;
        // The step at the gate when the caller left was the third.
        assert_eq!(report.resumed, 3 * PAGE, "{}: {report:?}", fixture.name);
        let report = twins.ask(&ask, fixture.name).await.report;
        assert!(report.recomputed <= repeat_max(fixture), "{}: {report:?}", fixture.name);
        twins.end().await;
    }
}

#[tokio::test]
async fn a_completion_that_is_cancelled_leaves_what_it_has_said() {
    for fixture in [&GEMMA3, &QWEN3_5] {
        let setup = Setup::warm(fixture, Default::default());
        let (loader, permits) = WatchedLoader::gated();
        let warm = setup.start_with(Arc::new(loader)).await;
        let twins = Twins { warm, cold: Twins::cold_of(&setup).await };
        let ask = Ask { count: 20, ..Ask::new(&long_prompt(&twins.warm, 1)) };
        let generation = twins.warm.submit(&ask);
        permits.arrival();
        for _ in 0..5 {
            permits.next_step();
        }
        drop(generation);
        drop(permits);
        // The prompt and five tokens: the fifth was in the step at the gate.
        let said = twins.truth(&ask).await;
        let mut next = Ask::new(&[&ask.prompt[..], &said.tokens].concat());
        next.prompt.push(7);
        let report = twins.ask(&next, fixture.name).await.report;
        assert_eq!(report.resumed, ask.prompt.len() + 5, "{}: {report:?}", fixture.name);
        twins.end().await;
    }
}

#[tokio::test]
async fn a_sequence_that_was_preempted_goes_on_as_if_it_had_not_been() {
    for fixture in ALL {
        let mut setup = Setup::warm(fixture, Default::default());
        setup.contexts = Some(1);
        setup.config.running_max = 3;
        let (loader, permits) = WatchedLoader::gated();
        let warm = setup.start_with(Arc::new(loader)).await;
        let twins = Twins { warm, cold: Twins::cold_of(&setup).await };
        // As many as fit are admitted together, and outgrow the pool together.
        let pages = twins.warm.model.pages_max;
        let prompt_pages = (pages - 1) / 3;
        let long = |seed| Ask {
            count: 2 * PAGE,
            ..Ask::new(&long_prompt(&twins.warm, seed)[..prompt_pages * PAGE - 5])
        };
        let asks = [long(1), long(2), long(3)];
        let generations: Vec<_> = asks.iter().map(|ask| twins.warm.submit(ask)).collect();
        permits.arrival();
        drop(permits);
        let mut reading = tokio::task::JoinSet::new();
        for (index, generation) in generations.into_iter().enumerate() {
            reading.spawn(async move { (index, read(generation).await) });
        }
        for (index, answer) in reading.join_all().await {
            let said = twins.truth(&asks[index]).await;
            assert_eq!(answer.said, said, "{}, request {index}", fixture.name);
        }
        let status = twins.warm.engine.status();
        assert!(status.counters.preemptions > 0, "{}: {pages} pages", fixture.name);
        twins.end().await;
    }
}
