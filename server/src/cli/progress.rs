//! How a load looks while it goes on: a bar on a terminal, a few plain lines elsewhere.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use sconce_proto::v1::{LoadProgress, LoadStage};

use super::output;
use crate::telemetry::BARS;

/// Without a terminal, a line is written each time this share of the bytes was done.
const PLAIN_STEP_PERCENT: u64 = 25;

/// While it is not known how much there is to do.
const SPINNER: &str = "{prefix} {spinner} {msg}";
/// Once it is.
const BAR: &str = "{prefix} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {msg}";

/// The display of one load.
pub(crate) enum LoadDisplay {
    /// On a terminal.
    Bar(ProgressBar),
    /// Elsewhere.
    Plain {
        /// Name of the model.
        model: String,
        /// Stage and share of the bytes that the last line told.
        told: Option<(LoadStage, u64)>,
        /// Writes a line.
        tell: fn(&str),
    },
}

impl LoadDisplay {
    /// A display for the load of `model`; `tell` writes a line where there is no terminal.
    pub(crate) fn new(model: &str, tell: fn(&str)) -> Self {
        if !io::stderr().is_terminal() {
            return Self::Plain { model: model.to_owned(), told: None, tell };
        }
        let bar = BARS.add(ProgressBar::new(0));
        bar.set_style(style(SPINNER));
        bar.set_prefix(model.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        Self::Bar(bar)
    }

    /// Shows how far the load is.
    pub(crate) fn show(&mut self, progress: &LoadProgress) {
        let stage = progress.stage();
        match self {
            Self::Bar(bar) => {
                if progress.bytes_total > 0 && bar.length() != Some(progress.bytes_total) {
                    bar.set_style(style(BAR));
                    bar.set_length(progress.bytes_total);
                }
                bar.set_position(progress.bytes_done);
                bar.set_message(stage_name(stage));
            }
            Self::Plain { model, told, tell } => {
                let percent = (100 * progress.bytes_done)
                    .checked_div(progress.bytes_total)
                    .map_or(0, |percent| percent / PLAIN_STEP_PERCENT * PLAIN_STEP_PERCENT);
                if *told != Some((stage, percent)) {
                    *told = Some((stage, percent));
                    tell(&format!("load {model}: {}", describe(progress)));
                }
            }
        }
    }

    /// Removes the display; what follows is told by the caller.
    pub(crate) fn finish(self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
            BARS.remove(&bar);
        }
    }
}

/// The style of a bar that counts bytes.
pub(crate) fn bytes_style() -> ProgressStyle {
    style(BAR)
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .expect("the template names only keys that indicatif knows")
}

fn stage_name(stage: LoadStage) -> &'static str {
    match stage {
        LoadStage::Unspecified => "waiting",
        LoadStage::Open => "reading headers",
        LoadStage::Tokenizer => "reading the tokenizer",
        LoadStage::Weights => "reading weights",
    }
}

fn describe(progress: &LoadProgress) -> String {
    let stage = stage_name(progress.stage());
    if progress.bytes_total == 0 {
        return stage.to_owned();
    }
    format!(
        "{stage}, {} of {}",
        output::bytes(progress.bytes_done),
        output::bytes(progress.bytes_total),
    )
}
