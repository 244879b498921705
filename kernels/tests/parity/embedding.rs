//! Rows of the embedding table.

use sconce_kernels::embedding::reference;
use sconce_kernels::{DenseType, Error, Matrix, embedding};

use crate::coded::{self, Coded};
use crate::common::{Backend, bits, device, poisoned, values};
use crate::matmul::{Affine, Dense, formats};

/// Checks a table, on every backend, against the gathered rows of its unpacked form.
fn assert_parity(pack: impl Fn() -> Matrix, case: &str) {
    for backend in Backend::all().into_iter().filter(|it| it.packs()) {
        backend.with(|| assert_parity_here(&pack(), &format!("{backend} {case}")));
    }
}

fn assert_parity_here(table: &Matrix, case: &str) {
    let (vocab, dim) = (table.rows(), table.cols());
    let mut unpacked = vec![0.0; vocab * dim];
    for (row, values) in unpacked.chunks_mut(dim).enumerate() {
        table.dequantize_row(row, values).unwrap();
    }
    let last = vocab as u32 - 1;
    for ids in [vec![], vec![0], vec![last, 0, 3, 3, last]] {
        let mut expected = vec![0.0; ids.len() * dim];
        reference::embedding(&mut expected, &unpacked, &ids, dim);
        let out = poisoned(ids.len() + 1, dim);
        embedding(&out, table, &ids).unwrap();
        let found = values(&out);
        assert_eq!(bits(&found[..expected.len()]), bits(&expected), "{case}");
        assert!(found[expected.len()..].iter().all(|value| value.is_nan()), "{case}");
    }
}

#[test]
fn embedding_matches_its_reference() {
    for format in formats() {
        let source = Affine { rows: 21, cols: 128, format, seed: 5 };
        let table = || Matrix::pack_affine(&source, &device()).unwrap();
        assert_parity(table, &format!("{format:?}"));
    }
    for format in coded::formats() {
        let source = Coded { rows: 21, cols: 128, format, seed: 5 };
        let table = || Matrix::pack_coded(&source, &device()).unwrap();
        assert_parity(table, &format!("{format:?}"));
    }
    for dense_type in [DenseType::F32, DenseType::Bf16, DenseType::F16] {
        for cols in [7, 45] {
            let source = Dense { rows: 18, cols, dense_type };
            let table = || Matrix::pack_dense(&source, &device()).unwrap();
            assert_parity(table, &format!("{dense_type:?} {cols}"));
        }
    }
}

#[test]
fn an_id_outside_of_the_vocabulary_is_refused_by_name() {
    let source = Dense { rows: 18, cols: 7, dense_type: DenseType::F32 };
    let table = Matrix::pack_dense(&source, &device()).unwrap();
    let error = embedding(&poisoned(2, 7), &table, &[1, 18]).unwrap_err();
    assert_eq!(error.to_string(), "embedding: ids[1] is 18, must be below 18");
    let error = embedding(&poisoned(1, 7), &table, &[1, 2]).unwrap_err();
    assert!(matches!(error, Error::Shape { .. }));
}
