//! Any bytes as a safetensors file: parsed or refused, and what was parsed lies inside the file.
//!
//! `cargo +nightly fuzz run safetensors_header -- -max_len=65536 -rss_limit_mb=512`

#![no_main]

use libfuzzer_sys::fuzz_target;
use sconce_models::checkpoint::safetensors;

fuzz_target!(|bytes: &[u8]| {
    let Ok(entries) = safetensors::parse(bytes, "fuzz.safetensors") else { return };
    for tensor in entries {
        assert!(tensor.range.end <= bytes.len(), "{} lies inside the file", tensor.name);
        let elements = tensor.shape.iter().product();
        assert_eq!(tensor.dtype.bytes(elements), Some(tensor.range.len()), "{}", tensor.name);
    }
});
