//! `sconce bench cache`: what a prompt costs that shares something with one before it.
//!
//! Scenarios run in process on the engine, without the wire, with prompts of real text. The exit
//! code tells whether the promises hold that the design makes about near misses and repeats.

mod plan;
mod report;
mod runner;
mod scenarios;
mod text;

use std::path::PathBuf;

use sconce_cache::Policy;
use sconce_engine::{CacheConfig, LoadSettings};
use sconce_models::LoadOptions;
use sconce_server::models::ModelText;
use serde_json::json;

use self::plan::Scenario;
use self::report::Row;
use self::runner::{Outcome, Setup};
use self::scenarios::{Lengths, scenarios};
use self::text::Prose;
use crate::cli::error::CliError;
use crate::cli::output;
use crate::cli::precision::PrecisionArgs;
use crate::config::{ByteSize, PolicyChoice};

/// Most rounds.
const ROUNDS_MAX: u64 = 1000;
/// Tokens of a prompt below which the scenarios mean nothing.
const TOKENS_MIN: usize = 256;

/// Arguments of `sconce bench cache`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: super::ModelArgs,
    #[command(flatten)]
    precision: PrecisionArgs,
    /// Tokens of a prompt
    #[arg(long, value_name = "N", default_value_t = 4096)]
    tokens: usize,
    /// Tokens of the prompt that users share under pressure [default: 2.5 prompts, within the
    /// context]
    #[arg(long, value_name = "N")]
    shared_tokens: Option<usize>,
    /// Tokens of the conversation held over a swap [default: 4 prompts, within the context]
    #[arg(long, value_name = "N")]
    held_tokens: Option<usize>,
    /// Run these scenarios alone
    #[arg(long, value_name = "SCENARIO", value_delimiter = ',')]
    only: Vec<String>,
    /// How often all is run, each time with another text
    #[arg(long, short = 'r', value_name = "N", default_value_t = 1)]
    rounds: u64,
    /// Decides the text of the first round
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Most bytes of remembered state on the device [default: all of the model's pool]
    #[arg(long, value_name = "BYTES")]
    device_bytes: Option<ByteSize>,
    /// Most bytes of remembered state in main memory beside it
    #[arg(long, value_name = "BYTES", default_value = "4GiB")]
    host_bytes: ByteSize,
    /// Most bytes of remembered state under pressure [default: half more than the shared prompt
    /// takes]
    #[arg(long, value_name = "BYTES")]
    pressure_bytes: Option<ByteSize>,
    /// Also run the scenarios with files, below this folder
    #[arg(long, value_name = "FOLDER")]
    cache_dir: Option<PathBuf>,
    /// Most bytes of files
    #[arg(long, value_name = "BYTES", default_value = "16GiB", requires = "cache_dir")]
    disk_bytes: ByteSize,
    /// What is forgotten first
    #[arg(long, value_enum, default_value = "cost-to-lose")]
    policy: PolicyChoice,
    /// The checkpoint that takes the model's place in a swap
    #[arg(long, value_name = "PATH", default_value = "sim:")]
    other: String,
    /// Also write what is asked to this file, for another server to be asked the same
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// Write the plan and measure nothing
    #[arg(long, requires = "plan")]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs `sconce bench cache`.
pub(super) fn run(args: Args) -> Result<(), CliError> {
    let text = ModelText::open(&args.model.path);
    let text = text.map_err(|error| CliError::Usage(format!("{}: {error}", args.model.path)))?;
    let lengths = args.lengths()?;
    let rounds: Vec<Vec<Scenario>> = (0..args.rounds)
        .map(|round| args.scenarios(&text, lengths, round))
        .collect::<Result<_, _>>()?;
    if let Some(path) = &args.plan {
        write_plan(path, &rounds)?;
    }
    if args.dry_run {
        return Ok(());
    }
    args.model.configure_threads()?;
    let outcomes = crate::cli::block_on(measure(&args.setup(), &rounds))?;
    let rows: Vec<Row> = outcomes.iter().flat_map(|rounds| report::rows(rounds)).collect();
    let broken: Vec<String> = rows.iter().flat_map(Row::broken).collect();
    if args.json {
        output::json(&json!({
            "version": crate::telemetry::version(),
            "path": args.model.path,
            "threads": sconce_models::threads::count(),
            "precision": args.precision.precision().name(),
            "rounds": args.rounds,
            "seed": args.seed,
            "results": rows.iter().map(Row::to_json).collect::<Vec<_>>(),
        }))?;
    } else {
        output::write(&report::table(&rows))?;
    }
    if broken.is_empty() { Ok(()) } else { Err(CliError::Missed(broken.join("\n  "))) }
}

impl Args {
    /// How long the prompts are, within the context of the checkpoint.
    fn lengths(&self) -> Result<Lengths, CliError> {
        if !(1..=ROUNDS_MAX).contains(&self.rounds) {
            return Err(CliError::Usage(format!("expected --rounds from 1 to {ROUNDS_MAX}")));
        }
        let options = LoadOptions::default();
        let estimate = sconce_models::estimate(&self.model.path, &options)
            .map_err(|error| CliError::Usage(error.to_string()))?;
        let most = estimate.context_length.saturating_sub(Lengths::MARGIN);
        let within = |option: &str, tokens: usize| match tokens {
            tokens if (TOKENS_MIN..=most).contains(&tokens) => Ok(tokens),
            tokens => Err(CliError::Usage(format!(
                "{option}: expected {TOKENS_MIN} to {most} tokens, which the context has room for, \
                 found {tokens}"
            ))),
        };
        let prompt = within("--tokens", self.tokens)?;
        let shared = self.shared_tokens.unwrap_or_else(|| most.min(prompt / 2 * 5));
        let held = self.held_tokens.unwrap_or_else(|| most.min(prompt * 4));
        Ok(Lengths {
            prompt,
            shared: within("--shared-tokens", shared)?,
            held: within("--held-tokens", held)?,
        })
    }

    fn scenarios(
        &self,
        text: &ModelText,
        lengths: Lengths,
        round: u64,
    ) -> Result<Vec<Scenario>, CliError> {
        let mut prose = Prose::new(text, self.seed.wrapping_add(round));
        let mut all = scenarios(&mut prose, lengths, self.cache_dir.is_some())?;
        let known = |name: &&String| all.iter().any(|scenario| scenario.name == **name);
        if let Some(unknown) = self.only.iter().find(|name| !known(name)) {
            let names: Vec<&str> = all.iter().map(|scenario| scenario.name.as_str()).collect();
            return Err(CliError::Usage(format!(
                "--only: expected some of {}, found {unknown}",
                names.join(", ")
            )));
        }
        all.retain(|scenario| self.only.is_empty() || self.only.contains(&scenario.name));
        Ok(all)
    }

    fn setup(&self) -> Setup {
        let precision = self.precision.precision();
        let model =
            LoadSettings { path: self.model.path.clone(), precision, ..LoadSettings::default() };
        let cache = CacheConfig {
            device: self.device_bytes.map_or(u64::MAX, |size| size.0),
            host: self.host_bytes.0,
            disk: self.disk_bytes.0,
            directory: None,
            policy: policy(self.policy),
            ..CacheConfig::default()
        };
        Setup {
            other: LoadSettings { path: self.other.clone(), ..model.clone() },
            model,
            cache,
            folder: self.cache_dir.clone(),
            pressed: self.pressure_bytes.map(|size| size.0),
        }
    }
}

fn policy(choice: PolicyChoice) -> Policy {
    match choice {
        PolicyChoice::CostToLose => Policy::CostToLose,
        PolicyChoice::Lru => Policy::Lru,
        PolicyChoice::OldestDeepestLargest => Policy::OldestDeepestLargest,
    }
}

/// Outcomes by scenario, of every round. All scenarios are run once before any is run again, so that
/// a machine that slows down meanwhile slows all of them alike.
async fn measure(setup: &Setup, rounds: &[Vec<Scenario>]) -> Result<Vec<Vec<Outcome>>, CliError> {
    let mut outcomes = vec![Vec::new(); rounds.first().map_or(0, Vec::len)];
    for scenarios in rounds {
        for (scenario, outcomes) in scenarios.iter().zip(&mut outcomes) {
            outcomes.push(runner::run(setup, scenario).await?);
        }
    }
    Ok(outcomes)
}

fn write_plan(path: &PathBuf, rounds: &[Vec<Scenario>]) -> Result<(), CliError> {
    let rounds: Vec<Vec<_>> =
        rounds.iter().map(|all| all.iter().map(Scenario::to_json).collect()).collect();
    std::fs::write(path, json!({ "rounds": rounds }).to_string())
        .map_err(|source| CliError::io(format!("cannot write {}", path.display()), source))
}
