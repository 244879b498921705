//! Resumed from each tier: after an unload, a swap, a restart, and where faster tiers are off.

use std::path::Path;

use sconce_cache::Tier;
use sconce_models::Precision;

use crate::support::*;

const ON: u64 = u64::MAX;

fn setup(fixture: &'static Fixture, directory: &Path) -> Setup {
    Setup::warm(fixture, Precision::Fast).limits(ON, ON, ON).directory(directory)
}

/// A prompt, one that differs in the middle, and one that differs near its end.
fn family(server: &Server) -> [Ask; 3] {
    let prompt = long_prompt(server, 1);
    let edited = |at: usize| {
        let mut prompt = prompt.clone();
        prompt[at] ^= 1;
        Ask::new(&prompt)
    };
    [Ask::new(&prompt), edited(prompt.len() / 2 + 3), edited(prompt.len() - 9)]
}

/// Asks each of them again, and holds what is resumed to the bounds of a repeat.
async fn ask_again(warm: &Server, asks: &[Ask], said: &[Said], tier: Tier, case: &str) {
    for (ask, said) in asks.iter().zip(said) {
        let name = warm.setup.fixture.name;
        let answer = warm.ask(ask).await;
        let report = answer.report;
        assert_eq!(answer.said, *said, "{name}, {case}: {report:?}");
        assert_eq!(report.tier, Some(tier), "{name}, {case}: {report:?}");
        let most = repeat_max(warm.setup.fixture);
        assert!(report.recomputed <= most, "{name}, {case}: {report:?}");
    }
}

/// What a cold engine says to each of them.
async fn truths(setup: &Setup, asks: &[Ask]) -> Vec<Said> {
    let cold = Twins::cold_of(setup).await;
    let mut said = Vec::new();
    for ask in asks {
        said.push(truth(&cold, ask).await);
    }
    cold.end().await;
    said
}

#[tokio::test]
async fn each_tier_alone_is_enough_to_resume_from() {
    for fixture in ALL {
        for tier in Tier::ALL {
            let folder = tempfile::tempdir().unwrap();
            let [device, host, disk] = Tier::ALL.map(|t| if t == tier { ON } else { 0 });
            let setup = setup(fixture, folder.path()).limits(device, host, disk);
            let warm = setup.start().await;
            let asks = family(&warm);
            let said = truths(&setup, &asks).await;
            for (ask, said) in asks.iter().zip(&said) {
                assert_eq!(warm.ask(ask).await.said, *said, "{}, {tier:?}", fixture.name);
            }
            ask_again(&warm, &asks, &said, tier, "alone").await;
            // And all of them at once.
            for (answer, said) in warm.ask_together(&asks).await.iter().zip(&said) {
                assert_eq!(answer.said, *said, "{}, {tier:?}, together", fixture.name);
                assert_eq!(answer.report.tier, Some(tier));
            }
            warm.end().await;
        }
    }
}

#[tokio::test]
async fn a_model_that_was_swapped_out_goes_on_where_it_was() {
    for (index, fixture) in ALL.into_iter().enumerate() {
        for tier in [Tier::Host, Tier::Disk] {
            let folder = tempfile::tempdir().unwrap();
            let host = if tier == Tier::Host { ON } else { 0 };
            let setup = setup(fixture, folder.path()).limits(ON, host, ON);
            let warm = setup.start().await;
            let asks = family(&warm);
            let said = truths(&setup, &asks).await;
            for ask in &asks {
                warm.ask(ask).await;
            }
            warm.unload().await;
            let status = warm.engine.status();
            assert_eq!(status.memory.tier(Tier::Device).total(), 0, "{}", fixture.name);
            // Another model between, which is asked the same as far as it knows the tokens.
            let other = ALL[(index + 1) % ALL.len()];
            load(&warm.engine, MODEL, settings(other, Precision::Fast)).await;
            let answer = warm
                .ask(&Ask::new(&asks[0].prompt[..150].iter().map(|id| id % 96).collect::<Vec<_>>()))
                .await;
            assert_eq!(answer.report.resumed, 0, "nothing is shared among models");
            warm.unload().await;
            warm.load().await;
            ask_again(&warm, &asks, &said, tier, "swapped").await;
            warm.end().await;
        }
    }
}

