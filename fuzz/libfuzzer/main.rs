//! The targets under libFuzzer; `fuzz/run.sh` builds and runs it. Arguments are libFuzzer's.
#![no_main]

use std::panic::{catch_unwind, set_hook};
use std::path::Path;
use std::sync::{LazyLock, Mutex, PoisonError};

use libfuzzer_sys::fuzz_target;
use sconce_fuzz::{TARGETS, Target};

/// Names the target.
const TARGET_VARIABLE: &str = "SCONCE_FUZZ_TARGET";
/// Names a folder where the target's seeds are written before libFuzzer reads it.
const SEEDS_VARIABLE: &str = "SCONCE_FUZZ_SEEDS";

/// Most panics that are told of one input.
const PANICS_MAX: usize = 16;

static TARGET: LazyLock<&'static Target> = LazyLock::new(|| {
    let name = std::env::var(TARGET_VARIABLE).unwrap_or_default();
    let names = || TARGETS.iter().map(|target| target.name).collect::<Vec<_>>().join(", ");
    sconce_fuzz::target(&name)
        .unwrap_or_else(|| panic!("{TARGET_VARIABLE}: expected one of {}, found `{name}`", names()))
});

/// What panicked during this input, in any thread. It is told once the input has broken a promise:
/// that a library panics may be expected, and caught by what calls it.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

fuzz_target!(
    init: {
        write_seeds();
        // In place of the harness's own hook, for which every panic is the end.
        set_hook(Box::new(|panic| {
            let mut panics = PANICS.lock().unwrap_or_else(PoisonError::into_inner);
            if panics.len() < PANICS_MAX {
                panics.push(panic.to_string());
            }
        }));
    },
    |bytes| run(bytes)
);

fn run(bytes: &[u8]) {
    if catch_unwind(|| (TARGET.run)(bytes)).is_ok() {
        return PANICS.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
    #[expect(clippy::print_stderr, reason = "what a fuzzer found is told there")]
    for panic in PANICS.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        eprintln!("{panic}");
    }
    // libFuzzer hears of it and keeps the input.
    std::process::abort();
}

fn write_seeds() {
    let Ok(folder) = std::env::var(SEEDS_VARIABLE) else { return };
    for (index, seed) in TARGET.seeds().iter().enumerate() {
        let path = Path::new(&folder).join(format!("seed-{index:04}"));
        std::fs::write(&path, seed).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}
