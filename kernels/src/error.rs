//! Why an operator refused its operands. Operators never panic on what a caller passes.

use candle_core::{DType, DeviceLocation};

/// A refused call; nothing was written unless the message says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no implementation for the device the operands are on.
    #[error("{op}: no implementation for device {device:?}")]
    Unsupported {
        /// Name of the operator.
        op: &'static str,
        /// Where the operand lies.
        device: DeviceLocation,
    },
    /// Operands are on several devices.
    #[error("{op}: {operand} is on device {device:?}, operands before it are not")]
    Elsewhere {
        /// Name of the operator.
        op: &'static str,
        /// Name of the operand in the operator's signature.
        operand: &'static str,
        /// Where the operand lies.
        device: DeviceLocation,
    },
    /// An operand has a type the operator does not take.
    #[error("{op}: {operand} must be {expected:?}, found {found:?}")]
    DType {
        /// Name of the operator.
        op: &'static str,
        /// Name of the operand in the operator's signature.
        operand: &'static str,
        /// The type it takes.
        expected: DType,
        /// The type it was given.
        found: DType,
    },
    /// An operand has a shape that does not fit the others.
    #[error("{op}: {operand} must be {expected}, found {found}")]
    Shape {
        /// Name of the operator.
        op: &'static str,
        /// Name of the operand in the operator's signature.
        operand: &'static str,
        /// The rule it breaks.
        expected: String,
        /// What it is.
        found: String,
    },
    /// An operand has gaps or is permuted.
    #[error("{op}: {operand} must be contiguous, found strides {strides:?} for shape {shape:?}")]
    NotContiguous {
        /// Name of the operator.
        op: &'static str,
        /// Name of the operand in the operator's signature.
        operand: &'static str,
        /// Its shape.
        shape: Vec<usize>,
        /// Its strides, in elements.
        strides: Vec<usize>,
    },
    /// The output shares its memory with an operand that is read.
    #[error("{op}: {operand} shares its storage with the output")]
    Aliased {
        /// Name of the operator.
        op: &'static str,
        /// Name of the operand in the operator's signature.
        operand: &'static str,
    },
    /// An index points outside of what it indexes.
    #[error("{op}: {operand}[{position}] is {found}, must be below {limit}")]
    Index {
        /// Name of the operator.
        op: &'static str,
        /// Name of the list of indices in the operator's signature.
        operand: &'static str,
        /// Where in the list.
        position: usize,
        /// The index.
        found: usize,
        /// One more than the largest index allowed.
        limit: usize,
    },
    /// A kernel of a GPU is missing, could not be started or failed; the outputs are undefined.
    #[error("{op}: kernel {kernel}: {what}")]
    Kernel {
        /// Name of the operator.
        op: &'static str,
        /// Name of the kernel in its source.
        kernel: &'static str,
        /// What the driver said.
        what: String,
    },
    /// A GPU refused what is not one kernel: room for a list, a whole step. The outputs are undefined.
    #[error("{op}: {what}")]
    Device {
        /// Name of the operator, or of what was to be done.
        op: &'static str,
        /// What the driver said.
        what: String,
    },
    /// A weight cannot be packed as its format says.
    #[error("packing a weight: {what}")]
    Format {
        /// The rule broken, and by what.
        what: String,
    },
    /// The tensor library failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// Result of an operator.
pub type Result<T> = std::result::Result<T, Error>;
