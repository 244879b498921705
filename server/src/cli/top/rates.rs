//! What happened between two looks at a server: differences of its totals.

use std::time::Duration;

use sconce_proto::v1::Totals;

/// Speeds and mean times over the time between two looks.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Rates {
    /// Prompt tokens evaluated a second.
    pub(super) prompt: f64,
    /// Prompt tokens resumed a second, which were not evaluated.
    pub(super) resumed: f64,
    /// Completion tokens a second.
    pub(super) completion: f64,
    /// Mean time from arrival to first token, of the completions that sent theirs.
    pub(super) first_token: Option<Duration>,
    /// Mean time between two tokens of a completion.
    pub(super) gap: Option<Duration>,
    /// Mean time of a step.
    pub(super) step: Option<Duration>,
}

impl Rates {
    /// What happened from `before` to `after`, `elapsed` apart. Totals that shrink are those of
    /// another server; then nothing is known.
    pub(super) fn between(before: &Totals, after: &Totals, elapsed: Duration) -> Self {
        if after.requests_accepted < before.requests_accepted || after.steps < before.steps {
            return Self::default();
        }
        let seconds = elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
        let count = |of: fn(&Totals) -> u64| of(after).saturating_sub(of(before));
        let time = |of: fn(&Totals) -> Option<prost_types::Duration>| {
            span(of(after)).saturating_sub(span(of(before)))
        };
        let first_tokens = count(|totals| totals.first_tokens);
        let completion = count(|totals| totals.completion_tokens);
        Self {
            prompt: count(|totals| totals.prompt_tokens) as f64 / seconds,
            resumed: count(|totals| totals.resumed_tokens) as f64 / seconds,
            completion: completion as f64 / seconds,
            first_token: mean(time(|totals| totals.first_token_time), first_tokens),
            gap: mean(
                time(|totals| totals.token_gap_time),
                completion.saturating_sub(first_tokens),
            ),
            step: mean(time(|totals| totals.step_time), count(|totals| totals.steps)),
        }
    }
}

/// A time of the wire; none for what is unset or negative.
pub(super) fn span(wire: Option<prost_types::Duration>) -> Duration {
    wire.and_then(|wire| Duration::try_from(wire).ok()).unwrap_or_default()
}

fn mean(sum: Duration, count: u64) -> Option<Duration> {
    (count > 0).then(|| sum.div_f64(count as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(milliseconds: i64) -> Option<prost_types::Duration> {
        let nanos = (milliseconds % 1000) as i32 * 1_000_000;
        Some(prost_types::Duration { seconds: milliseconds / 1000, nanos })
    }

    #[test]
    fn rates_are_differences_over_time() {
        let before = Totals { steps: 10, step_time: wire(1000), ..Totals::default() };
        let after = Totals {
            steps: 30,
            step_time: wire(2000),
            prompt_tokens: 100,
            resumed_tokens: 50,
            completion_tokens: 22,
            first_tokens: 2,
            first_token_time: wire(500),
            token_gap_time: wire(1200),
            ..before.clone()
        };
        let rates = Rates::between(&before, &after, Duration::from_secs(2));
        assert_eq!((rates.prompt, rates.resumed, rates.completion), (50.0, 25.0, 11.0));
        assert_eq!(rates.first_token, Some(Duration::from_millis(250)));
        assert_eq!(rates.gap, Some(Duration::from_millis(60)));
        assert_eq!(rates.step, Some(Duration::from_millis(50)));
        assert_eq!(Rates::between(&after, &after, Duration::from_secs(1)), Rates::default());
    }

    #[test]
    fn a_server_that_started_again_has_no_rates_yet() {
        let old = Totals { steps: 9, completion_tokens: 9, ..Totals::default() };
        let new = Totals { steps: 1, completion_tokens: 20, ..Totals::default() };
        assert_eq!(Rates::between(&old, &new, Duration::from_secs(1)), Rates::default());
    }
}
