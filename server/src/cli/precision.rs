//! How exactly to compute, as flags of every command that runs a model.

use sconce_server::serve::Precision;

use crate::config::PrecisionChoice;

/// How exactly to compute.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(crate) struct PrecisionArgs {
    /// How exactly to compute [default: fast]
    #[arg(long, value_enum)]
    precision: Option<PrecisionChoice>,
    /// Compute with f32 activations, for comparison with references: --precision exact
    #[arg(long, conflicts_with = "precision")]
    exact: bool,
}

impl PrecisionArgs {
    /// What is on the command line, with the flag that says it.
    pub(crate) fn given(self) -> Option<(&'static str, PrecisionChoice)> {
        match self.exact {
            true => Some(("--exact", PrecisionChoice::Exact)),
            false => self.precision.map(|choice| ("--precision", choice)),
        }
    }

    /// What is on the command line, or the default.
    pub(crate) fn precision(self) -> Precision {
        self.given().map_or_else(Precision::default, |(_, choice)| choice.into())
    }
}
