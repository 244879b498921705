//! Launches of fixtures.

use std::ffi::c_void;

use sconce_gpu_emulator::{Error, Grid, Language, launch};

fn pointer<T>(value: &T) -> *const c_void {
    std::ptr::from_ref(value).cast()
}

/// Runs a fixture on `out` and operands that are addresses, and numbers.
pub(crate) fn run<T: Copy>(
    language: Language,
    name: &str,
    grid: (u32, u32, usize),
    out: &mut [T],
    inputs: &[*const c_void],
    numbers: &[u32],
) -> Result<(), Error> {
    let (blocks, threads, shared) = grid;
    let grid = Grid { blocks: [blocks, 1, 1], threads, shared };
    let out = out.as_mut_ptr();
    let mut arguments = vec![pointer(&out)];
    arguments.extend(inputs.iter().map(pointer));
    arguments.extend(numbers.iter().map(pointer));
    // SAFETY: fixtures stay inside of what the tests give them.
    unsafe { launch(language, name, grid, &arguments) }
}

/// What the emulator says of a launch that fails.
pub(crate) fn failure(result: Result<(), Error>) -> String {
    match result.unwrap_err() {
        Error::Kernel { what, .. } | Error::Launch { what, .. } => what,
        error @ Error::NoKernel { .. } => error.to_string(),
    }
}
