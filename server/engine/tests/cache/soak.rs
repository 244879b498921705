//! Everything at once: random budgets, and random prompts between cancellations, unloads, restarts,
//! snapshots and damage. `SCONCE_SOAK=first..end` runs other seeds than the few of a test run.

use std::ops::Range;
use std::path::Path;

use sconce_engine::SnapshotRequest;

use crate::support::*;

/// Seeds of a test run, and those that have found something once.
const SEEDS: Range<u64> = 0..10;
const FOUND: [u64; 2] = [12, 117];

/// Things that happen with each of them.
const ACTIONS: usize = 14;

fn seeds() -> Vec<u64> {
    let Ok(asked) = std::env::var("SCONCE_SOAK") else { return SEEDS.chain(FOUND).collect() };
    let (first, end) = asked.split_once("..").expect("SCONCE_SOAK is first..end");
    (first.parse().unwrap()..end.parse().unwrap()).collect()
}

/// An engine that may be restarted, and what it was asked so far.
struct Soak {
    setup: Setup,
    warm: Server,
    cold: Server,
    random: Random,
    past: Vec<Vec<u32>>,
    snapshots: Vec<String>,
    resumed: usize,
    seed: u64,
}

/// Budgets from nothing to plenty.
fn random_setup(random: &mut Random, fixture: &'static Fixture, directory: &Path) -> Setup {
    let precision = *random.pick(&PRECISIONS);
    let mut setup = Setup::warm(fixture, precision);
    setup.config.running_max = random.up_to(4);
    setup.config.step_tokens_max = *random.pick(&[1, 50, 64, 100, 512]).max(&20);
    setup.contexts = *random.pick(&[None, Some(1), Some(2)]);
    let spacing = &mut setup.config.cache.spacing;
    (spacing.every, spacing.tail_factor) = (*random.pick(&[0, 64, 8192]), *random.pick(&[0, 2, 4]));
    let (page, point) = setup.sizes();
    let mut some = |unit: u64| match random.below(3) {
        0 => 0,
        1 => unit * (1 + random.below(12) as u64),
        _ => u64::MAX,
    };
    let (device, host, disk) =
        (some(page + point), some(page + point), some(page + point + 16_384));
    setup.limits(device, host, disk).directory(directory)
}

impl Soak {
    async fn start(seed: u64, directory: &Path) -> Self {
        let mut random = Random::new(seed);
        let fixture = ALL[seed as usize % ALL.len()];
        let setup = random_setup(&mut random, fixture, directory);
        let (warm, cold) = (setup.start().await, Twins::cold_of(&setup).await);
        let past = vec![long_prompt(&warm, seed)];
        Self { setup, warm, cold, random, past, snapshots: Vec::new(), resumed: 0, seed }
    }

    /// A prompt like those before, or like one that a snapshot was made of.
    fn random_ask(&mut self) -> Ask {
        let info = &self.warm.model.info;
        let count = self.random.up_to(12);
        let longest = info.context_length - count;
        let vocabulary = info.vocab_size as u32;
        let (prompt, _) = edited(&mut self.random, &self.past, vocabulary, longest);
        let mut ask = Ask { count, ..Ask::new(&prompt) };
        if self.random.below(4) == 0 {
            ask.cache.salt = Some("salt".to_owned());
        }
        if self.random.below(3) == 0 {
            ask.cache.restore_points = vec![self.random.up_to(prompt.len())];
            ask.cache.boundaries = vec![self.random.up_to(prompt.len())];
        }
        ask.cache.bypass = self.random.below(12) == 0;
        ask
    }

    fn case(&self, action: usize, what: &str) -> String {
        let Setup { fixture, precision, config, contexts } = &self.setup;
        let cache = &config.cache;
        format!(
            "seed {}, action {action}, {what}: {} {precision:?}, {} at once, steps of {}, pool \
             {contexts:?}, limits {} {} {}, {:?}",
            self.seed,
            fixture.name,
            config.running_max,
            config.step_tokens_max,
            cache.device,
            cache.host,
            cache.disk,
            cache.spacing,
        )
    }

