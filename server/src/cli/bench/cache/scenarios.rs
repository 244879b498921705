//! Which scenarios there are: repeats, near misses, conversations, pressure, models that go and come
//! back.

use super::plan::{Ask, Kind, Scenario, Step, Tiers};
use super::text::{Prose, with_one_changed};
use crate::cli::error::CliError;

/// How far before the end a token is changed, besides half way.
const DISTANCES: [usize; 4] = [4, 100, 1000, 5000];
/// Turns of a conversation.
const TURNS: usize = 6;
/// The turn after which it forks.
const FORK_AFTER: usize = 2;
/// Tokens of an answer in a conversation.
const ANSWER_TOKENS: usize = 32;
/// Tokens of the message that goes on after a swap, and of one that follows a shared prompt.
const MESSAGE_TOKENS: usize = 32;
/// Tokens of the first request of all, which nobody measures.
const WARM_UP_TOKENS: usize = 128;
/// One-shot prompts between two uses of the shared prompt, each a quarter of its length.
const ONE_SHOTS: usize = 6;
/// How often the shared prompt is used under pressure.
const PRESSED_USES: usize = 3;

/// Lengths that decide the scenarios, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lengths {
    /// Of a prompt.
    pub(super) prompt: usize,
    /// Of the system prompt that several users share.
    pub(super) shared: usize,
    /// Of the conversation that is held over a swap.
    pub(super) held: usize,
}

impl Lengths {
    /// Context that the longest request of any scenario needs beside these.
    pub(super) const MARGIN: usize = 2 * MESSAGE_TOKENS + 2 * ANSWER_TOKENS;
}

/// Every scenario, in the order of a report. Those with files only if `disk`.
///
/// # Errors
/// A checkpoint without a tokenizer.
pub(super) fn scenarios(
    prose: &mut Prose<'_>,
    lengths: Lengths,
    disk: bool,
) -> Result<Vec<Scenario>, CliError> {
    let n = lengths.prompt;
    let mut all = vec![repeat(prose, n)?];
    for distance in DISTANCES.into_iter().filter(|&distance| distance < n) {
        all.push(changed(prose, n, distance, &format!("changed-{distance}"))?);
    }
    all.push(changed(prose, n, n / 2, "changed-half")?);
    all.push(conversation(prose, n)?);
    all.push(alternating(prose, n)?);
    all.push(pressure(prose, lengths.shared)?);
    all.push(parted(prose, lengths.held, ("swap", Step::Swap, Tiers::Ample))?);
    if disk {
        all.push(parted(prose, lengths.held, ("swap-disk", Step::Swap, Tiers::Disk))?);
        all.push(parted(prose, lengths.held, ("restart", Step::Restart, Tiers::Disk))?);
    }
    Ok(all)
}

fn repeat(prose: &mut Prose<'_>, n: usize) -> Result<Scenario, CliError> {
    let mut script = Script::new(prose)?;
    let prompt = prose.write(n)?;
    script.ask("cold", Kind::Cold, prompt.clone());
    script.ask("again", Kind::Repeat, prompt);
    Ok(script.named("repeat", Tiers::Ample))
}

fn changed(
    prose: &mut Prose<'_>,
    n: usize,
    distance: usize,
    name: &str,
) -> Result<Scenario, CliError> {
    let mut script = Script::new(prose)?;
    let prompt = prose.write(n)?;
    let changed = with_one_changed(&prompt, n - distance);
    script.ask("cold", Kind::Cold, prompt);
    script.ask("one token changed", Kind::Near { distance }, changed);
    Ok(script.named(name, Tiers::Ample))
}

/// A system prompt of half the length and turns of a sixteenth, then a message before the end asked
/// anew. The cold prompts come last, and are as long as the last turn and as the fork.
fn conversation(prose: &mut Prose<'_>, n: usize) -> Result<Scenario, CliError> {
    let mut script = Script::new(prose)?;
    let (system, message) = (prose.write(n / 2)?, (n / 16).max(1));
    let first = [system.as_slice(), &prose.write(message)?].concat();
    let mut turns = vec![script.chat("turn 1", Kind::Unmeasured, None, (first, vec![n / 2]))];
    for turn in 2..=TURNS {
        let said = (prose.write(message)?, Vec::new());
        let label = format!("turn {turn}");
        turns.push(script.chat(&label, Kind::Near { distance: message + 1 }, turns.last(), said));
    }
    let said = (prose.write(message)?, Vec::new());
    let kind = Kind::Near { distance: message + 1 };
    let after = &turns[FORK_AFTER - 1];
    script.chat(&format!("fork at turn {}", FORK_AFTER + 1), kind, Some(after), said);
    for (label, turns) in [("cold, last turn", TURNS), ("cold, fork", FORK_AFTER + 1)] {
        let tokens = n / 2 + turns * message + (turns - 1) * ANSWER_TOKENS;
        script.ask(label, Kind::Cold, prose.write(tokens)?);
    }
    Ok(script.named("conversation", Tiers::Ample))
}

/// Two conversations that take turns.
fn alternating(prose: &mut Prose<'_>, n: usize) -> Result<Scenario, CliError> {
    let mut script = Script::new(prose)?;
    let message = (n / 16).max(1);
    let mut last = Vec::new();
    for name in ["A", "B"] {
        let said = (prose.write(n / 2 + message)?, vec![n / 2]);
        last.push(script.chat(&format!("{name}, turn 1"), Kind::Unmeasured, None, said));
    }
    for turn in 2..=3 {
        for (name, last) in ["A", "B"].into_iter().zip(&mut last) {
            let said = (prose.write(message)?, Vec::new());
            let (label, kind) =
                (format!("{name}, turn {turn}"), Kind::Near { distance: message + 1 });
            *last = script.chat(&label, kind, Some(last), said);
        }
    }
    script.ask("cold", Kind::Cold, prose.write(n / 2 + 3 * message + 2 * ANSWER_TOKENS)?);
    Ok(script.named("alternating", Tiers::Ample))
}

