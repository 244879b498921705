//! Values of a matrix after packing, to compare with what its source holds.

use candle_core::{DType, Device, Tensor};
use sconce_kernels::{Matrix, embedding};
use sconce_models::checkpoint::MatrixRows;

/// Packs `rows` and reads all values back.
pub(crate) fn values(rows: &MatrixRows<'_>) -> Vec<f32> {
    let device = Device::Cpu;
    let matrix = match rows {
        MatrixRows::Affine(source) => Matrix::pack_affine(source, &device),
        MatrixRows::Coded(source) => Matrix::pack_coded(source, &device),
        MatrixRows::Dense(source) => Matrix::pack_dense(source, &device),
    };
    let shape = (rows.rows(), rows.cols());
    let out = Tensor::zeros(shape, DType::F32, &device).unwrap();
    let ids: Vec<u32> = (0..rows.rows() as u32).collect();
    embedding(&out, &matrix.unwrap(), &ids).unwrap();
    out.flatten_all().unwrap().to_vec1().unwrap()
}