    async fn ask(&mut self, case: &str, together: usize) {
        let mut asks = Vec::new();
        for _ in 0..together {
            asks.push(self.random_ask());
        }
        let answers = self.warm.ask_together(&asks).await;
        for (index, (ask, answer)) in asks.into_iter().zip(answers).enumerate() {
            let said = truth(&self.cold, &ask).await;
            assert_eq!(answer.said, said, "{case}, request {index}: {:?}", answer.report);
            self.resumed += answer.report.resumed;
            self.past.push([&ask.prompt[..], &said.tokens].concat());
        }
    }

    async fn act(&mut self, action: usize) {
        let kind = self.random.below(12);
        let case = self.case(action, &format!("kind {kind}"));
        match kind {
            0..=3 => self.ask(&case, 1).await,
            4 | 5 => self.ask(&case, 4).await,
            6 => self.cancel().await,
            7 => self.snapshot().await,
            8 => {
                self.warm.unload().await;
                self.warm.load().await;
            }
            9 | 10 => self.restart(kind == 10).await,
            _ => self.drop_snapshot().await,
        }
    }

    /// A request that goes away at some time after it has started, with others on their way.
    async fn cancel(&mut self) {
        let cancelled = Ask { count: 30, ..self.random_ask() };
        let mut generation = self.warm.submit(&cancelled);
        for _ in 0..self.random.below(4) {
            generation.next().await;
        }
        drop(generation);
        self.past.push(cancelled.prompt);
    }

    async fn snapshot(&mut self) {
        let mut ask = self.random_ask();
        ask.cache.bypass = false;
        let name = format!("s{}", self.random.below(3));
        // Where what is pinned has nowhere to go, a request may find no room.
        let pinned = self.random.below(2) == 0 && self.setup.config.cache.host == u64::MAX;
        let request = SnapshotRequest { request: ask.request(), name, pinned, ttl: None };
        // Where there is little room, there may be none for it.
        if let Ok(info) = self.warm.engine.snapshot(request).await {
            assert_eq!(info.tokens, ask.prompt.len());
            self.snapshots.push(info.id);
        }
        self.past.push(ask.prompt);
    }

    async fn drop_snapshot(&mut self) {
        if let Some(id) = self.snapshots.pop() {
            // It may have been replaced, or gone with a restart.
            let _gone = self.warm.engine.drop_snapshot(&id).await;
        }
    }

    /// Another engine on the same directory, where some files were damaged between the two.
    async fn restart(&mut self, damaged: bool) {
        let again = self.setup.clone();
        self.snapshots.clear();
        self.warm.stop().await;
        let records = self.setup.config.cache.directory.as_ref().unwrap().join("records");
        if damaged && let Ok(files) = std::fs::read_dir(records) {
            let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
            paths.sort();
            for path in paths {
                let mut bytes = std::fs::read(&path).unwrap();
                if self.random.below(3) == 0 && !bytes.is_empty() {
                    let at = self.random.below(bytes.len());
                    bytes[at] ^= 1 << self.random.below(8);
                    std::fs::write(path, bytes).unwrap();
                }
            }
        }
        self.warm = again.start().await;
    }
}

#[tokio::test]
async fn whatever_happens_in_between_the_answers_are_those_of_a_cold_engine() {
    let (mut resumed, mut seeds_run) = (0, 0);
    for seed in seeds() {
        let folder = tempfile::tempdir().unwrap();
        let mut soak = Soak::start(seed, folder.path()).await;
        for action in 0..ACTIONS {
            soak.act(action).await;
        }
        soak.ask(&soak.case(ACTIONS, "the last"), 2).await;
        resumed += soak.resumed;
        seeds_run += 1;
        soak.warm.end().await;
        soak.cold.end().await;
    }
    assert!(resumed > 200 * seeds_run, "resumed no more than {resumed} tokens");
}