#[tokio::test]
async fn a_restarted_engine_finds_what_the_one_before_left_on_disk() {
    for fixture in ALL {
        for precision in PRECISIONS {
            let folder = tempfile::tempdir().unwrap();
            let setup = Setup { precision, ..setup(fixture, folder.path()) };
            let first = setup.start().await;
            let asks = family(&first);
            let said = truths(&setup, &asks).await;
            for ask in &asks {
                first.ask(ask).await;
            }
            first.end().await;
            let second = setup.start().await;
            // The first of them brings the rest of what they share to the device.
            let report = second.ask(&asks[0]).await.report;
            assert_eq!(report.tier, Some(Tier::Disk), "{}: {report:?}", fixture.name);
            ask_again(&second, &asks[1..], &said[1..], Tier::Disk, "restarted").await;
            // Spans are on the device by now; a recurrent state is read where it lies.
            let tier = if fixture.recurrent { Tier::Disk } else { Tier::Device };
            ask_again(&second, &asks, &said, tier, "paged in").await;
            second.end().await;
            // Once more, for what was paged in has to be written again.
            let third = setup.start().await;
            ask_again(&third, &asks, &said, Tier::Disk, "restarted again").await;
            third.end().await;
        }
    }
}

#[tokio::test]
async fn precisions_of_the_same_weights_share_nothing_across_a_restart() {
    for fixture in [&QWEN3, &QWEN3_5] {
        let folder = tempfile::tempdir().unwrap();
        let fast = setup(fixture, folder.path());
        let exact = Setup { precision: Precision::Exact, ..fast.clone() };
        let first = fast.start().await;
        let asks = family(&first);
        first.ask(&asks[0]).await;
        first.end().await;
        let second = exact.start().await;
        let answer = second.ask(&asks[0]).await;
        assert_eq!(answer.report.resumed, 0, "{}: {:?}", fixture.name, answer.report);
        assert_eq!(answer.said, truths(&exact, &asks[..1]).await[0]);
        second.end().await;
    }
}

#[tokio::test]
async fn the_same_weights_under_two_names_are_two_models_that_both_come_back() {
    for fixture in [&LLAMA, &QWEN3_NEXT] {
        let folder = tempfile::tempdir().unwrap();
        let setup = setup(fixture, folder.path());
        let warm = setup.start().await;
        load(&warm.engine, "twin", setup.settings()).await;
        let asks = family(&warm);
        let said = truths(&setup, &asks).await;
        let ask_twin = async |ask: &Ask| {
            let request = sconce_engine::Request { model: "twin".to_owned(), ..ask.request() };
            read(warm.engine.generate(request).unwrap()).await
        };
        for (ask, said) in asks.iter().zip(&said) {
            assert_eq!(warm.ask(ask).await.said, *said, "{}", fixture.name);
            let answer = ask_twin(ask).await;
            assert_eq!(answer.said, *said, "{}, the twin", fixture.name);
        }
        for name in [MODEL, "twin"] {
            warm.engine.unload(name, false).await.unwrap();
        }
        warm.load().await;
        load(&warm.engine, "twin", setup.settings()).await;
        ask_again(&warm, &asks, &said, Tier::Host, "one of two").await;
        for (ask, said) in asks.iter().zip(&said) {
            let answer = ask_twin(ask).await;
            assert_eq!(answer.said, *said, "{}, the twin again", fixture.name);
            assert!(answer.report.recomputed <= repeat_max(fixture), "{:?}", answer.report);
        }
        warm.end().await;
    }
}

