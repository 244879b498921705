//! Weights that nobody trained, made on the device that uses them: a model of any size can be timed
//! without its checkpoint. What they compute means nothing, but every number stays finite.

use candle_core::Device;
use sconce_kernels::random_words::reference::{mixed, word};
use sconce_kernels::{AffineFormat, Matrix, MatrixFormat, RandomRows, ScaleType};

use super::turn::{Orientation, turned_format, turned_rows};
use crate::error::Error;

/// What matrices are called in reports.
pub(super) const FORMAT: &str = "random, 4-bit";

/// Ends the names of matrices that decide about others, which quantizers give 8 bits.
const GATES: [&str; 2] = [".mlp.gate.weight", ".shared_expert_gate.weight"];

/// The weights of a seed.
#[derive(Debug, Clone, Copy)]
pub(super) struct RandomWeights {
    pub(super) seed: u64,
}

/// One matrix in the making.
#[derive(Debug, Clone, Copy)]
pub(super) struct RandomPart {
    source: RandomRows,
    orientation: Orientation,
}

impl RandomWeights {
    /// Part `index` of weight `name`: 4 bits in groups of 64 with bf16 scales and biases, as MLX stores
    /// them, and 8 bits where that does.
    pub(super) fn part(
        self,
        (name, index): (&str, usize),
        [rows, cols]: [usize; 2],
        orientation: Orientation,
    ) -> RandomPart {
        let bits = if GATES.iter().any(|gate| name.ends_with(gate)) { 8 } else { 4 };
        let group_size = if cols.is_multiple_of(64) { 64 } else { 32 };
        let format = AffineFormat { bits, group_size, zero_point: None, scales: ScaleType::Bf16 };
        let seed = self.seed_of(name, index);
        RandomPart { source: RandomRows { rows, cols, format, seed }, orientation }
    }

    /// The values of a small tensor: from 0.5 to 1.5, so that norms, the one tensor of which there are
    /// many, stay what they are.
    pub(super) fn values(self, name: &str, len: usize) -> Vec<f32> {
        let seed = self.seed_of(name, 0);
        let unit = |index| word(index as u32, seed) as f32 / 4_294_967_296.0;
        (0..len).map(|index| 0.5 + unit(index)).collect()
    }

    fn seed_of(self, name: &str, index: usize) -> u64 {
        let hash = |low: u32, byte: u8| mixed(low ^ u32::from(byte));
        // Mixed before: seed 1 of `b` would be seed 2 of `a`.
        let low = name.bytes().fold(mixed(self.seed as u32), hash);
        let high = mixed(mixed(low ^ (self.seed >> 32) as u32) ^ index as u32);
        u64::from(high) << 32 | u64::from(low)
    }
}

impl RandomPart {
    /// What the matrix holds.
    pub(super) fn format(&self) -> MatrixFormat {
        let stored = MatrixFormat::Affine(self.source.format);
        match self.orientation {
            Orientation::AsStored => stored,
            Orientation::Turned => turned_format(stored),
        }
    }

    /// Bytes of the matrix on a device.
    ///
    /// # Errors
    /// A device without operators.
    pub(super) fn bytes(&self, device: &Device) -> Result<u64, Error> {
        let RandomRows { rows, cols, .. } = self.source;
        let [rows, cols] = match self.orientation {
            Orientation::AsStored => [rows, cols],
            Orientation::Turned => [cols, rows],
        };
        Ok(Matrix::bytes_on(self.format(), rows, cols, device)?)
    }

    /// Elements of the matrix.
    pub(super) fn elements(&self) -> u64 {
        self.source.rows as u64 * self.source.cols as u64
    }

    /// Makes the matrix.
    ///
    /// # Errors
    /// A size that cannot be made, a device that cannot allocate.
    pub(super) fn pack(&self, device: &Device) -> Result<Matrix, Error> {
        match self.orientation {
            Orientation::AsStored => Ok(Matrix::random(&self.source, device)?),
            Orientation::Turned => {
                let stored = Matrix::random(&self.source, &Device::Cpu)?;
                Ok(Matrix::pack_dense(&turned_rows(&stored)?, device)?)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parts_and_seeds_tell_weights_apart() {
        let seeds = [(1, "a", 0), (1, "b", 0), (1, "a", 1), (2, "a", 0), (1 << 32, "a", 0)];
        let mut found =
            seeds.map(|(seed, name, index)| RandomWeights { seed }.seed_of(name, index));
        assert_eq!(found[0], RandomWeights { seed: 1 }.seed_of("a", 0));
        found.sort_unstable();
        assert!(found.windows(2).all(|pair| pair[0] != pair[1]), "{found:?}");
    }

    #[test]
    fn small_tensors_are_near_one_and_not_all_the_same() {
        let values = RandomWeights { seed: 3 }.values("norm", 1000);
        assert!(values.iter().all(|value| (0.5..=1.5).contains(value)));
        let mean = values.iter().sum::<f32>() / 1000.0;
        assert!((mean - 1.0).abs() < 0.05, "{mean}");
    }

    #[test]
    fn a_turned_matrix_has_the_shape_and_the_bytes_foreseen() {
        let random = RandomWeights { seed: 4 };
        for orientation in [Orientation::AsStored, Orientation::Turned] {
            let part = random.part(("w", 0), [24, 128], orientation);
            let matrix = part.pack(&Device::Cpu).unwrap();
            assert_eq!(matrix.format(), part.format());
            assert_eq!(matrix.bytes() as u64, part.bytes(&Device::Cpu).unwrap());
            assert_eq!((matrix.rows() * matrix.cols()) as u64, part.elements());
        }
    }
}
