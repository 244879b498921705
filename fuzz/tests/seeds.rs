//! Every target on its seeds and on what becomes of them when a few bytes change, so that no target
//! rots while nobody fuzzes. With `SCONCE_FUZZ_CHANGES=N` each seed is changed N times, in another way
//! with every `SCONCE_FUZZ_SEED`: fuzzing that does not see what an input reaches. An input that breaks a
//! promise is left in `fuzz/artifacts`.

use sconce_fuzz::{TARGETS, Target};

/// Changed inputs of each seed, unless more are asked for.
const CHANGES: u64 = 4;

fn number(variable: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(variable) else { return default };
    text.parse().unwrap_or_else(|_| panic!("{variable}: expected a number, found `{text}`"))
}

/// SplitMix64 (Steele, Lea, Flood 2014).
fn draw(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn changed(seed: &[u8], state: &mut u64) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..3 {
        let (what, value) = (draw(state), draw(state));
        let index = draw(state) as usize % (bytes.len() + 1);
        match what % 4 {
            0 => bytes.insert(index, value as u8),
            1 => bytes.truncate(index),
            _ if index < bytes.len() => bytes[index] ^= value as u8 | 1,
            _ => bytes.push(value as u8),
        }
    }
    bytes
}

/// Feeds `input`, and keeps it if it breaks a promise.
#[expect(clippy::print_stderr, reason = "where it is kept belongs beside the panic's message")]
fn run(target: &Target, input: &[u8]) {
    let Err(broken) = std::panic::catch_unwind(|| (target.run)(input)) else { return };
    let folder = format!("{}/artifacts/{}", env!("CARGO_MANIFEST_DIR"), target.name);
    let path = format!("{folder}/{:x}", fnv(input));
    std::fs::create_dir_all(&folder).expect("a folder for what is found");
    std::fs::write(&path, input).expect("room for what is found");
    eprintln!("broken by {path}");
    std::panic::resume_unwind(broken);
}

/// A name for an input: FNV-1a.
fn fnv(input: &[u8]) -> u64 {
    input.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn feed(name: &str) {
    let target = sconce_fuzz::target(name).expect("a target of that name");
    let seeds = target.seeds();
    assert!(!seeds.is_empty(), "{name} has seeds");
    let changes = number("SCONCE_FUZZ_CHANGES", CHANGES);
    let mut state = number("SCONCE_FUZZ_SEED", 1);
    for seed in seeds {
        run(target, &seed);
        let mut input = seed.clone();
        for _ in 0..changes {
            // Some changes on top of one another, and back to the seed.
            let base = if draw(&mut state).is_multiple_of(8) { &seed } else { &input };
            input = changed(base, &mut state);
            run(target, &input);
        }
    }
}

macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            feed(stringify!($name));
        })*

        #[test]
        fn every_target_is_here() {
            let mut all: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            let mut here = vec![$(stringify!($name)),*];
            all.sort_unstable();
            here.sort_unstable();
            assert_eq!(all, here);
        }
    };
}

targets!(
    gguf_header,
    safetensors_header,
    checkpoint_gguf,
    checkpoint_directory,
    requests,
    vllm_engine,
    kv_events,
    wire,
    snapshot_import,
    snapshot_file,
    disk_record,
    disk_directory,
    tokenizer_json,
    tokenizer_gguf,
    chat_template,
    detokenizer,
    stop_matcher,
    grpc_timeout,
    trace_context,
    tokens_file,
    config_toml,
);
