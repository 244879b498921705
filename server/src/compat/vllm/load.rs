//! How busy the server is, for those who spread work over several.

use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use sconce_cache::Tier;
use sconce_engine::Status;
use sconce_proto::compat::smg::grpc::common::EngineLoad;
use sconce_proto::compat::vllm::grpc::engine::{GetLoadsResponse, SchedulerLoad};

use crate::grpc::convert::count;
use crate::models::Models;

/// Shortest time over which tokens a second are counted.
const RATE_TIME_MIN: Duration = Duration::from_secs(1);

/// Reads the load; keeps what a rate needs.
#[derive(Debug)]
pub(super) struct LoadMeter {
    models: Models,
    sequences_max: usize,
    rate: Mutex<Rate>,
}

#[derive(Debug)]
struct Rate {
    since: Instant,
    tokens: u64,
    per_second: f64,
}

/// The load at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Load {
    running: usize,
    waiting: usize,
    /// Tokens of the prompts in the queue.
    waiting_tokens: usize,
    running_max: usize,
    /// Tokens for which the pools have room.
    tokens_max: usize,
    /// Share of the pools that running requests hold.
    usage: f64,
    tokens_per_second: f64,
    hit_rate: f64,
}

impl LoadMeter {
    /// A meter of `models`.
    pub(super) fn new(models: Models, sequences_max: usize) -> Self {
        let rate = Rate { since: Instant::now(), tokens: 0, per_second: 0.0 };
        Self { models, sequences_max, rate: Mutex::new(rate) }
    }

    /// Most sequences that run at once.
    pub(super) fn sequences_max(&self) -> usize {
        self.sequences_max
    }

    /// The load now.
    pub(super) fn read(&self) -> Load {
        let status = self.models.status();
        let (usage, tokens_max) = pools(&self.models, &status);
        let tiers = status.cache.tiers.iter();
        let resumed: u64 = tiers.map(|tier| tier.resumed_tokens).sum();
        Load {
            running: status.running,
            waiting: status.waiting,
            waiting_tokens: status.waiting_tokens,
            running_max: self.sequences_max,
            tokens_max,
            usage,
            tokens_per_second: self.rate.lock().at(status.counters.completion_tokens),
            hit_rate: share(resumed, resumed + status.cache.recomputed_tokens),
        }
    }
}

impl Rate {
    fn at(&mut self, tokens: u64) -> f64 {
        let elapsed = self.since.elapsed();
        if elapsed >= RATE_TIME_MIN {
            // One who read the count before another may come here after them.
            self.per_second = tokens.saturating_sub(self.tokens) as f64 / elapsed.as_secs_f64();
            (self.since, self.tokens) = (Instant::now(), tokens);
        }
        self.per_second
    }
}

/// Which share of the models' pools running requests hold, and the tokens that the pools have room
/// for. What is merely remembered gives way, so that it does not count.
fn pools(models: &Models, status: &Status) -> (f64, usize) {
    let (mut bytes, mut tokens) = (0, 0);
    for model in models.loaded() {
        bytes += model.state_bytes;
        tokens += model.pages_max * model.page_tokens;
    }
    let used: u64 = status.models.iter().map(|model| model.state_bytes_used).sum();
    let remembered = status.cache.tiers[Tier::Device as usize].used_bytes;
    (share(used.saturating_sub(remembered), bytes).min(1.0), tokens)
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

impl Load {
    fn tokens_used(&self) -> usize {
        (self.usage * self.tokens_max as f64) as usize
    }

    /// As the answer to GetLoads.
    pub(super) fn response(&self) -> GetLoadsResponse {
        let load = SchedulerLoad {
            dp_rank: 0,
            num_running_reqs: small(self.running),
            num_waiting_reqs: small(self.waiting),
            num_total_reqs: small(self.running + self.waiting),
            num_used_tokens: small(self.tokens_used()),
            max_total_num_tokens: small(self.tokens_max),
            token_usage: self.usage,
            gen_throughput: self.tokens_per_second,
            cache_hit_rate: self.hit_rate,
            utilization: self.usage,
            max_running_requests: small(self.running_max),
            num_waiting_uncached_tokens: small(self.waiting_tokens),
        };
        GetLoadsResponse {
            timestamp: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            dp_rank_count: 1,
            loads: vec![load],
        }
    }

    /// As a record among KV events.
    pub(super) fn record(&self) -> EngineLoad {
        EngineLoad {
            running_requests: count(self.running),
            waiting_requests: count(self.waiting),
            waiting_uncached_tokens: Some(count(self.waiting_tokens)),
            token_usage: self.usage,
            active_token_usage: Some(self.usage),
            gen_throughput: self.tokens_per_second,
            max_running_requests: count(self.running_max),
            cache_hit_rate: Some(self.hit_rate),
            num_used_tokens: Some(small(self.tokens_used())),
            max_total_num_tokens: Some(small(self.tokens_max)),
            ..EngineLoad::default()
        }
    }
}

fn small(value: usize) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_counted_over_a_while() {
        let earlier = Instant::now() - 4 * RATE_TIME_MIN;
        let mut rate = Rate { since: earlier, tokens: 100, per_second: 0.0 };
        let first = rate.at(500);
        assert!((50.0..=100.0).contains(&first), "{first}");
        assert_eq!(rate.at(100_000), first, "too soon for another");
    }

    #[test]
    fn nothing_of_nothing_is_nothing() {
        assert_eq!((share(0, 0), share(1, 4)), (0.0, 0.25));
    }
}
