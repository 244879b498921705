//! Says which kernels a run of tests has not launched, of which `SCONCE_LAUNCHED` named the file, and
//! fails if there is one. `kernels/emulated_check.sh` and the gate ask it of the parity table.

#![expect(clippy::print_stderr, reason = "a command")]

use std::process::ExitCode;

use sconce_gpu_emulator::never_launched;

fn main() -> ExitCode {
    let path = std::env::args().nth(1).unwrap_or_default();
    let asked = std::fs::read_to_string(&path).map_err(|error| error.to_string());
    match asked.and_then(|file| never_launched(&file)) {
        Ok(never) if never.is_empty() => return ExitCode::SUCCESS,
        Ok(never) => eprintln!("kernels that no row launches: {}", never.join(", ")),
        Err(error) => eprintln!("the file of kernels that were launched, `{path}`: {error}"),
    }
    ExitCode::FAILURE
}
