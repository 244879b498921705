//! Prompts that were edited at random, alone and several at once, for every architecture in both
//! precisions.

use crate::support::*;

/// Rounds of edits with each fixture and precision.
const SEEDS: std::ops::Range<u64> = 0..2;

/// Requests of a round.
const REQUESTS: usize = 7;

/// Prompts that were computed, with their completions as far as those were evaluated.
#[derive(Default)]
struct Past {
    prompts: Vec<Vec<u32>>,
    computed: Vec<Vec<u32>>,
}

impl Past {
    fn add(&mut self, ask: &Ask, said: &Said) {
        self.prompts.push(ask.prompt.clone());
        // The last token is drawn, and never evaluated.
        let evaluated = &said.tokens[..said.tokens.len().saturating_sub(1)];
        self.computed.push([&ask.prompt[..], evaluated].concat());
        // Prompts to edit: what was asked, and conversations that go on.
        self.prompts.push([&ask.prompt[..], &said.tokens].concat());
    }

    /// How much of a prompt was computed before.
    fn known(&self, prompt: &[u32]) -> usize {
        let known = self.computed.iter().map(|path| common(path, prompt)).max();
        known.unwrap_or(0).min(prompt.len() - 1)
    }

    /// The bound on what is computed again of a prompt that differs from one of the same length.
    fn recomputed_max(&self, prompt: &[u32]) -> Option<usize> {
        let alike = self.computed.iter().filter(|path| path.len().abs_diff(prompt.len()) <= PAGE);
        let nearest =
            alike.map(|path| path.len().max(prompt.len()) - common(path, prompt)).min()?;
        Some(4 * nearest + 2 * PAGE + PAGE)
    }
}

fn random_ask(random: &mut Random, past: &Past, server: &Server) -> (Ask, String) {
    let info = &server.model.info;
    let count = random.up_to(6);
    let longest = info.context_length - count;
    let (prompt, edit) = edited(random, &past.prompts, info.vocab_size as u32, longest);
    let mut ask = Ask { count, ..Ask::new(&prompt) };
    if random.below(3) == 0 {
        ask.cache.restore_points = vec![random.up_to(prompt.len())];
        ask.cache.boundaries = vec![random.up_to(prompt.len()), prompt.len()];
    }
    (ask, edit)
}

async fn edits_one_after_another(fixture: &'static Fixture) {
    let mut resumed = 0;
    for precision in PRECISIONS {
        for seed in SEEDS {
            let mut setup = Setup::warm(fixture, precision);
            // A cold prompt is cut otherwise than one that is resumed.
            setup.config.step_tokens_max = [2048, 96][seed as usize % 2];
            let twins = Twins::start(&setup).await;
            let (mut random, mut past) = (Random::new(seed), Past::default());
            for number in 0..REQUESTS {
                let (ask, edit) = random_ask(&mut random, &past, &twins.warm);
                let n = ask.prompt.len();
                let case = format!(
                    "{}, {precision:?}, seed {seed}, request {number}, {edit} of {n}",
                    fixture.name
                );
                let answer = twins.ask(&ask, &case).await;
                let report = answer.report;
                assert_eq!(report.matched, past.known(&ask.prompt), "{case}: {report:?}");
                if !fixture.recurrent {
                    assert_eq!(report.resumed, report.matched, "{case}: {report:?}");
                } else if let Some(most) = past.recomputed_max(&ask.prompt) {
                    assert!(report.recomputed <= most, "{case}: at most {most}, {report:?}");
                }
                resumed += report.resumed;
                past.add(&ask, &answer.said);
            }
            twins.end().await;
        }
    }
    let least = PRECISIONS.len() * REQUESTS * PAGE;
    assert!(resumed >= least, "{}: resumed no more than {resumed} tokens", fixture.name);
}

