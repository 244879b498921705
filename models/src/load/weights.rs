//! Tensors of a checkpoint on their way into layers: checked, packed, counted, reported.

use std::collections::BTreeSet;

use candle_core::{Device, Tensor};
use sconce_kernels::Matrix;

use super::progress::{LoadProgress, LoadStage};
use super::{Progress, report};
use crate::checkpoint::{Checkpoint, MatrixRows, TensorView};
use crate::error::Error;

/// Takes each tensor that a model needs once, and knows at the end which were not taken.
pub(crate) struct Weights<'a> {
    checkpoint: &'a Checkpoint,
    device: &'a Device,
    progress: &'a mut Progress<'a>,
    /// Tensors that were not taken yet.
    left: BTreeSet<&'a str>,
    done: LoadProgress,
    bytes: u64,
    parameters: u64,
}

impl<'a> Weights<'a> {
    /// All tensors of `checkpoint` but those that the architecture knows to have no place in it.
    pub(crate) fn new(
        checkpoint: &'a Checkpoint,
        ignored: &dyn Fn(&str) -> bool,
        device: &'a Device,
        progress: &'a mut Progress<'a>,
    ) -> Self {
        let mut done = LoadProgress::at(LoadStage::Weights);
        let mut left = BTreeSet::new();
        for tensor in checkpoint.tensors().filter(|tensor| !ignored(tensor.name)) {
            left.insert(tensor.name);
            done.bytes_total += tensor.bytes.len() as u64;
            done.tensors_total += 1;
        }
        Self { checkpoint, device, progress, left, done, bytes: 0, parameters: 0 }
    }

    /// The checkpoint that the tensors come from.
    pub(crate) fn checkpoint(&self) -> &'a Checkpoint {
        self.checkpoint
    }

    /// Where layers are put.
    pub(crate) fn device(&self) -> &'a Device {
        self.device
    }

    /// A matrix, `[rows, cols]`, in the packing of the checkpoint.
    ///
    /// # Errors
    /// A tensor that is missing, has another shape or type; [`Error::Cancelled`].
    pub(crate) fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Matrix, Error> {
        let tensor = self.take(name, &[rows, cols])?;
        let matrix = match tensor.matrix_rows()? {
            MatrixRows::Affine(source) => Matrix::pack_affine(&source, self.device)?,
            MatrixRows::Dense(source) => Matrix::pack_dense(&source, self.device)?,
        };
        self.took(&tensor, matrix.bytes() as u64)?;
        Ok(matrix)
    }

    /// A vector in f32, `[len]`.
    ///
    /// # Errors
    /// As for [`matrix`](Self::matrix).
    pub(crate) fn vector(&mut self, name: &str, len: usize) -> Result<Tensor, Error> {
        let tensor = self.take(name, &[len])?;
        let vector = Tensor::from_vec(tensor.to_f32()?, len, self.device)?;
        self.took(&tensor, (len * size_of::<f32>()) as u64)?;
        Ok(vector)
    }

    /// Bytes of all that was taken, as it lies in memory.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Elements of all that was taken.
    pub(crate) fn parameters(&self) -> u64 {
        self.parameters
    }

    /// Verifies that nothing was left over.
    ///
    /// # Errors
    /// [`Error::UnexpectedTensor`]: a model that ignores weights is not the one in the checkpoint.
    pub(crate) fn finish(self, architecture: &str) -> Result<(), Error> {
        match self.left.first() {
            None => Ok(()),
            Some(name) => Err(Error::UnexpectedTensor {
                file: self.checkpoint.path().display().to_string(),
                tensor: (*name).to_string(),
                architecture: architecture.to_string(),
            }),
        }
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<TensorView<'a>, Error> {
        self.report()?;
        let tensor = self.checkpoint.tensor(name)?;
        tensor.expect_shape(shape)?;
        Ok(tensor)
    }

    fn took(&mut self, tensor: &TensorView<'_>, bytes: u64) -> Result<(), Error> {
        self.left.remove(tensor.name);
        self.bytes += bytes;
        self.parameters += tensor.elements() as u64;
        self.done.bytes_done += tensor.bytes.len() as u64;
        self.done.tensors_done += 1;
        self.report()
    }

    fn report(&mut self) -> Result<(), Error> {
        report(self.progress, self.done)
    }
}