#[tokio::test]
async fn a_swap_into_too_little_room_keeps_what_can_be_resumed() {
    for fixture in ALL {
        let folder = tempfile::tempdir().unwrap();
        let (page, point) = setup(fixture, folder.path()).sizes();
        for room in [2, 6] {
            let host = room * 7 * page + room * 3 * point;
            let setup = setup(fixture, folder.path()).limits(ON, host, 0);
            let twins = Twins::start(&setup).await;
            let asks: Vec<_> = (0..8).map(|i| Ask::new(&long_prompt(&twins.warm, i))).collect();
            for ask in &asks {
                twins.ask(ask, fixture.name).await;
            }
            twins.warm.unload().await;
            twins.warm.load().await;
            let mut resumed = 0;
            for ask in &asks {
                resumed += twins.ask(ask, fixture.name).await.report.resumed;
            }
            let least = room as usize / 2 * asks[0].prompt.len() / 2;
            assert!(resumed >= least, "{}, {room}: {resumed} tokens", fixture.name);
            twins.end().await;
        }
    }
}

/// Asks the model that is loaded under `name`.
async fn ask_named(server: &Server, name: &str, ask: &Ask) -> Answer {
    let request = sconce_engine::Request { model: name.to_owned(), ..ask.request() };
    read(server.engine.generate(request).unwrap()).await
}

#[tokio::test]
async fn two_models_that_take_turns_share_the_tiers_and_nothing_else() {
    for (fixture, other) in [(&QWEN3, &QWEN3_5), (&QWEN3_NEXT, &GLM4), (&QWEN3_5_MOE, &QWEN3_5)] {
        let folder = tempfile::tempdir().unwrap();
        let (page, point) = setup(fixture, folder.path()).sizes();
        let (their_page, their_point) = setup(other, folder.path()).sizes();
        let one = 7 * page.max(their_page) + 4 * point.max(their_point);
        let limits =
            [(one, ON, 0), (2 * one, 0, ON), (one, 3 * one, ON), (ON, 2 * one, 0), (0, one, ON)];
        for (device, host, disk) in limits {
            let setup = setup(fixture, folder.path()).limits(device, host, disk);
            let twins = Twins::start(&setup).await;
            let their_cold = Twins::cold_of(&Setup { fixture: other, ..setup.clone() }).await;
            load(&twins.warm.engine, "other", settings(other, Precision::Fast)).await;
            let case = format!("{}, {}, {device} {host} {disk}", fixture.name, other.name);
            let mut resumed = [0, 0];
            for round in 0..3 {
                for seed in 0..3 {
                    let ask = Ask::new(&long_prompt(&twins.warm, seed));
                    resumed[0] += twins.ask(&ask, &format!("{case}, {round}")).await.report.resumed;
                    let ask = Ask::new(&long_prompt(&their_cold, seed + 10));
                    let answer = ask_named(&twins.warm, "other", &ask).await;
                    assert_eq!(answer.said, truth(&their_cold, &ask).await, "{case}, the other");
                    resumed[1] += answer.report.resumed;
                }
            }
            assert!(resumed.iter().all(|tokens| *tokens > 0), "{case}: {resumed:?}");
            twins.end().await;
            their_cold.end().await;
        }
    }
}

#[tokio::test]
async fn small_tiers_under_each_other_pass_on_what_they_have_no_room_for() {
    for fixture in [&GEMMA3, &GLM4, &QWEN3_5_MOE] {
        let folder = tempfile::tempdir().unwrap();
        let (page, point) = setup(fixture, folder.path()).sizes();
        // Each of the first two has room for about one of the prompts.
        let (device, host) = (8 * page + 4 * point, 9 * page + 5 * point);
        let setup = setup(fixture, folder.path()).limits(device, host, 64 << 20);
        let twins = Twins::start(&setup).await;
        let asks: Vec<_> = (0..5).map(|i| Ask::new(&long_prompt(&twins.warm, i))).collect();
        let mut tiers = Vec::new();
        for round in 0..3 {
            for ask in &asks {
                let case = format!("{}, round {round}", fixture.name);
                let report = twins.ask(ask, &case).await.report;
                if round > 0 {
                    assert!(report.resumed > 0, "{case}: {report:?}");
                }
                tiers.extend(report.tier);
            }
        }
        assert!(tiers.contains(&Tier::Disk), "{}: {tiers:?}", fixture.name);
        twins.end().await;
    }
}