async fn edits_at_once(fixture: &'static Fixture, seed: u64) {
    const AT_ONCE: usize = 3;
    for precision in PRECISIONS {
        let mut setup = Setup::warm(fixture, precision);
        setup.config.step_tokens_max = 150;
        let twins = Twins::start(&setup).await;
        let (mut random, mut past) = (Random::new(seed), Past::default());
        let (first, _) = random_ask(&mut random, &past, &twins.warm);
        past.prompts.push(first.prompt);
        let mut resumed = 0;
        for round in 0..3 {
            let asks: Vec<(Ask, String)> =
                (0..AT_ONCE).map(|_| random_ask(&mut random, &past, &twins.warm)).collect();
            let (asks, edits): (Vec<_>, Vec<_>) = asks.into_iter().unzip();
            let name = fixture.name;
            let case = format!("{name}, {precision:?}, seed {seed}, round {round}, {edits:?}");
            let answers = twins.ask_together(&asks, &case).await;
            for (ask, answer) in asks.iter().zip(&answers) {
                resumed += answer.report.resumed;
                past.add(ask, &answer.said);
            }
        }
        assert!(resumed >= PAGE, "{}: resumed no more than {resumed} tokens", fixture.name);
        twins.end().await;
    }
}

#[tokio::test]
async fn edited_prompts_of_plain_transformers_are_answered_as_if_they_were_new() {
    for fixture in [&LLAMA, &QWEN3, &QWEN3_MOE] {
        edits_one_after_another(fixture).await;
    }
}

#[tokio::test]
async fn edited_prompts_of_windows_and_latents_are_answered_as_if_they_were_new() {
    for fixture in [&GEMMA3, &GLM4] {
        edits_one_after_another(fixture).await;
    }
}

#[tokio::test]
async fn edited_prompts_of_hybrids_are_answered_as_if_they_were_new() {
    for fixture in [&QWEN3_NEXT, &QWEN3_5, &QWEN3_5_MOE] {
        edits_one_after_another(fixture).await;
    }
}

#[tokio::test]
async fn requests_that_run_together_and_share_a_prefix_are_answered_as_if_they_were_alone() {
    for (seed, fixture) in ALL.into_iter().enumerate() {
        edits_at_once(fixture, 100 + seed as u64).await;
    }
}

#[tokio::test]
async fn an_exact_repeat_computes_a_token_or_what_follows_the_last_restore_point() {
    for fixture in ALL {
        let twins = Twins::start(&Setup::warm(fixture, Default::default())).await;
        let ask = Ask::new(&long_prompt(&twins.warm, 1));
        assert!(ask.prompt.len() >= 200);
        let first = twins.ask(&ask, fixture.name).await;
        assert_eq!((first.report.resumed, first.report.matched), (0, 0));
        for _ in 0..2 {
            let again = twins.ask(&ask, fixture.name).await;
            assert_eq!(again.report.matched, ask.prompt.len() - 1);
            let (found, most) = (again.report.recomputed, repeat_max(fixture));
            assert!(found <= most, "{}: {found} tokens, at most {most}", fixture.name);
        }
        twins.end().await;
    }
}

#[tokio::test]
async fn a_conversation_that_goes_on_computes_what_is_new() {
    for fixture in ALL {
        let twins = Twins::start(&Setup::warm(fixture, Default::default())).await;
        let vocabulary = twins.warm.model.info.vocab_size as u32;
        let mut random = Random::new(2);
        let mut ask = Ask { count: 9, ..Ask::new(&random_tokens(&mut random, 70, vocabulary)) };
        let mut computed = 0;
        for turn in 0..5 {
            let answer = twins.ask(&ask, &format!("{}, turn {turn}", fixture.name)).await;
            // All but the last token that was said were evaluated, and the end is a restore point.
            assert_eq!(answer.report.resumed, computed, "{}: {:?}", fixture.name, answer.report);
            computed = ask.prompt.len() + answer.said.tokens.len() - 1;
            ask.prompt.extend(answer.said.tokens);
            let len = random.up_to(20);
            ask.prompt.extend(random_tokens(&mut random, len, vocabulary));
        }
        twins.end().await;
    }
}
