//! Everything that can go wrong between a path and a step.
//!
//! A message says where (file, tensor or key), what was expected and what was found there, so that
//! a reader can tell a damaged download from an unsupported model without opening the file.

use std::path::PathBuf;

use sconce_kernels::Error as KernelError;

use crate::state::StateError;

/// Why a checkpoint cannot be read, or a model not be built or stepped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Its reason.
        source: std::io::Error,
    },
    /// The path holds nothing that this crate reads.
    #[error("{}: not a checkpoint: expected {expected}, found {found}", path.display())]
    NotACheckpoint {
        /// The path that was opened.
        path: PathBuf,
        /// What was looked for.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A file breaks the rules of its format.
    #[error("{file}: {place}: expected {expected}, found {found}")]
    Format {
        /// The file.
        file: String,
        /// The tensor, metadata key or part of the header.
        place: String,
        /// The rule.
        expected: String,
        /// What the file has.
        found: String,
    },
    /// A key of the configuration is missing, of the wrong type or of an impossible value.
    #[error("{file}: key {key}: expected {expected}, found {found}")]
    Config {
        /// The file that holds the key, or should.
        file: String,
        /// The key, as that file spells it.
        key: String,
        /// What the key should hold.
        expected: String,
        /// What it holds.
        found: String,
    },
    /// The checkpoint is of a model that this crate does not build.
    #[error("{file}: architecture {found} is not supported; supported are {supported}")]
    UnsupportedArchitecture {
        /// The checkpoint.
        file: String,
        /// What it says it is.
        found: String,
        /// Names of those that are built, separated by commas.
        supported: String,
    },
    /// A tensor of a type that no decoder exists for.
    #[error("{file}: tensor {tensor}: type {found} is not supported; supported are {supported}")]
    UnsupportedDtype {
        /// The file the tensor lies in.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its type.
        found: &'static str,
        /// Types that can be read here, separated by commas.
        supported: &'static str,
    },
    /// A tensor has another shape than the configuration asks for.
    #[error("{file}: tensor {tensor}: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// The file the tensor lies in.
        file: String,
        /// The tensor.
        tensor: String,
        /// Shape that follows from the configuration, rows first.
        expected: Vec<usize>,
        /// Shape in the checkpoint, rows first.
        found: Vec<usize>,
    },
    /// Codes and scales of a weight are those of another quantization than the configuration tells.
    #[error("{file}: tensor {tensor} is wrongly quantized: expected {expected}, found {found}")]
    Quantization {
        /// The file the tensor lies in.
        file: String,
        /// The tensor.
        tensor: String,
        /// What the configuration tells.
        expected: String,
        /// What the tensors are.
        found: String,
    },
    /// A tensor that the model needs is not in the checkpoint.
    #[error("{file}: tensor {tensor} is missing")]
    MissingTensor {
        /// The checkpoint.
        file: String,
        /// The tensor, by its canonical name.
        tensor: String,
    },
    /// A tensor that the model would have ignored, and whose weights would be lost with it.
    #[error("{file}: tensor {tensor} has no place in a {architecture} model")]
    UnexpectedTensor {
        /// The checkpoint.
        file: String,
        /// The tensor.
        tensor: String,
        /// The architecture that has no place for it.
        architecture: String,
    },
    /// A weight that was to be quantized is quantized: once more would lose what it still has.
    #[error(
        "{file}: {place}: expected full precision (F32, F16 or BF16) to quantize, found {found}"
    )]
    AlreadyQuantized {
        /// The file.
        file: String,
        /// The tensor or configuration key.
        place: String,
        /// How it is quantized.
        found: String,
    },
    /// What was to be written is there.
    #[error("{}: exists already", path.display())]
    OutputExists {
        /// The file or directory.
        path: PathBuf,
    },
    /// An option of a load that does not fit the model or the machine.
    #[error("option {option}: expected {expected}, found {found}")]
    Option {
        /// The option.
        option: String,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// Sequence state: no room, a closed sequence.
    #[error(transparent)]
    State(#[from] StateError),
    /// An operator refused its operands.
    #[error(transparent)]
    Kernel(#[from] sconce_kernels::Error),
    /// There is no such device.
    #[error("device: {0}")]
    NoDevice(#[from] sconce_kernels::gpu::DeviceError),
    /// The tensor library or the device failed.
    #[error("operator: {0}")]
    Operator(#[from] candle_core::Error),
    /// A step whose batch breaks a rule of [`Segment`](crate::Segment).
    #[error("batch: expected {expected}, found {found}")]
    Batch {
        /// The rule.
        expected: String,
        /// What broke it.
        found: String,
    },
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
}

/// What was wrong where a step failed, as far as its error tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// What was asked for: it broke a rule, or there was no room for it. Another batch may go well.
    Batch,
    /// The model, or the tensor library.
    Model,
    /// A GPU or its driver. It may be of this step alone, or of the whole process: CUDA answers every call
    /// after some errors with the same one.
    Gpu,
}

impl Error {
    /// What was wrong, for who ran a step or prepared one.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Kernel(error) | Self::State(StateError::Copy(error)) => blame_of_kernel(error),
            Self::Operator(error) | Self::State(StateError::Device(error)) => {
                blame_of_tensor(error)
            }
            Self::State(_) | Self::Batch { .. } | Self::Cancelled => Blame::Batch,
            _ => Blame::Model,
        }
    }

    /// An [`Error::Io`] about `path`, for `map_err`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { path, source }
    }

    /// An [`Error::Option`]: `option` is `found` where `expected` was due.
    pub(crate) fn option(
        option: impl ToString,
        expected: impl ToString,
        found: impl ToString,
    ) -> Error {
        Error::Option {
            option: option.to_string(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    /// An [`Error::Format`]: `place` in `file` holds `found` where `expected` was due.
    pub fn format(
        file: impl ToString,
        place: impl ToString,
        expected: impl ToString,
        found: impl ToString,
    ) -> Error {
        Error::Format {
            file: file.to_string(),
            place: place.to_string(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }
}

fn blame_of_kernel(error: &KernelError) -> Blame {
    match error {
        // One that cannot be started may ask for more than the GPU has: of that nothing is known here,
        // and no shape of our models does.
        KernelError::Kernel { .. } | KernelError::Device { .. } => Blame::Gpu,
        KernelError::Tensor(error) => blame_of_tensor(error),
        // Operands that an operator does not take.
        _ => Blame::Batch,
    }
}

fn blame_of_tensor(error: &candle_core::Error) -> Blame {
    use candle_core::Error as TensorError;
    match error {
        TensorError::Cuda(_) | TensorError::Metal(_) => Blame::Gpu,
        TensorError::Context { inner, .. }
        | TensorError::WithPath { inner, .. }
        | TensorError::WithBacktrace { inner, .. } => blame_of_tensor(inner),
        _ => Blame::Model,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_to_blame_wherever_its_error_comes_out() {
        let driver = || candle_core::Error::Cuda("an illegal address".into());
        let launch = || KernelError::Kernel { op: "add", kernel: "add_f32", what: "lost".into() };
        for error in [
            Error::Operator(driver()),
            Error::Operator(driver().context("a step").with_path("x")),
            Error::Kernel(KernelError::Tensor(driver())),
            Error::Kernel(launch()),
            Error::State(StateError::Copy(launch())),
            Error::State(StateError::Device(driver())),
        ] {
            assert_eq!(error.blame(), Blame::Gpu, "{error}");
        }
        let library = candle_core::Error::Msg("cannot".to_owned());
        assert_eq!(Error::Operator(library).blame(), Blame::Model);
        let aliased = KernelError::Aliased { op: "add", operand: "left" };
        let rule = Error::Batch { expected: "a token".into(), found: "none".into() };
        for error in [Error::Kernel(aliased), rule, StateError::OutOfSequences { max: 1 }.into()] {
            assert_eq!(error.blame(), Blame::Batch, "{error}");
        }
    }

    #[test]
    fn a_shape_error_names_the_file_the_tensor_and_both_shapes() {
        let error = Error::Shape {
            file: "x.gguf".into(),
            tensor: "norm.weight".into(),
            expected: vec![8],
            found: vec![4, 2],
        };
        assert_eq!(
            error.to_string(),
            "x.gguf: tensor norm.weight: expected shape [8], found [4, 2]"
        );
    }
}
