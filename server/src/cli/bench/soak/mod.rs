//! `sconce bench soak`: a server of its own process under twice the load that it can carry, for long,
//! with all that clients do to it. The exit code tells whether it kept what is promised:
//!
//! - no leak: memory, file descriptors and the ledger are at the end what they were after a warm-up;
//! - nothing stuck: when nobody asks any more, nothing runs any more;
//! - it does not give in: overloaded, it completes at least 90 % of the tokens that it completes when
//!   it is asked for just as many as it can. The machine's speed changes over so long a time, so that
//!   peaks are measured between the overloads, and each is compared with those beside it;
//! - what is too much is refused at once, with RESOURCE_EXHAUSTED. The slowest percent is left out: where
//!   client, server and model share a few cores, it tells how the system schedules.

mod child;
mod operator;
mod traffic;
mod verdict;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use self::child::{Child, Reading};
use self::traffic::{Segment, Traffic};
use self::verdict::{Bounds, Findings};
use super::server::Arrivals;
use super::server::client::Clients;
use super::server::workload::{Lengths, Workload};
use crate::cli::error::CliError;
use crate::cli::output;
use crate::cli::target::absolute;
use crate::config::{ByteSize, Span};

/// The name of the model under load.
const MODEL: &str = "soak";
/// Overloads before the first reading: caches fill, and pages of the pool of state are used for the
/// first time, which is when the system gives them.
const WARM_UPS: usize = 2;
/// How many times the peak's requests come.
const OVERLOAD: f64 = 2.0;
/// Longest that requests may take to be gone when nobody asks any more.
const IDLE_PATIENCE: Duration = Duration::from_secs(120);
/// Most cycles.
const CYCLES_MAX: u128 = 10_000;

/// Arguments of `sconce bench soak`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Checkpoint: a directory, a .gguf file, or sim:
    #[arg(long, value_name = "PATH")]
    path: String,
    /// Checkpoint that is loaded and unloaded beside it all the time
    #[arg(long, value_name = "PATH", default_value = "sim:")]
    other: String,
    /// How long the server is overloaded in all
    #[arg(long, value_name = "TIME", default_value = "30m")]
    time: Span,
    /// How long it is overloaded between two measurements of its peak
    #[arg(long, value_name = "TIME", default_value = "2m")]
    cycle: Span,
    /// How long a peak is measured
    #[arg(long, value_name = "TIME", default_value = "30s")]
    peak_time: Span,
    #[command(flatten)]
    lengths: Lengths,
    /// Decides prompts, arrivals, and who hangs up
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Most sequences that run at once
    #[arg(long, value_name = "N", default_value_t = 8)]
    sequences: usize,
    /// Most requests that wait
    #[arg(long, value_name = "N", default_value_t = 16)]
    waiting: usize,
    /// Most remembered state on the device, and in main memory beside it; little, so that it is full
    /// before the first reading
    #[arg(long, value_name = "BYTES", default_value = "32MiB")]
    cache: ByteSize,
    /// Threads that compute [default: one for each physical core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Connections that requests take turns on
    #[arg(long, value_name = "N", default_value_t = 4)]
    connections: usize,
    #[command(flatten)]
    bounds: Bounds,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A cycle: an overload between two peaks.
#[derive(Debug, Clone)]
struct Cycle {
    overload: Segment,
    /// Tokens a second that were completed before and after it, at the peak.
    peaks: [f64; 2],
    reading: Reading,
}

impl Cycle {
    /// Tokens completed under overload for each completed at the peak beside it.
    fn goodput_share(&self) -> f64 {
        self.overload.token_rate() / (self.peaks.iter().sum::<f64>() / 2.0).max(f64::MIN_POSITIVE)
    }
}

/// Runs `sconce bench soak`.
pub(super) async fn run(args: Args) -> Result<(), CliError> {
    args.check()?;
    let mut child = Child::start(&args.settings()?).await?;
    let outcome = soak(&args, &child).await;
    let stopped = child.stop().await;
    let findings = outcome?;
    stopped?;
    if args.json {
        output::json(&args.to_json(&findings))?;
    } else {
        output::write(&findings.table(&args.bounds))?;
    }
    let broken = findings.broken(&args.bounds);
    if broken.is_empty() { Ok(()) } else { Err(CliError::Missed(broken.join("\n  "))) }
}

