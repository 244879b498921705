//! Which cases the command line asks for, in which order, and how much room they need.

use std::str::FromStr;

use super::Args;
use crate::cli::error::CliError;

/// Most repetitions.
const REPETITIONS_MAX: usize = 1000;
/// Most values of all lists multiplied.
const CASES_MAX: usize = 10_000;

/// What is measured of a sequence, after it was brought to a depth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A prompt, without a token after it.
    Prefill,
    /// Tokens one by one.
    Decode,
    /// A prompt and tokens after it, measured together.
    Pair,
}

impl Kind {
    /// Its name in reports.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
            Self::Pair => "prefill+decode",
        }
    }
}

/// One thing that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Case {
    pub(super) kind: Kind,
    /// Threads that compute.
    pub(super) threads: usize,
    /// Most tokens of a step of prefill.
    pub(super) step_tokens: usize,
    /// Tokens of each sequence before the measured ones.
    pub(super) depth: usize,
    /// Tokens of the prompt of each sequence.
    pub(super) prompt: usize,
    /// Tokens that each sequence decodes after it.
    pub(super) generate: usize,
    /// Sequences; 1 for a prefill alone.
    pub(super) streams: usize,
}

impl Case {
    /// Tokens of each sequence that are measured.
    pub(super) fn tokens(&self) -> usize {
        self.prompt.saturating_add(self.generate)
    }

    /// Tokens that each sequence holds at the end; more than any model has room for if they cannot
    /// be counted.
    pub(super) fn context(&self) -> usize {
        self.depth.saturating_add(self.tokens())
    }

    /// Most tokens of a step of prefill; `None` where there is none.
    pub(super) fn prefill_step(&self) -> Option<usize> {
        (self.prompt > 0).then_some(self.step_tokens)
    }

    /// The same with at most `tokens` measured tokens, to be run once before it counts.
    pub(super) fn warm_up(&self, tokens: usize) -> Self {
        Self { prompt: self.prompt.min(tokens), generate: self.generate.min(tokens), ..*self }
    }
}

/// A prompt and tokens decoded after it, `512+128`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pair {
    prompt: usize,
    generate: usize,
}

impl FromStr for Pair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected two numbers of at least 1, as in 512+128".to_owned();
        let (prompt, generate) = text.split_once('+').ok_or_else(expected)?;
        let count = |text: &str| text.parse().ok().filter(|count| *count > 0).ok_or_else(expected);
        Ok(Self { prompt: count(prompt)?, generate: count(generate)? })
    }
}

/// Every case that `args` asks for on `threads`, in the order of a report.
///
/// # Errors
/// Values out of range, nothing to measure, too much of it.
pub(super) fn cases(args: &Args, threads: &[usize]) -> Result<Vec<Case>, CliError> {
    check(args)?;
    let mut cases = Vec::new();
    for &threads in threads {
        for (index, &step_tokens) in args.step_tokens.iter().enumerate() {
            for &depth in &args.depths {
                let base = Case {
                    kind: Kind::Prefill,
                    threads,
                    step_tokens,
                    depth,
                    prompt: 0,
                    generate: 0,
                    streams: 1,
                };
                // Decoding is one token a sequence, whatever the size of a step.
                push(&mut cases, args, base, index == 0);
                if cases.len() > CASES_MAX {
                    let expected = format!("expected at most {CASES_MAX} cases");
                    return Err(CliError::Usage(format!("{expected}: shorten a list")));
                }
            }
        }
    }
    if cases.is_empty() {
        let message = "nothing to measure: --prompts 0 and --generate 0, and no --pairs";
        return Err(CliError::Usage(message.to_owned()));
    }
    Ok(cases)
}

/// The cases of one depth and one size of a step.
fn push(cases: &mut Vec<Case>, args: &Args, base: Case, decode: bool) {
    for &prompt in args.prompts.iter().filter(|tokens| **tokens > 0) {
        cases.push(Case { prompt, ..base });
    }
    for &generate in args.generate.iter().filter(|tokens| decode && **tokens > 0) {
        for &streams in &args.streams {
            cases.push(Case { kind: Kind::Decode, generate, streams, ..base });
        }
    }
    for &Pair { prompt, generate } in &args.pairs {
        for &streams in &args.streams {
            cases.push(Case { kind: Kind::Pair, prompt, generate, streams, ..base });
        }
    }
}

