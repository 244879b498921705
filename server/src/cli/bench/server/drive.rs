//! Sends requests when they are planned, and collects what comes of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::Arrivals;
use super::client::{Clients, Outcome, Sample};
use super::workload::Workload;

/// When no more requests come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bound {
    /// After this time.
    pub(crate) time: Duration,
    /// After so many.
    pub(crate) requests: u64,
}

/// What came of a case.
#[derive(Debug, Default)]
pub(crate) struct Run {
    /// Of every request that was sent.
    pub(crate) samples: Vec<Sample>,
    /// Requests that were not sent, because as many were open as the connections have room for.
    pub(crate) unsent: u64,
    /// From the first request to the last answer.
    pub(crate) time: Duration,
}

/// Runs a case and waits for every answer.
pub(crate) async fn run(
    clients: &Clients,
    workload: &mut Workload,
    arrivals: Arrivals,
    bound: Bound,
) -> Run {
    // Tasks outlive no case; they share the connections with the caller.
    let clients = Arc::new(clients.share());
    let mut run = match arrivals {
        Arrivals::Rate(rate) => open_loop(&clients, workload, rate, bound).await,
        Arrivals::Streams(streams) => closed_loop(&clients, workload, streams, bound).await,
    };
    run.samples.sort_by_key(|sample| sample.planned);
    run
}

async fn open_loop(
    clients: &Arc<Clients>,
    workload: &mut Workload,
    rate: f64,
    bound: Bound,
) -> Run {
    let began = Instant::now();
    let (mut run, mut open) = (Run::default(), JoinSet::new());
    let mut planned = Duration::ZERO;
    for _ in 0..bound.requests {
        planned += Duration::from_secs_f64(workload.draw().interval(rate));
        if planned > bound.time {
            break;
        }
        tokio::time::sleep_until((began + planned).into()).await;
        while let Some(Ok(sample)) = open.try_join_next() {
            keep(&mut run, workload, sample);
        }
        if open.len() >= clients.open_max() {
            run.unsent += 1;
            continue;
        }
        let (clients, ask) = (Arc::clone(clients), workload.next());
        open.spawn(async move { clients.ask(ask, planned, began).await });
    }
    while let Some(joined) = open.join_next().await {
        if let Ok(sample) = joined {
            keep(&mut run, workload, sample);
        }
    }
    run.time = began.elapsed();
    run
}

async fn closed_loop(
    clients: &Arc<Clients>,
    workload: &mut Workload,
    streams: usize,
    bound: Bound,
) -> Run {
    let began = Instant::now();
    let (mut run, mut open, mut sent) = (Run::default(), JoinSet::new(), 0);
    loop {
        while open.len() < streams && sent < bound.requests && began.elapsed() < bound.time {
            sent += 1;
            let (clients, ask) = (Arc::clone(clients), workload.next());
            open.spawn(async move { clients.ask(ask, began.elapsed(), began).await });
        }
        match open.join_next().await {
            Some(Ok(sample)) => keep(&mut run, workload, sample),
            Some(Err(_)) => {}
            None => break,
        }
    }
    run.time = began.elapsed();
    run
}

fn keep(run: &mut Run, workload: &mut Workload, mut sample: Sample) {
    if sample.outcome == Outcome::Done {
        workload.take(std::mem::take(&mut sample.conversation));
    }
    run.samples.push(sample);
}