async fn soak(args: &Args, child: &Child) -> Result<Findings, CliError> {
    let channels = child.connect(args.connections).await?;
    let clients = Clients::new(channels, MODEL);
    let workload = Workload::new(&clients, args.lengths.clone(), args.seed).await?;
    let mut traffic = Traffic::new(clients, workload);
    let streams = ramp(args, &mut traffic).await;
    let mut peak = traffic.run(Arrivals::Streams(streams), args.peak_time.0).await;
    for _ in 0..WARM_UPS {
        overload(args, child, &mut traffic, &peak).await?;
        child.idle(IDLE_PATIENCE).await?;
        peak = traffic.run(Arrivals::Streams(streams), args.peak_time.0).await;
    }
    child.idle(IDLE_PATIENCE).await?;
    let first = child.read().await?;
    output::note(&format!("after the warm-up: {first}"));
    let mut cycles: Vec<Cycle> = Vec::new();
    for _ in 0..args.cycles() {
        let overload = overload(args, child, &mut traffic, &peak).await?;
        if let Err(error) = child.idle(IDLE_PATIENCE).await {
            traffic.found(error.to_string());
        }
        let reading = child.read().await?;
        let after = traffic.run(Arrivals::Streams(streams), args.peak_time.0).await;
        let peaks = [peak.token_rate(), after.token_rate()];
        cycles.push(Cycle { overload, peaks, reading });
        peak = after;
        if let Some(cycle) = cycles.last() {
            note(cycles.len(), cycle);
        }
    }
    if let Err(error) = child.idle(IDLE_PATIENCE).await {
        traffic.found(error.to_string());
    }
    let last = child.read().await?;
    Ok(Findings { streams, first, last, cycles, violations: traffic.violations() })
}

/// How many streams complete most, of those that are not refused.
async fn ramp(args: &Args, traffic: &mut Traffic) -> usize {
    let (mut best, mut streams, mut rate) = (1, 1, 0.0);
    while streams <= args.sequences + args.waiting {
        let segment = traffic.run(Arrivals::Streams(streams), args.peak_time.0).await;
        let found = segment.token_rate();
        output::note(&format!("{streams} streams: {found:.1} tokens/s"));
        if found > rate {
            (best, rate) = (streams, found);
        }
        streams *= 2;
    }
    best
}

/// A cycle's overload, while another model comes and goes.
async fn overload(
    args: &Args,
    child: &Child,
    traffic: &mut Traffic,
    peak: &Segment,
) -> Result<Segment, CliError> {
    let rate = OVERLOAD * peak.request_rate();
    if rate == 0.0 {
        let problem = "expected requests that end while the peak is measured, found none; \
                       see --peak-time";
        return Err(CliError::Missed(problem.to_owned()));
    }
    let path = absolute(&args.other)?;
    let until = Instant::now() + args.cycle.0;
    let (mut segment, (loads, outcome)) = tokio::join!(
        traffic.run(Arrivals::Rate(rate), args.cycle.0),
        operator::come_and_go(child, &path, until),
    );
    segment.loads = loads;
    if let Err(error) = outcome {
        traffic.found(format!("load number {} of another model: {error}", loads + 1));
    }
    Ok(segment)
}

fn note(number: usize, cycle: &Cycle) {
    output::note(&format!(
        "cycle {number}: {:.0} % of the peak of {:.1} tokens/s; {} done, {} refused, median {} ms, \
         {} loads; {}",
        100.0 * cycle.goodput_share(),
        (cycle.peaks[0] + cycle.peaks[1]) / 2.0,
        cycle.overload.done,
        cycle.overload.refusals.count(),
        cycle
            .overload
            .refusals
            .median()
            .map_or("-".to_owned(), |time| format!("{:.2}", 1e3 * time)),
        cycle.overload.loads,
        cycle.reading,
    ));
}

impl Args {
    fn check(&self) -> Result<(), CliError> {
        let shortest = Duration::from_millis(100);
        for (flag, time) in
            [("--time", self.time), ("--cycle", self.cycle), ("--peak-time", self.peak_time)]
        {
            if time.0 < shortest {
                return Err(CliError::Usage(format!("{flag}: expected at least 100ms")));
            }
        }
        if !std::path::Path::new("/proc/self/statm").exists() {
            let problem = "expected a system with /proc, which tells what a process holds";
            return Err(CliError::Unavailable(problem.to_owned()));
        }
        self.lengths.check()
    }

    fn cycles(&self) -> usize {
        let cycles = self.time.0.as_nanos().div_ceil(self.cycle.0.as_nanos().max(1));
        cycles.clamp(1, CYCLES_MAX) as usize
    }

    fn settings(&self) -> Result<child::Settings, CliError> {
        Ok(child::Settings {
            path: absolute(&self.path)?,
            sequences: self.sequences,
            waiting: self.waiting,
            cache: self.cache.0,
            threads: self.threads,
        })
    }

    fn to_json(&self, findings: &Findings) -> Value {
        let mut document = json!({
            "version": crate::telemetry::version(),
            "machine": super::machine::describe(),
            "path": self.path,
            "seed": self.seed,
            "sequences": self.sequences,
            "waiting": self.waiting,
            "workload": self.lengths.to_json(),
        });
        document["findings"] = findings.to_json();
        document["broken"] = json!(findings.broken(&self.bounds));
        document
    }
}
