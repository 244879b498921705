//! Operators measured one by one, and what the machine can do at most, to hold them against.
//!
//! Here so that the command line can measure them without knowing the kernels. Models are not known
//! here, and nothing is printed.

mod error;
mod formats;
mod operators;
mod options;
mod runner;
mod sizes;

use std::ops::ControlFlow;

pub use sconce_kernels::{Isa, PeakOptions, Peaks, Pool};

pub use self::error::Error;
pub use self::formats::{Activations, WeightFormat};
pub use self::operators::Operator;
pub use self::options::Options;
pub use self::runner::{Bound, Labels, Measurement, Work};
pub use self::sizes::Sizes;

use self::runner::Runner;

/// Measures the operators that `options` wants, with the level and the pool that operators called
/// from this thread use, and hands each measurement to `heard` as soon as it is made, until that
/// breaks off.
///
/// # Errors
/// Options that no operator takes or that leave nothing to measure, sizes that do not go together,
/// more memory than a measurement may take, [`Error::Stopped`] if `heard` broke off.
pub fn measure(
    options: &Options,
    heard: &mut dyn FnMut(Measurement) -> ControlFlow<()>,
) -> Result<(), Error> {
    options.check()?;
    let mut runner = Runner::new(options, heard);
    Operator::ALL.iter().try_for_each(|operator| operator.measure(&mut runner))?;
    if runner.measured() == 0 { Err(Error::Nothing) } else { Ok(()) }
}
