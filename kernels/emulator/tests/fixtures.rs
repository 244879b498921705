//! Kernels that are right give what they should; mistakes are found.

#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use sconce_gpu_emulator::{Language, names, never_launched};

use support::{failure, run};

fn counted(count: usize) -> Vec<f32> {
    (0..count).map(|value| value as f32).collect()
}

#[test]
fn blocks_reverse_what_is_theirs_in_both_languages() {
    let x = counted(3 * 96);
    for language in [Language::Cuda, Language::Metal] {
        let mut out = vec![f32::NAN; x.len()];
        let inputs = [x.as_ptr().cast()];
        run(language, "fixture_reverse", (3, 96, 0), &mut out, &inputs, &[]).unwrap();
        let expected = x.chunks(96).flat_map(|block| block.iter().rev().copied());
        assert_eq!(out, expected.collect::<Vec<_>>());
    }
}

#[test]
fn a_missing_barrier_shows_as_numbers_that_are_none() {
    let (x, mut out) = (counted(128), vec![0.0; 128]);
    let inputs = [x.as_ptr().cast()];
    run(Language::Cuda, "fixture_no_barrier", (1, 128, 0), &mut out, &inputs, &[]).unwrap();
    assert!(out.iter().any(|value: &f32| value.is_nan()), "every order gave the right result");
}

#[test]
fn shared_memory_is_no_number_before_it_is_written() {
    let mut out = [0.0; 32];
    let grid = (1, 32, 128);
    run(Language::Cuda, "fixture_unwritten_shared", grid, &mut out, &[], &[]).unwrap();
    assert!(out.iter().all(|value: &f32| value.is_nan()));
}

/// With the sanitizer, the process ends: `sanitized.rs`.
#[cfg(not(feature = "asan"))]
#[test]
fn writes_next_to_shared_memory_are_an_error() {
    let mut out = [0.0_f32; 32];
    for language in [Language::Cuda, Language::Metal] {
        run(language, "fixture_past_shared", (2, 32, 0), &mut out, &[], &[0]).unwrap();
        let past = run(language, "fixture_past_shared", (2, 32, 0), &mut out, &[], &[1]);
        assert_eq!(failure(past), "it wrote outside of the 128 bytes of held");
    }
    // One that ends within a word of 16 bytes.
    let mut dynamic = |past| {
        run(Language::Cuda, "fixture_past_dynamic_shared", (1, 32, 132), &mut out, &[], &[past])
    };
    dynamic(1).unwrap();
    let past = failure(dynamic(2));
    assert_eq!(past, "it wrote outside of the 132 bytes of dynamic shared memory");
}

#[test]
fn threads_that_do_not_meet_are_an_error() {
    let cuda =
        |name: &str| failure(run(Language::Cuda, name, (1, 32, 0), &mut [0.0_f32; 32], &[], &[]));
    let divergent = cuda("fixture_divergent_barrier");
    assert!(divergent.contains("in __syncwarp for lanes 0xffffffff"), "{divergent}");
    let absent = cuda("fixture_absent_lane");
    assert!(absent.contains("waits in __shfl_sync"), "{absent}");
    let foreign = cuda("fixture_foreign_mask");
    assert!(foreign.contains("is not in the mask 0x00000001"), "{foreign}");
    let mut out = [0.0_f32; 64];
    let returned =
        failure(run(Language::Metal, "fixture_returned", (1, 64, 0), &mut out, &[], &[]));
    assert_eq!(returned, "63 threads wait in a barrier, 1 have returned");
    // The next launch finds nothing of it.
    let mut out = [0; 64];
    run(Language::Cuda, "fixture_halves", (1, 64, 0), &mut out, &[], &[]).unwrap();
    let expected: Vec<i32> = (0..64).map(|i| if i % 32 < 16 { 120 } else { 376 }).collect();
    assert_eq!(out, expected[..]);
}

#[test]
fn what_a_gpu_would_not_start_is_refused() {
    let mut out = [0.0_f32; 128];
    let mut cuda = |name: &str, grid, numbers: &[u32]| {
        failure(run(Language::Cuda, name, grid, &mut out, &[], numbers))
    };
    assert!(cuda("fixture_halves", (1, 1025, 0), &[]).contains("at most 1024 threads"));
    assert!(cuda("fixture_halves", (0, 32, 0), &[]).contains("none of it zero"));
    assert!(cuda("fixture_halves", (1, 32, 256 << 10), &[]).contains("at most 232448"));
    assert_eq!(cuda("fixture_halves", (1, 32, 0), &[1]), "2 arguments, it takes 1");
    assert!(cuda("fixture_reverse", (1, 129, 0), &[]).contains("at most 128 threads"));
    assert!(cuda("fixture_too_much_shared", (1, 32, 0), &[]).starts_with("65536 bytes of shared"));
    assert_eq!(cuda("nothing", (1, 32, 0), &[]), "no Cuda kernel is called nothing");
    let partial = run(Language::Metal, "fixture_lanes", (1, 48, 0), &mut out, &[], &[1]);
    assert!(failure(partial).contains("no whole simdgroups"));
}

