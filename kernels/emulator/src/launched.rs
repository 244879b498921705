//! Which kernels have run to their end, in all processes of a run of tests: so that one which no test
//! launches is found.

use std::collections::HashSet;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::{Language, kernels};

/// The environment variable that names a file, which gets a line for each kernel that a process runs:
/// its language and its name. Without it nothing is written.
pub const LAUNCHED_VARIABLE: &str = "SCONCE_LAUNCHED";
/// What the names of the emulator's own kernels begin with, which are for its tests alone.
const FIXTURES: &str = "fixture_";

/// Kernels of the operators, in either language, that a file which [`LAUNCHED_VARIABLE`] named does
/// not have, as it would have them.
///
/// # Errors
/// A line that is no kernel of an operator: the file is of another build, or of another run.
pub fn never_launched(file: &str) -> Result<Vec<String>, String> {
    let all: Vec<String> = [Language::Cuda, Language::Metal]
        .into_iter()
        .flat_map(|language| kernels::all(language).iter().map(move |kernel| (language, kernel)))
        .filter(|(_, kernel)| !kernel.name().starts_with(FIXTURES))
        .map(|(language, kernel)| line(language, kernel.name()))
        .collect();
    let known: HashSet<&str> = all.iter().map(String::as_str).collect();
    let launched: HashSet<&str> = file.lines().collect();
    if let Some(odd) = launched.difference(&known).next() {
        return Err(format!("expected lines as `{}`, found `{odd}`", all[0]));
    }
    Ok(all.iter().filter(|line| !launched.contains(line.as_str())).cloned().collect())
}

/// A kernel in the file.
fn line(language: Language, name: &str) -> String {
    format!("{language:?} {name}")
}

/// Notes that a kernel has run to its end.
pub(crate) fn note(language: Language, name: &'static str) -> io::Result<()> {
    static NOTED: Mutex<Option<HashSet<(Language, &str)>>> = Mutex::new(None);
    let Some(file) = file() else { return Ok(()) };
    let mut noted = NOTED.lock().unwrap_or_else(PoisonError::into_inner);
    if !noted.get_or_insert_default().insert((language, name)) {
        return Ok(());
    }
    // A whole line at once: other processes may append to the file, too.
    let mut file = File::options().create(true).append(true).open(file)?;
    file.write_all((line(language, name) + "\n").as_bytes())
}

/// The file, if there is to be one.
fn file() -> Option<&'static OsStr> {
    static FILE: OnceLock<Option<OsString>> = OnceLock::new();
    FILE.get_or_init(|| env::var_os(LAUNCHED_VARIABLE)).as_deref()
}
