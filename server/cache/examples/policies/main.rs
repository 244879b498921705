//! Which policy keeps what is asked for again, and what the trie costs at a million nodes.
//!
//! `cargo run -p sconce-cache --release --example policies` replays generated traces on the bare
//! trie at equal budgets and prints one table of token hit rates. Arguments: `--scale` for the cost
//! at 10^6 nodes instead, `--sweep` to try half-lives, `--requests N`, `--seed N`, and files in
//! the form of Mooncake's and Qwen-Bailian's traces.
#![allow(missing_docs, clippy::print_stdout, clippy::print_stderr)]

mod replay;
mod scale;
mod traces;

use std::process::ExitCode;

use replay::{HYBRID, Model, TRANSFORMER, replay};
use sconce_cache::{Budgets, Policy, TrieConfig};
use traces::Trace;

/// Budgets, as shares in percent of what a trace would take without a limit.
const SHARES: [u64; 3] = [1, 3, 10];

struct Options {
    scale: bool,
    sweep: bool,
    requests: usize,
    seed: u64,
    files: Vec<String>,
}

fn options() -> Result<Options, String> {
    let mut options =
        Options { scale: false, sweep: false, requests: 4000, seed: 1, files: Vec::new() };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || {
            let next = arguments.next().and_then(|next| next.parse::<u64>().ok());
            next.ok_or_else(|| format!("expected a number after {argument}"))
        };
        match argument.as_str() {
            "--scale" => options.scale = true,
            "--sweep" => options.sweep = true,
            "--requests" => options.requests = number()? as usize,
            "--seed" => options.seed = number()?,
            option if option.starts_with('-') => return Err(format!("unknown option {option}")),
            file => options.files.push(file.to_owned()),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    match options().and_then(|options| act(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(wrong) => {
            eprintln!("{wrong}");
            ExitCode::FAILURE
        }
    }
}

fn act(options: &Options) -> Result<(), String> {
    if options.scale {
        scale::measure(&[60_000, 250_000, 1_000_000]);
        return Ok(());
    }
    let mut traces = Vec::new();
    for file in &options.files {
        traces.push(traces::read(file, options.requests)?);
    }
    if traces.is_empty() {
        traces = traces::generated(options.seed, options.requests);
    }
    let columns = columns(options.sweep);
    print!("{:<12} {:<11} {:>6} {:>9} {:>9}", "trace", "model", "share", "budget", "no limit");
    for (name, ..) in &columns {
        print!(" | {name:>13}");
    }
    println!("\n(share of prompt tokens resumed, and of the cost of prefilling saved, in percent)");
    for trace in &traces {
        for model in [TRANSFORMER, HYBRID] {
            table(trace, model, &columns);
        }
    }
    Ok(())
}

fn columns(sweep: bool) -> Vec<(String, Policy, f64)> {
    let default = TrieConfig::new(Budgets { device: 0, host: 0, disk: 0 }).half_life;
    let mut columns = vec![
        ("lru".to_owned(), Policy::Lru, default),
        ("oldest first".to_owned(), Policy::OldestDeepestLargest, default),
    ];
    if sweep {
        columns.extend(
            [4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0]
                .map(|half_life| (format!("cost, {half_life}"), Policy::CostToLose, half_life)),
        );
    } else {
        columns.push(("cost to lose".to_owned(), Policy::CostToLose, default));
    }
    columns
}

fn table(trace: &Trace, model: Model, columns: &[(String, Policy, f64)]) {
    let endless = replay(trace, model, Policy::Lru, 1.0, u64::MAX >> 1);
    for share in SHARES {
        let budget = endless.bytes / 100 * share;
        print!(
            "{:<12} {:<11} {share:>5}% {:>6.1} GB {:>8.1}%",
            trace.name,
            model.name,
            budget as f64 / 1e9,
            endless.hit_rate()
        );
        for &(_, policy, half_life) in columns {
            let outcome = replay(trace, model, policy, half_life, budget);
            print!(" | {:>6.1} {:>6.1}", outcome.hit_rate(), outcome.saved_rate());
        }
        println!();
    }
}
