//! What a case came to: percentiles, rates, what was refused, and how much of it was good.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::Arrivals;
use super::client::{Outcome, Sample};
use super::drive::Run;
use super::percentiles::Percentiles;
use crate::cli::error::code_name;

/// What makes a request good, beside that it is answered.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Objective {
    /// Longest time to the first token.
    pub(crate) ttft: Option<Duration>,
    /// Longest mean time between its tokens.
    pub(crate) itl: Option<Duration>,
}

impl Objective {
    /// Whether a request is good.
    pub(crate) fn is_met(self, sample: &Sample) -> bool {
        let Some(first) = sample.first.filter(|_| sample.outcome == Outcome::Done) else {
            return false;
        };
        let gaps: Duration = sample.gaps.iter().sum();
        let mean = gaps / (sample.gaps.len().max(1) as u32);
        self.ttft.is_none_or(|most| first <= most) && self.itl.is_none_or(|most| mean <= most)
    }
}

/// See the module. Times are in seconds, rates in one a second.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    /// How requests came.
    pub(crate) arrivals: Arrivals,
    /// From the first to the last answer.
    pub(crate) seconds: f64,
    /// Requests that were sent.
    pub(crate) sent: usize,
    /// Requests that the client had no room for.
    pub(crate) unsent: u64,
    /// Requests that were answered to their end.
    pub(crate) done: usize,
    /// Those that met the objective, a second.
    pub(crate) goodput: f64,
    /// Tokens of prompts that were answered, a second.
    pub(crate) input_rate: f64,
    /// Tokens that were answered, a second.
    pub(crate) output_rate: f64,
    /// Share of the tokens of these prompts that were not computed.
    pub(crate) cached_share: f64,
    /// Of requests that were answered: until the first token.
    pub(crate) ttft: Percentiles,
    /// Between tokens, of all of them.
    pub(crate) itl: Percentiles,
    /// Until the end.
    pub(crate) total: Percentiles,
    /// How long they waited for their turn, by the server's account.
    pub(crate) queue: Percentiles,
    /// How late requests were sent, which is the client's fault.
    pub(crate) late: Percentiles,
    /// By the code that the server answered: how long that took, from the moment of sending.
    pub(crate) refused: BTreeMap<String, Percentiles>,
}

impl Measured {
    /// Sums up a run.
    pub(crate) fn of(arrivals: Arrivals, run: &Run, objective: Objective) -> Self {
        let done: Vec<&Sample> =
            run.samples.iter().filter(|sample| sample.outcome == Outcome::Done).collect();
        let seconds = run.time.as_secs_f64().max(f64::MIN_POSITIVE);
        let sum = |tokens: fn(&Sample) -> usize| {
            done.iter().map(|sample| tokens(sample) as f64).sum::<f64>()
        };
        let input = sum(|sample| sample.prompt_tokens);
        let good = done.iter().filter(|sample| objective.is_met(sample)).count();
        let times = |time: fn(&Sample) -> Option<Duration>| {
            let times = done.iter().filter_map(|sample| time(sample));
            Percentiles::of(times.map(|time| time.as_secs_f64()).collect())
        };
        let gaps = done.iter().flat_map(|sample| &sample.gaps);
        Self {
            arrivals,
            seconds,
            sent: run.samples.len(),
            unsent: run.unsent,
            done: done.len(),
            goodput: good as f64 / seconds,
            input_rate: input / seconds,
            output_rate: sum(|sample| sample.completion_tokens) / seconds,
            cached_share: sum(|sample| sample.cached_tokens) / input.max(1.0),
            ttft: times(|sample| sample.first),
            itl: Percentiles::of(gaps.map(Duration::as_secs_f64).collect()),
            total: times(|sample| Some(sample.end)),
            queue: times(|sample| sample.queue),
            late: Percentiles::of(
                run.samples.iter().map(|sample| sample.late.as_secs_f64()).collect(),
            ),
            refused: refused(&run.samples),
        }
    }

    /// For programs.
    pub(crate) fn to_json(&self) -> Value {
        let refused: serde_json::Map<String, Value> =
            self.refused.iter().map(|(code, times)| (code.clone(), times.to_json())).collect();
        let (rate, streams) = match self.arrivals {
            Arrivals::Rate(rate) => (Some(rate), None),
            Arrivals::Streams(streams) => (None, Some(streams)),
        };
        json!({
            "rate": rate,
            "streams": streams,
            "seconds": self.seconds,
            "requests_sent": self.sent,
            "requests_unsent": self.unsent,
            "requests_done": self.done,
            "goodput_per_second": self.goodput,
            "input_tokens_per_second": self.input_rate,
            "output_tokens_per_second": self.output_rate,
            "cached_share": self.cached_share,
            "ttft_seconds": self.ttft.to_json(),
            "itl_seconds": self.itl.to_json(),
            "total_seconds": self.total.to_json(),
            "queue_seconds": self.queue.to_json(),
            "late_seconds": self.late.to_json(),
            "refused_seconds": refused,
        })
    }
}

fn refused(samples: &[Sample]) -> BTreeMap<String, Percentiles> {
    let mut times: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for sample in samples {
        if let Outcome::Failed(code) = sample.outcome {
            let time = sample.end.saturating_sub(sample.late);
            times.entry(code_name(code)).or_default().push(time.as_secs_f64());
        }
    }
    times.into_iter().map(|(code, times)| (code, Percentiles::of(times))).collect()
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn sample(outcome: Outcome, first: u64, gaps: &[u64]) -> Sample {
        let milliseconds = Duration::from_millis;
        Sample {
            planned: Duration::ZERO,
            late: milliseconds(2),
            outcome,
            message: String::new(),
            first: Some(milliseconds(first)),
            gaps: gaps.iter().copied().map(milliseconds).collect(),
            end: milliseconds(first + gaps.iter().sum::<u64>()),
            queue: Some(milliseconds(1)),
            prompt_tokens: 100,
            cached_tokens: 25,
            conversation: Vec::new(),
            completion_tokens: gaps.len() + 1,
        }
    }

    #[test]
    fn what_is_late_or_slow_or_refused_is_not_good() {
        let samples = vec![
            sample(Outcome::Done, 100, &[10, 10]),
            sample(Outcome::Done, 900, &[10, 10]),
            sample(Outcome::Done, 100, &[10, 90]),
            sample(Outcome::Failed(Code::ResourceExhausted), 7, &[]),
            sample(Outcome::HungUp, 100, &[10]),
        ];
        let run = Run { samples, unsent: 1, time: Duration::from_secs(2) };
        let of = |ttft: u64, itl: u64| {
            let objective = Objective {
                ttft: Some(Duration::from_millis(ttft)),
                itl: Some(Duration::from_millis(itl)),
            };
            Measured::of(Arrivals::Rate(2.0), &run, objective)
        };
        assert_eq!(of(500, 20).goodput, 0.5);
        assert_eq!(of(1000, 20).goodput, 1.0);
        assert_eq!(of(1000, 50).goodput, 1.5);
        let found = of(1000, 50);
        assert_eq!((found.sent, found.unsent, found.done), (5, 1, 3));
        assert_eq!((found.cached_share, found.input_rate, found.output_rate), (0.25, 150.0, 4.5));
        assert_eq!(found.refused["RESOURCE_EXHAUSTED"].median(), Some(0.005));
        assert_eq!(found.ttft.count(), 3);
        assert_eq!(found.to_json()["refused_seconds"]["RESOURCE_EXHAUSTED"]["count"], 1);
    }
}
