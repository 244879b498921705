//! Operators and a model of 80 billion random parameters on a GPU, each beside what bounds it, measured
//! in turn in the same run. `kernels/gpu_check.sh` runs it; `docs/PERFORMANCE.md` says what it means.
//!
//!     gpu_bars --device cuda [--seconds N] [--peer PYTHON SCRIPT] [--table FILE] [PART ..]
//!     gpu_bars --device cuda --probe      whether there is such a device

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what was measured is its output")]
#![cfg_attr(test, allow(dead_code, unused_imports, reason = "`tests/gpu_bars.rs` runs the tests"))]

mod measure;

use std::fs::File;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use measure::{HEADER, Outcome, Request, Sizes, run};
use sconce_models::DeviceChoice;

fn main() -> ExitCode {
    match measured() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("gpu_bars: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Measures what the arguments ask for; returns whether every bar was met.
fn measured() -> Outcome<bool> {
    let mut request = Request::new(DeviceChoice::Cpu, Sizes::full());
    let (mut device, mut table, mut probe) = (None, None, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--device" => device = Some(value()?.parse::<DeviceChoice>()?),
            "--seconds" => request.time = Duration::from_secs(value()?.parse()?),
            "--peer" => request.peer = Some([value()?, value()?]),
            "--table" => table = Some(value()?),
            "--probe" => probe = true,
            // What cargo passes to benchmarks.
            "--bench" => (),
            part if !part.starts_with('-') => request.parts.push(part.to_owned()),
            other => return Err(format!("unknown argument {other}").into()),
        }
    }
    // Sizes are a GPU's: on a processor each row would take minutes.
    let device = device.ok_or("--device names a GPU, as `cuda` or `metal`")?;
    if matches!(device, DeviceChoice::Cpu | DeviceChoice::Auto) {
        return Err(format!("the bars are those of GPUs, found --device {device}").into());
    }
    request.device = device.resolve()?;
    if probe {
        return Ok(request.device.open().map(|_| true)?);
    }
    // Row by row, so that a run that is cut short leaves what it had.
    let mut table = table.map(File::create).transpose()?;
    if let Some(file) = &mut table {
        file.write_all(HEADER.as_bytes())?;
    }
    let mut written = Ok(());
    let found = run(&request, &mut |row| {
        println!("{row}");
        if let (Some(file), Ok(())) = (&mut table, &written) {
            written = writeln!(file, "{}", row.markdown());
        }
    })?;
    written?;
    println!("{}", found.summary());
    Ok(found.is_met())
}
