//! Identity of a checkpoint: a number that tells two sets of weights apart.
//!
//! It names cached state, on disk too, so it may depend neither on where the files lie nor on the
//! run of the program, and must change with anything that changes what state a model produces.

use serde_json::Value;

use super::Checkpoint;

/// Bytes taken of a tensor at each of its sampled places.
const SAMPLE_BYTES: usize = 4096;

/// Keys of `config.json` that say who wrote it, and change nothing.
const PROVENANCE: &[&str] = &["_name_or_path", "architectures", "transformers_version"];

impl Checkpoint {
    /// A hash of the configuration, of name, type and shape of every tensor, and of the first, the
    /// middle and the last 4096 bytes of its data.
    ///
    /// Reading whole files would take longer than loading them; what fine-tuning or quantizing
    /// changes, it changes nearly everywhere. An edit of single weights between the samples goes
    /// unnoticed. It is no defence against somebody who wants a collision.
    pub fn fingerprint(&self) -> u64 {
        self.hash().0
    }

    /// As [`fingerprint`](Self::fingerprint), for weights that are used in a certain way, which
    /// `uses` describe.
    pub fn fingerprint_as(&self, uses: &[&str]) -> u64 {
        let mut hash = self.hash();
        uses.iter().for_each(|used| hash.field(used.as_bytes()));
        hash.0
    }

    fn hash(&self) -> Fnv {
        let mut hash = Fnv::new();
        let mut config: Vec<(&String, &Value)> = self.config.values().iter().collect();
        config.retain(|(key, _)| !PROVENANCE.contains(&key.as_str()));
        config.sort_unstable_by_key(|(key, _)| *key);
        for (key, value) in config {
            hash.field(key.as_bytes());
            hash.field(value.to_string().as_bytes());
        }
        if let Some(seed) = self.seed() {
            hash.field(&seed.to_le_bytes());
        }
        for tensor in self.tensors() {
            hash.field(tensor.name.as_bytes());
            hash.field(tensor.dtype.name().as_bytes());
            for size in tensor.shape {
                hash.field(&(*size as u64).to_le_bytes());
            }
            let len = tensor.bytes.len();
            let last = len.saturating_sub(SAMPLE_BYTES);
            for start in [0, last / 2, last] {
                hash.field(&tensor.bytes[start..len.min(start + SAMPLE_BYTES)]);
            }
        }
        hash
    }
}

/// FNV-1a with 64 bits: simple, and the same in every release of the standard library.
struct Fnv(u64);

impl Fnv {
    fn new() -> Fnv {
        Fnv(0xcbf2_9ce4_8422_2325)
    }

    /// Adds bytes, after their length, so that the ends of fields cannot shift.
    fn field(&mut self, bytes: &[u8]) {
        for byte in (bytes.len() as u64).to_le_bytes().iter().chain(bytes) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_published_one() {
        // FNV-1a of "foobar" by its authors' test vectors; fields add a length, so feed it raw.
        let mut hash = Fnv::new();
        for byte in b"foobar" {
            hash.0 = (hash.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        assert_eq!(hash.0, 0x85944171f73967e8);
    }
}
