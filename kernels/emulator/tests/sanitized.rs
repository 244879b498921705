//! What only the sanitizers see. They end the process, so each mistake is made by a child.

#![cfg(feature = "asan")]
#![expect(clippy::unwrap_used, reason = "tests")]

use std::ffi::c_void;
use std::process::Command;

use sconce_gpu_emulator::{Grid, Language, launch};

/// Tells the child which mistake to make: language, kernel, how far from what is right.
const MISTAKE: &str = "SCONCE_MISTAKE";

fn pointer<T>(value: &T) -> *const c_void {
    std::ptr::from_ref(value).cast()
}

/// What a child says before it ends, which is nothing where there is no mistake.
fn report(language: &str, kernel: &str, past: u32) -> String {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_mistake", "--ignored", "--nocapture"])
        .env(MISTAKE, format!("{language} {kernel} {past}"))
        .output()
        .unwrap();
    let report = String::from_utf8_lossy(&child.stderr).into_owned();
    assert_eq!(child.status.success(), report.is_empty(), "{kernel} {past}: {report}");
    report
}

#[test]
#[ignore = "made by the child of the other tests"]
fn a_mistake() {
    let mistake = std::env::var(MISTAKE).unwrap();
    let [language, kernel, past] = *mistake.split(' ').collect::<Vec<_>>() else { panic!() };
    let language = if language == "cuda" { Language::Cuda } else { Language::Metal };
    let past: u32 = past.parse().unwrap();
    let (mut out, x) = (vec![0.0_f32; 32], vec![1.0_f32; 32]);
    let (out, x) = (out.as_mut_ptr(), x.as_ptr());
    let takes_x = kernel.ends_with("_tensor") || kernel.ends_with("_vector");
    let mut arguments = vec![pointer(&out)];
    arguments.extend(takes_x.then_some(pointer(&x)));
    arguments.push(pointer(&past));
    let grid = Grid { blocks: [1, 1, 1], threads: 32, shared: 132 };
    // SAFETY: none: whether the sanitizers stop it is what is asked.
    unsafe { launch(language, kernel, grid, &arguments) }.unwrap();
}

#[test]
fn an_index_past_the_end_of_shared_memory_is_stopped() {
    let of_array = report("cuda", "fixture_past_shared", 1);
    assert!(of_array.contains("index 32 out of bounds for type 'float [32]'"), "{of_array}");
    let of_pointer = report("metal", "fixture_past_shared", 1);
    assert!(of_pointer.contains("AddressSanitizer: use-after-poison"), "{of_pointer}");
    // One that ends within a word of 16 bytes.
    let dynamic = report("cuda", "fixture_past_dynamic_shared", 2);
    assert!(dynamic.contains("AddressSanitizer: use-after-poison"), "{dynamic}");
    assert_eq!(report("cuda", "fixture_past_dynamic_shared", 1), "");
    for language in ["cuda", "metal"] {
        assert_eq!(report(language, "fixture_past_shared", 0), "");
    }
}

#[test]
fn reads_and_writes_past_the_end_of_a_tensor_are_stopped() {
    let read = report("cuda", "fixture_past_tensor", 1);
    assert!(read.contains("AddressSanitizer: heap-buffer-overflow"), "{read}");
    assert!(read.contains("READ of size 4") && read.contains("in fixture_past_tensor"), "{read}");
    let write = report("metal", "fixture_past_tensor", 1);
    assert!(write.contains("AddressSanitizer: heap-buffer-overflow"), "{write}");
    assert!(write.contains("WRITE of size 4"), "{write}");
    for language in ["cuda", "metal"] {
        assert_eq!(report(language, "fixture_past_tensor", 0), "");
    }
}

#[test]
fn what_a_gpu_traps_on_or_leaves_undefined_is_stopped() {
    let misaligned = report("cuda", "fixture_split_vector", 1);
    assert!(misaligned.contains("misaligned address"), "{misaligned}");
    assert!(misaligned.contains("which requires 16 byte alignment"), "{misaligned}");
    assert_eq!(report("cuda", "fixture_split_vector", 4), "");
    let shift = report("cuda", "fixture_shift", 32);
    assert!(shift.contains("shift exponent 32 is too large for 32-bit type"), "{shift}");
    assert_eq!(report("cuda", "fixture_shift", 31), "");
}