/// A long prompt that several users share, and between their requests more prompts that nobody asks
/// again than there is room for.
fn pressure(prose: &mut Prose<'_>, shared: usize) -> Result<Scenario, CliError> {
    let mut script = Script::new(prose)?;
    let system = prose.write(shared)?;
    let mut used = 0;
    let mut ask = |script: &mut Script, prose: &mut Prose<'_>, kind: Kind| {
        used += 1;
        let prompt = [system.as_slice(), &prose.write(MESSAGE_TOKENS)?].concat();
        script.chat(&format!("user {used}"), kind, None, (prompt, vec![shared]));
        Ok::<(), CliError>(())
    };
    ask(&mut script, prose, Kind::Cold)?;
    let kind = Kind::Survive { distance: MESSAGE_TOKENS };
    ask(&mut script, prose, kind)?;
    for _ in 0..PRESSED_USES {
        for _ in 0..ONE_SHOTS {
            script.ask("one-shot", Kind::Unmeasured, prose.write(shared / 4)?);
        }
        ask(&mut script, prose, kind)?;
    }
    Ok(script.named("pressure", Tiers::Pressed))
}

/// A conversation that goes on after its model, or the whole engine, was gone.
fn parted(
    prose: &mut Prose<'_>,
    held: usize,
    (name, parting, tiers): (&str, Step, Tiers),
) -> Result<Scenario, CliError> {
    let mut script = Script::new(prose)?;
    let said = (prose.write(held)?, Vec::new());
    let first = script.chat("cold", Kind::Cold, None, said);
    script.steps.push(parting);
    let said = (prose.write(MESSAGE_TOKENS)?, Vec::new());
    script.chat("goes on", Kind::Onward, Some(&first), said);
    Ok(script.named(name, tiers))
}

/// The steps of a scenario as they are put together.
struct Script {
    steps: Vec<Step>,
    asks: usize,
}

impl Script {
    /// Begins with a request that wakes up threads and memory.
    fn new(prose: &mut Prose<'_>) -> Result<Self, CliError> {
        let mut script = Self { steps: Vec::new(), asks: 0 };
        script.ask("warm-up", Kind::Unmeasured, prose.write(WARM_UP_TOKENS)?);
        Ok(script)
    }

    /// Adds a prompt of which one token is wanted.
    fn ask(&mut self, label: &str, kind: Kind, tokens: Vec<u32>) {
        self.push(Ask {
            label: label.to_owned(),
            after: None,
            tokens,
            boundaries: Vec::new(),
            completion: 1,
            kind,
        });
    }

    /// Adds a message, with the ends of those inside it, and the answer that follows. Returns which
    /// request it is.
    fn chat(
        &mut self,
        label: &str,
        kind: Kind,
        after: Option<&usize>,
        (tokens, boundaries): (Vec<u32>, Vec<usize>),
    ) -> usize {
        self.push(Ask {
            label: label.to_owned(),
            after: after.copied(),
            tokens,
            boundaries,
            completion: ANSWER_TOKENS,
            kind,
        })
    }

    fn push(&mut self, ask: Ask) -> usize {
        self.steps.push(Step::Ask(ask));
        self.asks += 1;
        self.asks - 1
    }

    fn named(self, name: &str, tiers: Tiers) -> Scenario {
        Scenario { name: name.to_owned(), tiers, steps: self.steps }
    }
}

#[cfg(test)]
mod tests {
    use sconce_server::models::ModelText;

    use super::*;

    fn plan(prompt: usize, disk: bool) -> Vec<Scenario> {
        let text = ModelText::open("sim:").expect("the simulated model has a text");
        let lengths = Lengths { prompt, shared: 2 * prompt, held: 3 * prompt };
        scenarios(&mut Prose::new(&text, 1), lengths, disk).expect("has a tokenizer")
    }

    #[test]
    fn a_token_is_changed_only_where_the_prompt_is_that_long() {
        let names = |n| plan(n, false).into_iter().map(|found| found.name).collect::<Vec<_>>();
        assert!(names(6000).contains(&"changed-5000".to_owned()));
        assert!(!names(4096).contains(&"changed-5000".to_owned()));
        assert_eq!(plan(256, true).len(), plan(256, false).len() + 2);
    }

    #[test]
    fn no_request_is_longer_than_was_announced() {
        for scenario in plan(512, true) {
            let mut lengths: Vec<usize> = Vec::new();
            for step in &scenario.steps {
                let Step::Ask(ask) = step else { continue };
                let before = ask.after.map_or(0, |index| lengths[index]);
                lengths.push(before + ask.tokens.len() + ask.completion);
            }
            let longest = lengths.into_iter().max().expect("has requests");
            assert!(longest <= 3 * 512 + Lengths::MARGIN, "{}: {longest}", scenario.name);
        }
    }

    #[test]
    fn a_changed_prompt_differs_in_one_token_at_its_distance() {
        let all = plan(512, false);
        let scenario = all.iter().find(|found| found.name == "changed-100").expect("is there");
        let [.., Step::Ask(base), Step::Ask(changed)] = scenario.steps.as_slice() else {
            panic!("expected two requests at the end");
        };
        let differing: Vec<usize> =
            (0..512).filter(|&index| base.tokens[index] != changed.tokens[index]).collect();
        assert_eq!(differing, [412]);
        assert_eq!(changed.kind.recomputed_max(512), Some(528));
    }
}
