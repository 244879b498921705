//! `sconce bench accuracy`: how far the fast computation, or the fine one, is from the exact one.
//!
//! Both read the same text, teacher forced: after each token the two distributions of the next one
//! are compared, and both go on with the token that the text has.

use std::path::PathBuf;

use sconce_models::{Error, Precision};
use serde_json::json;

use super::stepper::Stepper;
use crate::cli::error::CliError;
use crate::cli::output;
use crate::cli::precision::PrecisionArgs;

/// What is read unless another text is given: a page of plain prose.
const PAGE: &str = include_str!("page.txt");

/// Arguments of `sconce bench accuracy`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: super::ModelArgs,
    #[command(flatten)]
    precision: PrecisionArgs,
    /// Read this file instead of the built-in page
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Most tokens of the text to read
    #[arg(long, value_name = "N", default_value_t = 2048)]
    tokens_max: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs `sconce bench accuracy`.
pub(super) fn run(args: Args) -> Result<(), CliError> {
    let text = match &args.text {
        Some(path) => std::fs::read_to_string(path)
            .map_err(|error| CliError::Usage(format!("text {}: {error}", path.display())))?,
        None => PAGE.to_owned(),
    };
    let mut tokens = args.model.tokenize(&text)?;
    tokens.truncate(args.tokens_max);
    if tokens.len() < 2 {
        return Err(CliError::Usage(format!(
            "expected a text of at least 2 tokens, found {}",
            tokens.len()
        )));
    }
    let mut exact = args.model.load(Precision::Exact, tokens.len(), 1)?;
    let mut fast = args.model.load(args.precision.precision(), tokens.len(), 1)?;
    let comparison = compare(&mut exact, &mut fast, &tokens)
        .map_err(|error| CliError::Internal(format!("a step failed: {error}")))?;
    report(&args, &comparison)
}

fn compare(exact: &mut Stepper, fast: &mut Stepper, tokens: &[u32]) -> Result<Comparison, Error> {
    let (of_exact, of_fast) = (exact.open(1)?, fast.open(1)?);
    let mut comparison = Comparison::default();
    for pair in tokens.windows(2) {
        let mut expected = exact.decode(&of_exact, &pair[..1])?;
        let mut found = fast.decode(&of_fast, &pair[..1])?;
        comparison.add(expected.row(0)?, found.row(0)?, pair[1] as usize);
    }
    exact.close(&of_exact)?;
    fast.close(&of_fast)?;
    Ok(comparison)
}

/// Sums over the positions of a text.
#[derive(Debug, Default, PartialEq)]
struct Comparison {
    positions: usize,
    /// Positions where both have the same likeliest token.
    agreed: usize,
    /// Kullback-Leibler divergence from exact to fast, in nats.
    divergence_sum: f64,
    divergence_max: f64,
    /// Negative logprob of the text's own tokens, in nats.
    exact_loss_sum: f64,
    fast_loss_sum: f64,
}

impl Comparison {
    /// Adds a position: logits of both, and the token that the text has next.
    fn add(&mut self, exact: &[f32], fast: &[f32], next: usize) {
        let (exact_norm, fast_norm) = (log_sum_exp(exact), log_sum_exp(fast));
        let mut divergence = 0.0;
        for (&exact, &fast) in exact.iter().zip(fast) {
            let (p, q) = (f64::from(exact) - exact_norm, f64::from(fast) - fast_norm);
            divergence += p.exp() * (p - q);
        }
        // Rounding can leave a sum of equal distributions a little below zero.
        let divergence = divergence.max(0.0);
        self.positions += 1;
        self.agreed += usize::from(argmax(exact) == argmax(fast));
        self.divergence_sum += divergence;
        self.divergence_max = self.divergence_max.max(divergence);
        self.exact_loss_sum += exact_norm - f64::from(exact[next]);
        self.fast_loss_sum += fast_norm - f64::from(fast[next]);
    }

    fn agreement(&self) -> f64 {
        self.agreed as f64 / self.positions as f64
    }

    fn divergence_mean(&self) -> f64 {
        self.divergence_sum / self.positions as f64
    }

    fn perplexities(&self) -> (f64, f64) {
        let positions = self.positions as f64;
        ((self.exact_loss_sum / positions).exp(), (self.fast_loss_sum / positions).exp())
    }
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + logits.iter().map(|&logit| (f64::from(logit) - max).exp()).sum::<f64>().ln()
}

fn argmax(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
}

fn report(args: &Args, comparison: &Comparison) -> Result<(), CliError> {
    let (exact, fast) = comparison.perplexities();
    if args.json {
        return output::json(&json!({
            "version": crate::telemetry::version(),
            "path": args.model.path,
            "threads": sconce_models::threads::count(),
            "precision": args.precision.precision().name(),
            "positions": comparison.positions,
            "top1_agreement": comparison.agreement(),
            "kl_mean": comparison.divergence_mean(),
            "kl_max": comparison.divergence_max,
            "perplexity_exact": exact,
            "perplexity": fast,
        }));
    }
    let precision = args.precision.precision();
    output::line(format_args!(
        "{precision} against exact over {} positions\n\
         top-1 agreement  {:.2} %\n\
         KL mean          {:.6} nats\n\
         KL max           {:.6} nats\n\
         perplexity       {exact:.4} exact, {fast:.4} {precision}",
        comparison.positions,
        100.0 * comparison.agreement(),
        comparison.divergence_mean(),
        comparison.divergence_max,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_logits_do_not_diverge_however_large() {
        let mut comparison = Comparison::default();
        comparison.add(&[1000.0, -1000.0, 3.0], &[1000.0, -1000.0, 3.0], 0);
        assert_eq!(comparison.divergence_mean(), 0.0);
        assert_eq!(comparison.agreement(), 1.0);
        assert_eq!(comparison.perplexities(), (1.0, 1.0));
    }

    #[test]
    fn divergence_is_that_of_the_textbook() {
        // Exact: 3/4 and 1/4. Fast: 1/4 and 3/4.
        let (exact, fast) = ([3f32.ln(), 0.0], [0.0, 3f32.ln()]);
        let mut comparison = Comparison::default();
        comparison.add(&exact, &fast, 0);
        assert!((comparison.divergence_max - 0.5 * 3f64.ln()).abs() < 1e-6);
        assert_eq!(comparison.agreement(), 0.0);
        let (exact, fast) = comparison.perplexities();
        assert!((exact - 4.0 / 3.0).abs() < 1e-6 && (fast - 4.0).abs() < 1e-6);
    }
}