#[test]
fn tensor_cores_multiply() {
    let half = |value: i32| (value as f32).to_bits();
    // Small integers in binary16: exponents and fractions by hand.
    let f16 = |value: i32| -> u16 {
        let bits = half(value);
        if value == 0 {
            return 0;
        }
        let exponent = (bits >> 23 & 0xff) as u16 - 112;
        (bits >> 16 & 0x8000) as u16 | exponent << 10 | (bits >> 13 & 0x3ff) as u16
    };
    let a: Vec<i32> = (0..256).map(|i| i * 7 % 23 - 11).collect();
    let b: Vec<i32> = (0..128).map(|i| i * 5 % 19 - 9).collect();
    let (a16, b16): (Vec<u16>, Vec<u16>) =
        (a.iter().map(|v| f16(*v)).collect(), b.iter().map(|v| f16(*v)).collect());
    let mut out = vec![f32::NAN; 128];
    let inputs = [a16.as_ptr().cast(), b16.as_ptr().cast()];
    run(Language::Cuda, "fixture_mma", (1, 32, 0), &mut out, &inputs, &[]).unwrap();
    for row in 0..16 {
        for column in 0..8 {
            let product: i32 = (0..16).map(|k| a[row * 16 + k] * b[column * 16 + k]).sum();
            assert_eq!(out[row * 8 + column], product as f32, "{row} {column}");
        }
    }
}

#[test]
fn matrices_of_simdgroups_multiply() {
    let (a, b) = (counted(64), counted(64));
    let mut out = vec![f32::NAN; 64];
    let inputs = [a.as_ptr().cast(), b.as_ptr().cast()];
    run(Language::Metal, "fixture_matrix", (1, 32, 256), &mut out, &inputs, &[]).unwrap();
    for row in 0..8 {
        for column in 0..8 {
            let product: f32 = (0..8).map(|k| a[row * 8 + k] * b[column * 8 + k]).sum();
            assert_eq!(out[row * 8 + column], product + a[row * 8 + column], "{row} {column}");
        }
    }
}

#[test]
fn active_threads_of_a_simdgroup_are_those_that_come() {
    let mut out = [0_u32; 64];
    run(Language::Metal, "fixture_lanes", (2, 32, 0), &mut out, &[], &[3]).unwrap();
    for (index, value) in out.iter().enumerate() {
        let lane = index % 32;
        let expected = if lane < 16 { 120 + 11 + (lane ^ 1) } else { 0 };
        assert_eq!(*value as usize, expected, "{index}");
    }
    // Where branches meet again cannot be seen from here, so operations in them are refused.
    let branches = run(Language::Metal, "fixture_branches", (1, 32, 0), &mut out, &[], &[]);
    assert_eq!(failure(branches), "threads of a simdgroup wait in different operations");
}

#[test]
fn kernels_of_the_operators_are_there() {
    for language in [Language::Cuda, Language::Metal] {
        let names = names(language);
        assert!(names.iter().any(|name| name == "rms_norm"), "{language:?}: {names:?}");
    }
}

#[test]
fn kernels_that_were_not_launched_are_told() {
    let some = "Cuda rms_norm\nMetal add\nCuda rms_norm\n";
    let never = never_launched(some).unwrap();
    let has = |line: &str| never.iter().any(|found| found == line);
    assert!(has("Metal rms_norm") && has("Cuda add"), "{never:?}");
    assert!(!has("Cuda rms_norm") && !has("Metal add"), "{never:?}");
    assert!(!never.iter().any(|line| line.contains("fixture")), "{never:?}");
    assert_eq!(never.len() + 2, never_launched("").unwrap().len());
    assert_eq!(never_launched(&never.join("\n")).unwrap(), ["Cuda rms_norm", "Metal add"]);
    let odd = never_launched("Cuda rms_norm\nCuda rms_nor\n").unwrap_err();
    assert!(odd.contains("found `Cuda rms_nor`"), "{odd}");
}
