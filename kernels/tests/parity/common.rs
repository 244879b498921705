//! What runs operators; seeded numbers, poisoned tensors and the comparison of results.

use std::fmt;
use std::sync::OnceLock;

use candle_core::{Device, Tensor};
use sconce_kernels::Isa;
#[cfg(feature = "emulate")]
use sconce_kernels::gpu::emulate;
#[cfg(any(feature = "cuda", feature = "emulate"))]
use sconce_kernels::gpu::has_wgmma;
use sconce_kernels::gpu::{Language, with_wgmma};

use crate::place::name;
pub(crate) use crate::place::{device, gpu, levels, on_cpu};

/// A number that is mixed into the seeds of all random inputs, so that a run sees others than runs
/// before it; 0, or nothing, for the same in each.
const SEED_VARIABLE: &str = "SCONCE_PARITY_SEED";

/// What runs an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    /// The CPU, with the instructions of a level.
    Cpu(Isa),
    /// The GPU that tests have their tensors on, in a dry run as if.
    Gpu,
    /// The kernels of a GPU, on the CPU, beside its own operators.
    #[cfg(feature = "emulate")]
    Emulated(Language),
    /// That GPU if it is of compute capability 9.0, products of many rows on `wgmma`.
    #[cfg(any(feature = "cuda", feature = "emulate"))]
    GpuWgmma,
    /// One on the CPU, beside its own operators, with such products.
    #[cfg(feature = "emulate")]
    EmulatedWgmma,
}

impl Backend {
    /// Every backend of this build and this machine, the levels of the CPU first; the GPU alone where
    /// tests have their tensors on one.
    pub(crate) fn all() -> Vec<Self> {
        if gpu().is_some() {
            return vec![Self::Gpu];
        }
        let levels = Isa::available().map(Self::Cpu);
        #[cfg(feature = "emulate")]
        let levels = levels.chain([Language::Cuda, Language::Metal].map(Self::Emulated));
        levels.collect()
    }

    /// The backend whose products of many rows are those of `wgmma`, if there is one: rows of such
    /// products have it beside [`all`](Self::all), whose GPUs are without.
    #[cfg(any(feature = "cuda", feature = "emulate"))]
    pub(crate) fn wgmma() -> Option<Self> {
        if has_wgmma(&device()) {
            return Some(Self::GpuWgmma);
        }
        #[cfg(feature = "emulate")]
        if gpu().is_none() {
            return Some(Self::EmulatedWgmma);
        }
        None
    }

    /// Where it has its tensors.
    pub(crate) fn device(self) -> Device {
        match self {
            Self::Cpu(_) => Device::Cpu,
            Self::Gpu => device(),
            #[cfg(feature = "emulate")]
            Self::Emulated(_) | Self::EmulatedWgmma => Device::Cpu,
            #[cfg(any(feature = "cuda", feature = "emulate"))]
            Self::GpuWgmma => device(),
        }
    }

    /// Runs `body` with operators, and the packing of weights, on this backend.
    pub(crate) fn with<R>(self, body: impl FnOnce() -> R) -> R {
        match self {
            Self::Cpu(isa) => on_cpu(|| isa.with(body)),
            // Where its operands are.
            Self::Gpu => with_wgmma(false, body),
            #[cfg(feature = "emulate")]
            Self::Emulated(language) => with_wgmma(false, || emulate(language, body)),
            #[cfg(any(feature = "cuda", feature = "emulate"))]
            Self::GpuWgmma => with_wgmma(true, body),
            #[cfg(feature = "emulate")]
            Self::EmulatedWgmma => with_wgmma(true, || emulate(Language::Cuda, body)),
        }
    }

    /// Whether weights are packed for it in a way of its own: one level of the CPU stands for all.
    pub(crate) fn packs(self) -> bool {
        self.is_gpu() || Self::all().first() == Some(&self)
    }

    /// Whether tensor cores multiply in bf16.
    pub(crate) fn is_cuda(self) -> bool {
        match self {
            Self::Cpu(_) => false,
            Self::Gpu => gpu() == Some(Language::Cuda),
            #[cfg(feature = "emulate")]
            Self::Emulated(language) => language == Language::Cuda,
            #[cfg(any(feature = "cuda", feature = "emulate"))]
            Self::GpuWgmma => true,
            #[cfg(feature = "emulate")]
            Self::EmulatedWgmma => true,
        }
    }

