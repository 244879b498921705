//! Operators measured one by one, and what the machine can do at most, to hold them against.
//!
//! Here so that the command line can measure them without knowing the kernels. Models are not known
//! here, and nothing is printed.

pub use sconce_kernels::{Isa, PeakOptions, Peaks, Pool};
