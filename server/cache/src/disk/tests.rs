//! Tests of the disk tier, over a real directory and over one that fails on demand.
//! Miri has no file system; what needs none runs in it.

#[cfg(not(miri))]
mod faults;
#[cfg(not(miri))]
mod faulty;
#[cfg(not(miri))]
mod kill;
#[cfg(not(miri))]
mod model;
#[cfg(all(target_os = "linux", not(miri)))]
mod mounts;
mod records;
mod support;
#[cfg(not(miri))]
mod tier;
#[cfg(not(miri))]
mod waiting;
