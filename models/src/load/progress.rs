//! How far a load has come.

/// What a load is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LoadStage {
    /// Reading headers and configuration.
    Open,
    /// Reading tensors and packing them for the device.
    Weights,
    /// Stepping once.
    WarmUp,
    /// Done.
    Ready,
}

/// A report of a load under way; counts are zero outside of [`LoadStage::Weights`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    /// What it is doing.
    pub stage: LoadStage,
    /// Bytes of tensors that were read, as they lie in the file.
    pub bytes_done: u64,
    /// Bytes of all tensors that the model needs.
    pub bytes_total: u64,
    /// Tensors that were read.
    pub tensors_done: usize,
    /// All tensors that the model needs.
    pub tensors_total: usize,
}

impl LoadProgress {
    /// The beginning of a stage.
    pub fn at(stage: LoadStage) -> Self {
        Self { stage, bytes_done: 0, bytes_total: 0, tensors_done: 0, tensors_total: 0 }
    }
}