fn check(args: &Args) -> Result<(), CliError> {
    let usage = |message: String| Err(CliError::Usage(message));
    if !(1..=REPETITIONS_MAX).contains(&args.repetitions) {
        let found = args.repetitions;
        return usage(format!("--repetitions: expected 1 to {REPETITIONS_MAX}, found {found}"));
    }
    for (flag, values) in [("--streams", &args.streams), ("--step-tokens", &args.step_tokens)] {
        if values.contains(&0) {
            return usage(format!("{flag}: expected at least 1, found 0"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn plan(line: &str) -> Result<Vec<String>, String> {
        let words = ["bench", "--path", "sim:"].into_iter().chain(line.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        let threads = if line.args.threads.is_empty() { &[3][..] } else { &line.args.threads };
        let cases = cases(&line.args, threads).map_err(|error| error.to_string())?;
        let text = |case: &Case| {
            let Case { threads, step_tokens, depth, prompt, generate, streams, .. } = case;
            let name = case.kind.name();
            format!("{name} {prompt}+{generate}@{depth}x{streams} t{threads} s{step_tokens}")
        };
        Ok(cases.iter().map(text).collect())
    }

    #[test]
    fn every_combination_is_a_case_once() {
        let found = plan("-p 8,0,16 -g 4,0 -d 0,5 -s 1,2 --pairs 8+4 --threads 1").unwrap();
        let at = |depth| {
            [
                format!("prefill 8+0@{depth}x1 t1 s2048"),
                format!("prefill 16+0@{depth}x1 t1 s2048"),
                format!("decode 0+4@{depth}x1 t1 s2048"),
                format!("decode 0+4@{depth}x2 t1 s2048"),
                format!("prefill+decode 8+4@{depth}x1 t1 s2048"),
                format!("prefill+decode 8+4@{depth}x2 t1 s2048"),
            ]
        };
        assert_eq!(found, [at(0), at(5)].concat());
    }

    #[test]
    fn the_size_of_a_step_concerns_prompts_alone() {
        let found = plan("-p 8 -g 4 --step-tokens 2,4 --threads 1,2").unwrap();
        let on = |t| {
            [
                format!("prefill 8+0@0x1 t{t} s2"),
                format!("decode 0+4@0x1 t{t} s2"),
                format!("prefill 8+0@0x1 t{t} s4"),
            ]
        };
        assert_eq!(found, [on(1), on(2)].concat());
    }

    #[test]
    fn the_names_that_flags_had_before_are_still_known() {
        let found = plan("--prompt 8 --generate 4 --depth 1 --batch 2").unwrap();
        assert_eq!(found, ["prefill 8+0@1x1 t3 s2048", "decode 0+4@1x2 t3 s2048"]);
        assert_eq!(plan("-p 0 -g 4 -b 2").unwrap(), ["decode 0+4@0x2 t3 s2048"]);
    }

    #[test]
    fn what_cannot_be_measured_is_refused_by_its_flag() {
        for (line, flag) in [
            ("-r 0", "--repetitions"),
            ("-r 1001", "--repetitions"),
            ("-s 0", "--streams"),
            ("--step-tokens 8,0", "--step-tokens"),
            ("-p 0 -g 0", "--prompts"),
            ("-p x", "--prompts"),
            ("--pairs 512", "--pairs"),
            ("--pairs 0+1", "--pairs"),
            ("--output xml", "--output"),
            ("--json --output table", "--output"),
        ] {
            let error = plan(line).unwrap_err();
            assert!(error.contains(flag), "{line}: {error}");
        }
        let many: Vec<String> = (1..=150).map(|n| n.to_string()).collect();
        let many = many.join(",");
        let error = plan(&format!("-g 0 -p {many} -d {many}")).unwrap_err();
        assert!(error.contains("10000 cases"), "{error}");
    }
}
