//! The table and the JSON of a run: medians over rounds, and which promises were broken.

use std::time::Duration;

use sconce_cache::Tier;
use serde_json::{Value, json};

use super::plan::Kind;
use super::runner::{Cost, Outcome};
use crate::cli::bench::stats::median;
use crate::cli::output;

/// Prompts whose lengths differ by no more than this share are compared in time.
const COMPARABLE: f64 = 0.05;

/// One request of a scenario over all rounds.
#[derive(Debug, Clone)]
pub(super) struct Row {
    scenario: String,
    device_max: Option<u64>,
    /// That of the round that computed most.
    worst: Cost,
    /// Median time to the first token.
    ttft: Duration,
    /// Median of the ratios to the cold prompt of the same round, if one is as long.
    ratio: Option<f64>,
}

/// The rows of a scenario, from its outcome in each round.
pub(super) fn rows(rounds: &[Outcome]) -> Vec<Row> {
    let Some(first) = rounds.first() else { return Vec::new() };
    (0..first.costs.len())
        .map(|index| {
            let costs = || rounds.iter().map(|round| &round.costs[index]);
            let worst = costs().max_by_key(|cost| cost.report.recomputed).expect("not empty");
            let ratios = rounds.iter().filter_map(|round| ratio(&round.costs, index)).collect();
            Row {
                scenario: first.scenario.clone(),
                device_max: first.device_max,
                worst: worst.clone(),
                ttft: median(costs().map(|cost| cost.ttft.as_secs_f64()).collect())
                    .map_or(Duration::ZERO, Duration::from_secs_f64),
                ratio: median(ratios),
            }
        })
        .collect()
}

/// Time of a request by that of the cold one that is nearest in length.
fn ratio(costs: &[Cost], index: usize) -> Option<f64> {
    let cost = &costs[index];
    let difference = |cold: &&Cost| cold.prompt_tokens.abs_diff(cost.prompt_tokens);
    let cold = costs.iter().filter(|cost| cost.kind == Kind::Cold).min_by_key(difference)?;
    let near = difference(&cold) as f64 <= COMPARABLE * cost.prompt_tokens as f64;
    near.then(|| cost.ttft.as_secs_f64() / cold.ttft.as_secs_f64())
}

impl Row {
    /// What was promised and not kept, in words.
    pub(super) fn broken(&self) -> Vec<String> {
        let (cost, mut broken) = (&self.worst, Vec::new());
        let place = format!("{}, {}", self.scenario, cost.label);
        let recomputed = cost.report.recomputed;
        if let Some(max) =
            cost.kind.recomputed_max(cost.prompt_tokens).filter(|&max| recomputed > max)
        {
            broken.push(format!("{place}: recomputed {recomputed} tokens, expected at most {max}"));
        }
        let share_max = cost.kind.ttft_share_max(cost.prompt_tokens);
        if let (Some(max), Some(found)) = (share_max, self.ratio)
            && found > max
        {
            broken.push(format!(
                "{place}: the first token took {:.1} % of a cold prompt's time, expected at most \
                 {:.0} %",
                100.0 * found,
                100.0 * max
            ));
        }
        broken
    }

    fn cells(&self) -> Vec<String> {
        let (cost, report) = (&self.worst, &self.worst.report);
        let count = |count: Option<usize>| count.map_or_else(|| "-".into(), |n| n.to_string());
        let mut cells = vec![
            self.scenario.clone(),
            cost.label.clone(),
            cost.prompt_tokens.to_string(),
            report.matched.to_string(),
            report.resumed.to_string(),
            report.recomputed.to_string(),
            count(cost.kind.distance()),
            count(cost.kind.recomputed_max(cost.prompt_tokens)),
            report.tier.map_or_else(|| "-".into(), |tier| tier.to_string()),
            format!("{:.1}", 1000.0 * self.ttft.as_secs_f64()),
            self.ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.4}")),
        ];
        cells.extend(cost.held.iter().map(|&bytes| output::bytes(bytes)));
        cells
    }

    /// The row for programs.
    pub(super) fn to_json(&self) -> Value {
        let (cost, report) = (&self.worst, &self.worst.report);
        json!({
            "scenario": self.scenario,
            "request": cost.label,
            "device_bytes_max": self.device_max,
            "prompt_tokens": cost.prompt_tokens,
            "matched_tokens": report.matched,
            "resumed_tokens": report.resumed,
            "recomputed_tokens": report.recomputed,
            "distance": cost.kind.distance(),
            "recomputed_tokens_max": cost.kind.recomputed_max(cost.prompt_tokens),
            "tier": report.tier.map(|tier| tier.to_string()),
            "reason": format!("{:?}", report.reason),
            "ttft_seconds_median": self.ttft.as_secs_f64(),
            "ttft_by_cold_median": self.ratio,
            "bytes_held": Tier::ALL
                .iter()
                .map(|&tier| (tier.to_string(), json!(cost.held[tier as usize])))
                .collect::<serde_json::Map<_, _>>(),
            "broken": self.broken(),
        })
    }
}

/// The rows as a table for people.
pub(super) fn table(rows: &[Row]) -> String {
    let cells: Vec<Vec<String>> = rows.iter().map(Row::cells).collect();
    let header = [
        "scenario",
        "request",
        "prompt",
        "matched",
        "resumed",
        "recomputed",
        "d",
        "most",
        "tier",
        "ttft ms",
        "by cold",
        "device",
        "host",
        "disk",
    ];
    output::table(&header, &[2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13], &cells)
}

#[cfg(test)]
mod tests {
    use sconce_cache::Reason;
    use sconce_engine::CacheReport;

    use super::*;

    fn cost(kind: Kind, recomputed: usize, milliseconds: u64) -> Cost {
        let prompt_tokens = 4096;
        Cost {
            label: "asked".to_owned(),
            kind,
            prompt_tokens,
            report: CacheReport {
                matched: prompt_tokens - recomputed,
                resumed: prompt_tokens - recomputed,
                recomputed,
                tier: None,
                reason: Reason::Full,
                divergence: None,
                restored_bytes: 0,
            },
            ttft: Duration::from_millis(milliseconds),
            held: [0; Tier::ALL.len()],
        }
    }

    fn outcome(kind: Kind, recomputed: usize, milliseconds: u64) -> Outcome {
        let costs = vec![cost(Kind::Cold, 4096, 1000), cost(kind, recomputed, milliseconds)];
        Outcome { scenario: "some".to_owned(), device_max: None, costs }
    }

    #[test]
    fn counts_are_of_the_worst_round_and_times_medians() {
        let rounds = [(10, 30), (131, 50), (20, 900)]
            .map(|(recomputed, time)| outcome(Kind::Repeat, recomputed, time));
        let row = &rows(&rounds)[1];
        assert_eq!(row.worst.report.recomputed, 131);
        assert_eq!(row.ttft, Duration::from_millis(50));
        assert_eq!(row.ratio, Some(0.05));
        assert!(row.broken().is_empty(), "{:?}", row.broken());
    }

    #[test]
    fn what_is_broken_is_told() {
        let rows_of = |kind, recomputed, time| rows(&[outcome(kind, recomputed, time)]);
        let broken = |kind, recomputed, time| rows_of(kind, recomputed, time)[1].broken().len();
        assert_eq!(broken(Kind::Repeat, 132, 51), 2);
        assert_eq!(broken(Kind::Onward, 132, 51), 1);
        assert_eq!(broken(Kind::Near { distance: 4 }, 144, 900), 0);
        assert_eq!(broken(Kind::Near { distance: 4 }, 145, 900), 1);
    }
}
