//! One libFuzzer program for all targets, since each would link the whole server: the variable
//! `SCONCE_FUZZ_TARGET` says which. `fuzz/run.sh` builds it and runs them in turn.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<&sconce_fuzz::Target> = LazyLock::new(|| {
    let name = std::env::var("SCONCE_FUZZ_TARGET").unwrap_or_default();
    sconce_fuzz::target(&name).unwrap_or_else(|| {
        let names: Vec<&str> = sconce_fuzz::TARGETS.iter().map(|target| target.name).collect();
        panic!("SCONCE_FUZZ_TARGET: expected one of {}, found `{name}`", names.join(", "))
    })
});

fuzz_target!(|bytes: &[u8]| (TARGET.run)(bytes));
