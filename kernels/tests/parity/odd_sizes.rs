//! Rows of the tables for sizes that fill no block: groups, panels and tiles that are few or cut off.

use sconce_kernels::Matrix;

use crate::coded::{self, Coded};
use crate::common::device;
use crate::matmul::{self, Affine, assert_matches};

/// Groups of a row of a weight, its rows, and rows of activations.
const SIZES: [[usize; 3]; 6] =
    [[1, 1, 1], [1, 17, 3], [3, 15, 1], [5, 33, 7], [7, 16, 2], [3, 9, 0]];

#[test]
fn affine_weights_of_any_number_of_groups_match_their_reference() {
    for format in matmul::formats() {
        for [groups, rows, count] in SIZES {
            let cols = groups * format.group_size;
            let source = Affine { rows, cols, format, seed: groups as u64 };
            let pack = || Matrix::pack_affine(&source, &device()).unwrap();
            let x = matmul::activations(rows as u64, count, cols);
            let case = format!("{format:?} {count}x{cols}x{rows}");
            assert_matches(pack, &x, &case, |kind| matmul::expected(&source, &x, kind));
        }
    }
}

#[test]
fn coded_weights_of_any_number_of_groups_match_their_reference() {
    for format in coded::formats() {
        for [groups, rows, count] in SIZES {
            let cols = groups * format.group_size;
            let source = Coded { rows, cols, format, seed: groups as u64 };
            let pack = || Matrix::pack_coded(&source, &device()).unwrap();
            let x = matmul::activations(rows as u64, count, cols);
            let case = format!("{format:?} {count}x{cols}x{rows}");
            assert_matches(pack, &x, &case, |kind| coded::expected(&source, &x, kind));
        }
    }
}
