//! `sconce bench server`: what a server gives under load, over its own protocol.
//!
//! Open loop: requests come when a Poisson process says, whether or not the ones before are answered,
//! and every time is measured from the moment that was planned, so that a server that stalls is not
//! asked less. Closed loop: so many streams, each asks again when it is answered.

pub(super) mod client;
mod drive;
pub(super) mod measured;
pub(super) mod percentiles;
mod report;
pub(super) mod workload;

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use self::client::Clients;
use self::drive::Bound;
use self::measured::{Measured, Objective};
use self::workload::{Lengths, Workload};
use crate::cli::error::CliError;
use crate::cli::output;
use crate::cli::target::{Session, TargetArgs};
use crate::config::Span;

/// Most requests of a case: of each a few hundred bytes are kept until it is summed up.
const REQUESTS_MAX: u64 = 1 << 20;
/// Most requests a second, and most streams, that can be asked for.
const RATE_MAX: f64 = 100_000.0;
const STREAMS_MAX: usize = 4096;

/// Arguments of `sconce bench server`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Requests a second of an open loop, Poisson arrivals; several are run in turn [default: 1]
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = parse_rate)]
    rate: Vec<f64>,
    /// Streams of a closed loop, each of which asks again when it is answered; several are run in
    /// turn, after the rates
    #[arg(long, value_name = "N", value_delimiter = ',')]
    streams: Vec<usize>,
    /// How long requests come in each case
    #[arg(long, value_name = "TIME", default_value = "30s")]
    time: Span,
    /// Most requests of each case [default: as many as come in the time]
    #[arg(long, value_name = "N")]
    requests: Option<u64>,
    /// Requests before the first case, one after another, which are not counted
    #[arg(long, value_name = "N", default_value_t = 2)]
    warm_up: u64,
    #[command(flatten)]
    lengths: Lengths,
    /// Decides prompts and arrivals
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// A request is good if its first token comes within this time
    #[arg(long, value_name = "TIME")]
    slo_ttft: Option<Span>,
    /// A request is good if its tokens come no further apart than this, on average
    #[arg(long, value_name = "TIME")]
    slo_itl: Option<Span>,
    /// Connections that requests take turns on; each has room for 256
    #[arg(long, value_name = "N", default_value_t = 4)]
    connections: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Compare with the JSON of another run
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    #[command(flatten)]
    target: TargetArgs,
}

/// How requests come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Arrivals {
    /// So many a second, as a Poisson process has them.
    Rate(f64),
    /// So many streams, each with one request at a time.
    Streams(usize),
}

impl Arrivals {
    /// As a report says it: `4/s`, `8 streams`.
    pub(super) fn describe(self) -> String {
        match self {
            Self::Rate(rate) => format!("{rate}/s"),
            Self::Streams(1) => "1 stream".to_owned(),
            Self::Streams(streams) => format!("{streams} streams"),
        }
    }
}

/// Runs `sconce bench server`.
pub(super) async fn run(args: Args) -> Result<(), CliError> {
    let cases = args.cases()?;
    let old = args.compare.as_ref().map(report::read).transpose()?;
    let session = Session::open(&args.target).await?;
    let measured = measure(&session, &args, &cases).await;
    let model = session.model.clone();
    session.close().await?;
    let measured = measured?;
    let compared = old.as_ref().map(|old| report::compare(old, &measured));
    if args.json {
        let mut document = args.to_json(&model, &measured);
        if let Some(compared) = &compared {
            document["compared"] = json!(compared);
        }
        return output::json(&document);
    }
    output::write(&report::table(&measured))?;
    match compared {
        Some(compared) => output::write(&report::comparison(&compared)),
        None => Ok(()),
    }
}

async fn measure(
    session: &Session,
    args: &Args,
    cases: &[Arrivals],
) -> Result<Vec<Measured>, CliError> {
    let clients = Clients::open(session, args.connections).await?;
    let mut workload = Workload::new(&clients, args.lengths.clone(), args.seed).await?;
    for _ in 0..args.warm_up {
        clients.ask(workload.next(), Duration::ZERO, std::time::Instant::now()).await;
    }
    let bound = Bound { time: args.time.0, requests: args.requests.unwrap_or(REQUESTS_MAX) };
    let mut measured = Vec::new();
    for &arrivals in cases {
        let run = drive::run(&clients, &mut workload, arrivals, bound).await;
        measured.push(Measured::of(arrivals, &run, args.objective()));
        if !args.json {
            output::note(&format!("{}: {} requests", arrivals.describe(), run.samples.len()));
        }
    }
    Ok(measured)
}

impl Args {
    fn cases(&self) -> Result<Vec<Arrivals>, CliError> {
        let usage = |message: String| Err(CliError::Usage(message));
        let requests = self.requests.unwrap_or(1);
        if !(1..=REQUESTS_MAX).contains(&requests) {
            return usage(format!("--requests: expected 1 to {REQUESTS_MAX}, found {requests}"));
        }
        if let Some(streams) = self.streams.iter().find(|n| !(1..=STREAMS_MAX).contains(*n)) {
            return usage(format!("--streams: expected 1 to {STREAMS_MAX}, found {streams}"));
        }
        self.lengths.check()?;
        let mut cases: Vec<Arrivals> = self.rate.iter().copied().map(Arrivals::Rate).collect();
        cases.extend(self.streams.iter().copied().map(Arrivals::Streams));
        if cases.is_empty() {
            cases.push(Arrivals::Rate(1.0));
        }
        Ok(cases)
    }

    fn objective(&self) -> Objective {
        let time = |span: &Option<Span>| span.as_ref().map(|span| span.0);
        Objective { ttft: time(&self.slo_ttft), itl: time(&self.slo_itl) }
    }

    fn to_json(&self, model: &str, measured: &[Measured]) -> Value {
        let objective = self.objective();
        json!({
            "version": crate::telemetry::version(),
            "machine": super::machine::describe(),
            "model": model,
            "seed": self.seed,
            "workload": self.lengths.to_json(),
            "slo_ttft_seconds": objective.ttft.map(|time| time.as_secs_f64()),
            "slo_itl_seconds": objective.itl.map(|time| time.as_secs_f64()),
            "results": measured.iter().map(Measured::to_json).collect::<Vec<_>>(),
        })
    }
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= RATE_MAX => Ok(rate),
        _ => Err(format!("expected a number above 0 and at most {RATE_MAX}, found `{text}`")),
    }
}
