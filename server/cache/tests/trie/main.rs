//! The trie under random interleavings of everything that can happen to it, against a naive model.
//!
//! `cargo test -p sconce-cache --release --test trie -- --ignored soak` goes on for ten million
//! steps.
#![allow(missing_docs)]

mod naive;
mod rig;
mod rules;
mod storage;
mod tiers;
mod told;
mod world;

use proptest::prelude::*;
use sconce_cache::{Budgets, Policy};
use world::{Nature, Step, World};

/// Worlds of one run of the tests, and steps in each: more than 10^5 in all.
const WORLDS: u32 = 600;
const STEPS: std::ops::Range<usize> = 100..300;

fn step() -> impl Strategy<Value = Step> {
    (any::<u8>(), any::<u32>(), any::<u32>(), any::<u32>()).prop_map(|(kind, a, b, c)| Step {
        kind,
        a,
        b,
        c,
    })
}

fn nature_of(seed: u64) -> Nature {
    let bits = |from: u32, count: u32| (seed >> from) & ((1 << count) - 1);
    // Small, so that everything is under pressure; sometimes nothing.
    let budget = |from, off| if bits(from, 3) < off { 0 } else { 60 + 50 * bits(from + 3, 4) };
    Nature {
        limits: Budgets { device: budget(0, 1), host: budget(7, 2), disk: budget(14, 2) },
        needs_points: bits(21, 3) as u8,
        domains: 1 + bits(24, 4) as usize % 3,
        policy: [Policy::CostToLose, Policy::CostToLose, Policy::Lru, Policy::OldestDeepestLargest]
            [bits(28, 2) as usize],
        ghost_tokens_max: [0, 40, 200, 10_000][bits(30, 2) as usize],
        endless: false,
    }
}

fn run(nature: Nature, steps: &[Step]) -> Result<(), String> {
    let mut world = World::new(nature);
    for (number, &step) in steps.iter().enumerate() {
        world.step(step).map_err(|wrong| format!("step {number}, {step:?}: {wrong}"))?;
    }
    world.close()
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        cases: WORLDS,
        max_shrink_iters: 20_000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_rule_holds_after_every_step(
        seed in any::<u64>(),
        steps in prop::collection::vec(step(), STEPS),
    ) {
        run(nature_of(seed), &steps).map_err(TestCaseError::fail)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        cases: WORLDS / 10,
        ..ProptestConfig::default()
    })]

    #[test]
    fn without_limits_the_longest_prefix_is_always_found(
        seed in any::<u64>(),
        steps in prop::collection::vec(step(), STEPS),
    ) {
        let endless = Budgets { device: 1 << 40, host: 1 << 40, disk: 1 << 40 };
        let nature = Nature { limits: endless, endless: true, ..nature_of(seed) };
        run(nature, &steps).map_err(TestCaseError::fail)?;
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[test]
#[ignore = "ten million steps; minutes in a release build"]
fn soak() {
    const SOAK: u64 = 10_000_000;
    let (mut done, mut moves, mut seed) = (0, 0, 0);
    while done < SOAK {
        seed += 1;
        let mut random = Random(seed);
        let mut world = World::new(nature_of(random.next()));
        for number in 0..2000 {
            let (one, other) = (random.next(), random.next());
            let step = Step {
                kind: (one >> 56) as u8,
                a: one as u32,
                b: other as u32,
                c: (other >> 32) as u32,
            };
            let outcome = world.step(step);
            assert!(outcome.is_ok(), "seed {seed}, step {number}, {step:?}: {outcome:?}");
        }
        done += world.steps;
        moves += world.store.moves;
        let outcome = world.close();
        assert!(outcome.is_ok(), "seed {seed}: {outcome:?}");
    }
    println!("{done} steps in {seed} worlds, {moves} moves of payloads");
}