    /// Whether it is a GPU: sums are in another order than on the CPU, and an emulated one is slow.
    pub(crate) fn is_gpu(self) -> bool {
        !matches!(self, Self::Cpu(_))
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu(isa) => isa.fmt(f),
            Self::Gpu => f.write_str(&name()),
            #[cfg(feature = "emulate")]
            Self::Emulated(language) => write!(f, "emulated {language:?}"),
            #[cfg(any(feature = "cuda", feature = "emulate"))]
            Self::GpuWgmma => write!(f, "{} with wgmma", name()),
            #[cfg(feature = "emulate")]
            Self::EmulatedWgmma => write!(f, "emulated Cuda with wgmma"),
        }
    }
}

/// What [`SEED_VARIABLE`] says. A value that is no number fails every test with random inputs.
fn seed_of_run() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| match std::env::var(SEED_VARIABLE) {
        Err(std::env::VarError::NotPresent) => 0,
        Ok(seed) => seed.parse().unwrap_or_else(|_| {
            panic!("{SEED_VARIABLE}: expected a number of 64 bits, found `{seed}`")
        }),
        Err(error) => panic!("{SEED_VARIABLE}: {error}"),
    })
}

/// Small reproducible generator (xorshift64*).
pub(crate) struct Random(u64);

impl Random {
    /// The numbers of a seed in a run.
    pub(crate) fn new(seed: u64) -> Self {
        Self::of_run(seed, seed_of_run())
    }

    fn of_run(seed: u64, run: u64) -> Self {
        // All bits of the run's number spread over those above a test's own seed, which are few.
        let run = (run ^ run >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        Self((seed ^ run ^ run >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    /// Below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.next() as usize % limit
    }

    /// In -1..1.
    pub(crate) fn number(&mut self) -> f32 {
        self.next() as f32 / 2_147_483_648.0 - 1.0
    }

    pub(crate) fn numbers(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.number()).collect()
    }
}

#[test]
fn runs_of_other_numbers_see_other_inputs_and_runs_without_one_the_same() {
    let numbers = |seed, run| Random::of_run(seed, run).numbers(8);
    for seed in [0_u64, 1, 5, 100_003] {
        let mut plain = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        assert_eq!(numbers(seed, 0), plain.numbers(8), "{seed}");
    }
    let all: Vec<_> = [0, 1, 2, 1 << 20, 1 << 40, u64::MAX].map(|run| numbers(5, run)).into();
    for (index, one) in all.iter().enumerate() {
        assert!(!all[index + 1..].contains(one), "{index}");
    }
}

/// A tensor of rows with the given elements.
pub(crate) fn tensor(values: &[f32], dim: usize) -> Tensor {
    Tensor::from_slice(values, (values.len() / dim.max(1), dim), &device()).unwrap()
}

/// The same one element behind the start of its memory: kernels cannot read it 16 bytes at a time.
pub(crate) fn displaced(values: &[f32], dim: usize) -> Tensor {
    let all: Vec<f32> = [f32::NAN].iter().chain(values).copied().collect();
    let behind = vector(&all).narrow(0, 1, values.len()).unwrap();
    behind.reshape((values.len() / dim.max(1), dim)).unwrap()
}

/// A tensor of one dimension.
pub(crate) fn vector(values: &[f32]) -> Tensor {
    Tensor::from_slice(values, values.len(), &device()).unwrap()
}

/// Rows of NaN: what an operator forgets to write shows.
pub(crate) fn poisoned(rows: usize, dim: usize) -> Tensor {
    tensor(&vec![f32::NAN; rows * dim], dim)
}

pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Compares the leading elements; what follows must still be poison. `magnitudes` are what an error
/// is measured against, element by element.
pub(crate) fn compare(
    case: &str,
    found: &[f32],
    expected: &[f32],
    magnitudes: &[f32],
    tolerance: f32,
) {
    let mut worst = (0.0, 0);
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs() / (magnitudes[index] + f32::MIN_POSITIVE);
        if error.is_nan() || error > worst.0 {
            worst = (error, index);
            if error.is_nan() {
                break;
            }
        }
    }
    let (error, index) = worst;
    assert!(
        error <= tolerance,
        "{case}: largest relative error {error:e} at {index}: found {}, expected {}",
        found[index],
        expected[index]
    );
    let untouched = found[expected.len()..].iter().all(|value| value.is_nan());
    assert!(untouched, "{case}: wrote beyond the live rows");
}
