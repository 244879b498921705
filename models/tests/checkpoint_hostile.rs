//! Damaged headers by the ten thousand: no panic, and no more memory than the file justifies.
//!
//! The mutations are seeded, so that a failure repeats; the fuzz targets in `fuzz/` go further.
//! One test function, since the allocator counts for the whole process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/gguf.rs"]
mod gguf;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use sconce_models::Checkpoint;
use sconce_models::checkpoint::{gguf::Gguf, safetensors};

/// Bytes that parsing may hold at once for each byte of the file, and besides.
const PEAK_PER_BYTE: usize = 64;
const PEAK_BASE: usize = 64 << 10;

const MUTATIONS: usize = 20_000;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, with the bytes it handed out counted.
struct Counting;

// SAFETY: every call goes to the system allocator with the same arguments; counting touches no
// memory of the caller.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`, which is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `pointer` came from `alloc` above, hence from the system, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `parse` on `bytes` and checks the most memory it held.
fn bounded<T>(bytes: &[u8], parse: impl FnOnce(&[u8]) -> T) -> T {
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let result = parse(bytes);
    let peak = PEAK.load(Ordering::Relaxed).saturating_sub(before);
    let max = PEAK_BASE + PEAK_PER_BYTE * bytes.len();
    assert!(peak <= max, "{peak} bytes held for a file of {}, at most {max}", bytes.len());
    result
}

/// Marsaglia's xorshift with 64 bits.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// One to four damages: a byte, a whole integer of an interesting size, a cut, a doubled piece.
fn mutate(original: &[u8], random: &mut Random) -> Vec<u8> {
    const SIZES: [u64; 8] = [0, 1, 0x7f, 0xffff, 0x8000_0000, 1 << 40, i64::MAX as u64, u64::MAX];
    let mut bytes = original.to_vec();
    for _ in 0..1 + random.below(4) {
        if bytes.len() < 16 {
            break;
        }
        let at = random.below(bytes.len() - 8);
        match random.below(8) {
            0..3 => bytes[at] = random.next() as u8,
            3 => bytes[at] ^= 1 << random.below(8),
            4 => bytes[at..at + 8].copy_from_slice(&SIZES[random.below(8)].to_le_bytes()),
            5 => bytes[at..at + 4].copy_from_slice(&SIZES[random.below(8)].to_le_bytes()[..4]),
            6 => bytes.truncate(at),
            _ => {
                let piece = bytes[at..bytes.len().min(at + 64)].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, piece);
            }
        }
    }
    bytes
}

fn safetensors_file() -> Vec<u8> {
    let header = r#"{"__metadata__":{"format":"pt"},"model.norm.weight":{"dtype":"F32","shape":[4],
        "data_offsets":[0,16]},"lm_head.weight":{"dtype":"BF16","shape":[2,4],
        "data_offsets":[16,32]},"b":{"dtype":"F16","shape":[1],"data_offsets":[32,34]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + 34, 1);
    bytes
}

/// Parses every truncation and many mutations of `original`; how many were refused.
fn torment(original: &[u8], seed: u64, parse: impl Fn(&[u8]) -> bool) -> usize {
    assert!(bounded(original, &parse), "the undamaged file is read");
    for len in 0..original.len() {
        bounded(&original[..len], &parse);
    }
    let mut random = Random(seed);
    let refused = (0..MUTATIONS).filter(|_| !bounded(&mutate(original, &mut random), &parse));
    refused.count()
}

/// Opens damaged files as a whole, reads what they say and every value of every tensor.
fn torment_checkpoints(original: &[u8], seed: u64) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    let mut random = Random(seed);
    for _ in 0..MUTATIONS / 10 {
        std::fs::write(&path, mutate(original, &mut random)).unwrap();
        let Ok(checkpoint) = Checkpoint::open(&path) else { continue };
        let _ = checkpoint.describe();
        let _ = checkpoint.config().rope(None);
        let _ = checkpoint.tokenizer_source();
        let _ = checkpoint.special_tokens();
        let _ = checkpoint.chat_templates();
        checkpoint.fingerprint();
        for tensor in checkpoint.tensors() {
            if let Ok(values) = tensor.to_f32() {
                assert_eq!(values.len(), tensor.elements());
            }
        }
    }
}

#[test]
fn damaged_headers_neither_panic_nor_take_memory() {
    let gguf = gguf::llama().tensor("blk.0.ffn_up.weight", &[2, 32], 3, &[7; 40]).bytes();
    let refused = torment(&gguf, 1, |bytes| Gguf::parse(bytes, "x.gguf").is_ok());
    assert!(refused > MUTATIONS / 4, "mutations hurt: {refused} refused");
    let refused = torment(&safetensors_file(), 2, |bytes| safetensors::parse(bytes, "x").is_ok());
    assert!(refused > MUTATIONS / 4, "mutations hurt: {refused} refused");
    torment_checkpoints(&gguf, 3);
}
