//! The benchmark of GPUs, `benches/gpu_bars`, at tiny sizes: that every part runs and tells what it
//! measured, on the processor and emulated. No time is looked at.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../benches/gpu_bars/measure/mod.rs"]
mod measure;

use measure::{Request, Row, Sizes, Table, run};
use sconce_models::DeviceChoice;

fn measured() -> Table {
    run(&Request::new(DeviceChoice::Cpu, Sizes::tiny()), &mut |_| ()).unwrap()
}

/// Every part has its rows, and none failed.
fn expect_complete(table: &Table) {
    let text = table.markdown();
    assert!(table.rows().iter().all(|row| !row.failed), "{text}");
    for work in [
        "copy of",
        "gated delta decode, batch 1",
        "gated delta decode, batch 3",
        "gated delta prefill, 70 tokens",
        "int4 GEMV, 128 x 64, batch 8",
        "MoE decode, 2 of 6 x 128, batch 1",
        "MoE prefill, 9 tokens",
        "decode at 5",
        "prefill of 70",
        "page out and in, 300 tokens",
    ] {
        assert!(table.rows().iter().any(|row| row.work.contains(work)), "{work}: {text}");
    }
    // What needs a peer has none here.
    for work in ["MoE prefill", "gated delta prefill"] {
        let unjudged = |row: &Row| row.work.contains(work) && matches!(row.bar, Some((_, None)));
        assert!(table.rows().iter().any(unjudged), "{work}: {text}");
    }
}

#[test]
fn every_part_runs_on_the_processor() {
    expect_complete(&measured());
}

#[cfg(feature = "emulate")]
#[test]
fn every_part_runs_emulated() {
    use sconce_kernels::gpu::{Language, emulate};
    for language in [Language::Cuda, Language::Metal] {
        expect_complete(&emulate(language, measured));
    }
}

#[test]
fn parts_without_time_fail_and_unknown_ones_are_refused() {
    let mut request = Request::new(DeviceChoice::Cpu, Sizes::tiny());
    request.time = std::time::Duration::ZERO;
    request.parts = vec!["gemv".to_owned()];
    let table = run(&request, &mut |_| ()).unwrap();
    assert!(!table.is_met() && table.rows()[1].peer == "no time left", "{}", table.markdown());
    request.parts = vec!["gemm".to_owned()];
    let error = run(&request, &mut |_| ()).err().unwrap().to_string();
    assert!(error.contains("found gemm"), "{error}");
}
