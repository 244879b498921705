//! Why something could not be measured.

/// A measurement that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A value that is out of range or does not go with another.
    #[error("{option}: expected {expected}, found {found}")]
    Option {
        /// The name of the option, as on a command line without its dashes.
        option: &'static str,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// Weights or state that would not leave room for anything else.
    #[error("{what}: expected at most {limit} bytes, found {found}")]
    TooLarge {
        /// Whose memory it is.
        what: String,
        /// Most bytes.
        limit: u64,
        /// Bytes that it takes.
        found: u64,
    },
    /// Options that leave no case of any operator.
    #[error("nothing to measure: no operator has a case with these formats, activations and rows")]
    Nothing,
    /// Whoever hears of measurements wants no more of them.
    #[error("broken off")]
    Stopped,
    /// An operator refused.
    #[error(transparent)]
    Operator(#[from] sconce_kernels::Error),
    /// The tensor library failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    pub(crate) fn option(
        option: &'static str,
        expected: impl ToString,
        found: impl ToString,
    ) -> Self {
        Self::Option { option, expected: expected.to_string(), found: found.to_string() }
    }
}
