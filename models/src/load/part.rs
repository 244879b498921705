//! Selected rows of a weight on their way into one matrix: as they are stored, turned, or quantized.

use candle_core::Device;
use sconce_kernels::{DenseRows, Matrix, MatrixFormat};

use super::turn::{Orientation, turned_format, turned_rows};
use crate::checkpoint::{MatrixRows, RowSelection, Weight};
use crate::error::Error;
use crate::quantize::policy::packing_of;
use crate::quantize::rows::QuantizedRows;
use crate::quantize::{Packing, QuantizeFormat, expect_full_precision};

/// A load that quantizes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quantizing {
    /// What was asked for.
    pub(super) format: QuantizeFormat,
    /// Layers of the model.
    pub(super) layers: usize,
}

/// What one matrix is made of.
#[derive(Debug, Clone)]
pub(super) struct Part<'a> {
    rows: MatrixRows<'a>,
    orientation: Orientation,
    packing: Option<Packing>,
}

impl<'a> Part<'a> {
    /// The selected rows of `weight`.
    ///
    /// # Errors
    /// Rows that are not there or cannot be read; [`Error::AlreadyQuantized`] for a weight that is
    /// to be quantized and is.
    pub(super) fn new(
        weight: &Weight<'a>,
        (selection, orientation): (RowSelection, Orientation),
        quantizing: Option<Quantizing>,
    ) -> Result<Self, Error> {
        let rows = weight.matrix_rows(selection)?;
        let mut part = Self { rows, orientation, packing: None };
        if let Some(Quantizing { format, layers }) = quantizing {
            part.packing = packing_of(weight.name(), &part.shape(), layers, format);
        }
        if part.packing.is_some() {
            expect_full_precision(weight)?;
        }
        Ok(part)
    }

    /// How it is quantized, if it is.
    pub(super) fn packing(&self) -> Option<Packing> {
        self.packing
    }

    /// Bytes of the matrix on a device.
    ///
    /// # Errors
    /// A device without operators.
    pub(super) fn bytes(&self, device: &Device) -> Result<u64, Error> {
        let [rows, cols] = self.shape();
        Ok(Matrix::bytes_on(self.format(), rows, cols, device)?)
    }

    /// Elements of the matrix.
    pub(super) fn elements(&self) -> u64 {
        let [rows, cols] = self.shape();
        rows as u64 * cols as u64
    }

    /// Makes the matrix.
    ///
    /// # Errors
    /// The device cannot allocate.
    pub(super) fn pack(&self, device: &Device) -> Result<Matrix, Error> {
        match (self.orientation, &self.rows) {
            (Orientation::AsStored, MatrixRows::Affine(rows)) => {
                Ok(Matrix::pack_affine(rows, device)?)
            }
            (Orientation::AsStored, MatrixRows::Coded(rows)) => {
                Ok(Matrix::pack_coded(rows, device)?)
            }
            (Orientation::AsStored, MatrixRows::Dense(rows)) => self.pack_dense(rows, device),
            (Orientation::Turned, _) => {
                let stored =
                    Self { orientation: Orientation::AsStored, packing: None, ..self.clone() };
                self.pack_dense(&turned_rows(&stored.pack(&Device::Cpu)?)?, device)
            }
        }
    }

    fn pack_dense(&self, rows: &dyn DenseRows, device: &Device) -> Result<Matrix, Error> {
        match self.packing.and_then(|packing| QuantizedRows::new(rows, packing)) {
            Some(quantized) => quantized.pack(device),
            None => Ok(Matrix::pack_dense(rows, device)?),
        }
    }

    fn shape(&self) -> [usize; 2] {
        match self.orientation {
            Orientation::AsStored => [self.rows.rows(), self.rows.cols()],
            Orientation::Turned => [self.rows.cols(), self.rows.rows()],
        }
    }

    /// What the matrix holds.
    pub(super) fn format(&self) -> MatrixFormat {
        let format = match self.orientation {
            Orientation::AsStored => self.rows.format(),
            Orientation::Turned => turned_format(self.rows.format()),
        };
        match (self.packing, format) {
            (Some(packing), MatrixFormat::Dense(source)) => QuantizedRows::format(packing, source),
            _ => format,
        }
    }
}
