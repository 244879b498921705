//! Any bytes as a GGUF file: parsed or refused, and what was parsed lies inside the file.
//!
//! `cargo +nightly fuzz run gguf_header -- -max_len=65536 -rss_limit_mb=512`

#![no_main]

use libfuzzer_sys::fuzz_target;
use sconce_models::checkpoint::gguf::Gguf;

fuzz_target!(|bytes: &[u8]| {
    let Ok(gguf) = Gguf::parse(bytes, "fuzz.gguf") else { return };
    for tensor in gguf.tensors() {
        assert!(tensor.range.end <= bytes.len(), "{} lies inside the file", tensor.name);
        let elements = tensor.shape.iter().product();
        assert_eq!(tensor.dtype.bytes(elements), Some(tensor.range.len()), "{}", tensor.name);
    }
});
