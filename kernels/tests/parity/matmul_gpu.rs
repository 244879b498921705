//! Rows of the matmul table that are about GPUs: blocks of many rows, of which the CPU has other
//! sizes, and where bits may depend on company.

use candle_core::Device;
use sconce_kernels::{
    ActivationType, AffineFormat, Code, CodedFormat, DenseType, Error, Matrix, Mode, ScaleType,
    matmul,
};

use crate::coded::{self, Coded};
use crate::common::{Backend, bits, device, gpu, on_cpu, poisoned, tensor};
use crate::matmul::{Affine, Dense, activations, assert_matches, expected, formats, run};

const KINDS: [ActivationType; 3] =
    [ActivationType::F32, ActivationType::Int8, ActivationType::Int16];

/// One weight of each kind that is decoded in a way of its own.
fn weights(rows: usize, cols: usize) -> Vec<Matrix> {
    let nibbles = formats()[13];
    let bytes = AffineFormat { bits: 8, zero_point: Some(128), scales: ScaleType::F16, ..nibbles };
    let affine = |format| {
        let source = Affine { rows, cols, format, seed: 1 };
        Matrix::pack_affine(&source, &device()).unwrap()
    };
    let coded = |(code, group_size, scales)| {
        let format = CodedFormat { code, group_size, scales };
        Matrix::pack_coded(&Coded { rows, cols, format, seed: 1 }, &device()).unwrap()
    };
    let dense =
        |dense_type| Matrix::pack_dense(&Dense { rows, cols, dense_type }, &device()).unwrap();
    let codes = [
        (Code::E2m1, 16, ScaleType::Bf16),
        (Code::Iq4Nl, 32, ScaleType::F16),
        (Code::E4m3, 32, ScaleType::E8m0),
    ];
    let types = [DenseType::F32, DenseType::Bf16, DenseType::F16];
    let weights = [nibbles, bytes].map(affine).into_iter();
    weights.chain(codes.map(coded)).chain(types.map(dense)).collect()
}

#[test]
fn many_rows_in_ragged_blocks_match_the_reference() {
    // Outputs, columns, rows: less than a block, more than one of each kind of block.
    for (outputs, cols, rows) in [(30, 96, 35), (150, 160, 70), (130, 64, 140)] {
        let x = activations(5, rows, cols);
        for format in [formats()[0], formats()[5]] {
            let source = Affine { rows: outputs, cols, format, seed: 3 };
            let pack = || Matrix::pack_affine(&source, &device()).unwrap();
            let case = format!("{format:?} {rows}x{cols}x{outputs}");
            assert_matches(pack, &x, &case, |kind| expected(&source, &x, kind));
        }
        let format = CodedFormat { code: Code::E4m3, group_size: 32, scales: ScaleType::F16 };
        let source = Coded { rows: outputs, cols, format, seed: 3 };
        let pack = || Matrix::pack_coded(&source, &device()).unwrap();
        let case = format!("{format:?} {rows}x{cols}x{outputs}");
        assert_matches(pack, &x, &case, |kind| coded::expected(&source, &x, kind));
    }
}

#[test]
fn columns_beyond_those_that_a_block_holds_match_the_reference() {
    // Of 2048 at a time there are two, of 1024, for more than 8 parts, three.
    let (outputs, cols) = (20, 2176);
    for rows in [1, 3, 9] {
        let x = activations(6, rows, cols);
        for format in [formats()[0], formats()[5], formats()[13]] {
            let source = Affine { rows: outputs, cols, format, seed: 4 };
            let pack = || Matrix::pack_affine(&source, &device()).unwrap();
            let case = format!("{format:?} {rows}x{cols}x{outputs}");
            assert_matches(pack, &x, &case, |kind| expected(&source, &x, kind));
        }
    }
}

/// Checks that rows have the bits in a batch of `count` that they have in a batch of `few`.
fn assert_same_bits(weight: &Matrix, kind: ActivationType, few: usize, count: usize, case: &str) {
    let (cols, outputs) = (weight.cols(), weight.rows());
    let x = activations(4, count, cols);
    let all = run(&x, weight, kind, Mode::Store, &[]);
    for first in [1, count - few] {
        let batch = run(&x[first * cols..][..few * cols], weight, kind, Mode::Store, &[]);
        let found = bits(&all[first * outputs..][..few * outputs]);
        assert_eq!(found, bits(&batch[..few * outputs]), "{case} {kind:?}: {few} of {count}");
    }
}

#[test]
fn a_row_has_the_same_bits_among_few_of_a_gpu_and_the_same_among_many() {
    for backend in Backend::all().into_iter().filter(|it| it.is_gpu()) {
        backend.with(|| {
            for weight in weights(20, 256) {
                let case = format!("{backend} {:?}", weight.format());
                for kind in KINDS {
                    for count in [3, 8] {
                        assert_same_bits(&weight, kind, 1, count, &case);
                    }
                }
                assert_same_bits(&weight, ActivationType::F32, 11, 70, &case);
                assert_same_bits(&weight, ActivationType::Int8, 33, 70, &case);
            }
        });
    }
}

#[test]
fn a_weight_of_another_device_is_refused() {
    let source = Dense { rows: 5, cols: 64, dense_type: DenseType::F32 };
    let of_cpu = on_cpu(|| Matrix::pack_dense(&source, &Device::Cpu)).unwrap();
    let x = tensor(&[0.0; 128], 64);
    let product = |weight: &Matrix| {
        let out = poisoned(2, 5);
        let exact = sconce_kernels::Activations::exact(&x, 2).unwrap();
        matmul(&out, &exact, weight, Mode::Store)
    };
    let is_refused =
        |found: Result<(), Error>| matches!(found, Err(Error::Shape { operand: "weight", .. }));
    for backend in Backend::all().into_iter().filter(|it| it.is_gpu()) {
        let of_gpu = backend.with(|| Matrix::pack_dense(&source, &device())).unwrap();
        assert!(backend.with(|| product(&of_gpu)).is_ok(), "{backend}");
        assert!(is_refused(backend.with(|| product(&of_cpu))), "{backend}");
        // An emulated GPU shares its tensors with the CPU.
        if gpu().is_none() {
            assert!(product(&of_cpu).is_ok());
            assert!(is_refused(product(&of_gpu)), "{backend}");
        }
    }
}
