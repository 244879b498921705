//! The manifest: which snapshots have a name, in one small JSON file beside the records.
//! It names state and holds none; a name whose records are gone is for its reader to find out.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

/// Version of the file; another one is refused.
pub const MANIFEST_VERSION: u32 = 1;
/// Most bytes of the file.
pub const MANIFEST_BYTES_MAX: u64 = 256 << 20;

/// A snapshot: a path of a model that has a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestEntry {
    /// Which weights the state was computed with.
    pub fingerprint: u64,
    /// Tells models apart that were loaded twice from the same weights.
    pub instance: u32,
    /// Namespace that the client asked for.
    pub salt: Option<String>,
    /// Name that the client gave.
    pub name: String,
    /// The path.
    pub tokens: Vec<u32>,
    /// Whether it is kept whatever it costs.
    pub pinned: bool,
    /// When it ends, in milliseconds since 1970.
    pub expires_unix_ms: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    version: u32,
    /// XXH3 of 128 bits of the snapshots, written as compact JSON; as hexadecimal digits.
    checksum: String,
    snapshots: Vec<ManifestEntry>,
}

/// The file's content.
///
/// # Errors
/// Why not, if it were larger than [`MANIFEST_BYTES_MAX`].
pub(super) fn encode(snapshots: &[ManifestEntry]) -> Result<Vec<u8>, String> {
    let content = Content {
        version: MANIFEST_VERSION,
        checksum: checksum(snapshots),
        snapshots: snapshots.to_vec(),
    };
    let bytes = serde_json::to_vec(&content).expect("numbers and text can be written as JSON");
    check_length(bytes.len() as u64)?;
    Ok(bytes)
}

/// Reads the file's content.
///
/// # Errors
/// Why it is refused.
pub(super) fn decode(bytes: &[u8]) -> Result<Vec<ManifestEntry>, String> {
    check_length(bytes.len() as u64)?;
    let content: Content = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if content.version != MANIFEST_VERSION {
        let found = content.version;
        return Err(format!("version: expected {MANIFEST_VERSION}, found {found}"));
    }
    let expected = checksum(&content.snapshots);
    if content.checksum != expected {
        return Err(format!("checksum: expected {expected}, found {}", content.checksum));
    }
    Ok(content.snapshots)
}

/// Whether a file of so many bytes is read at all.
pub(super) fn check_length(bytes: u64) -> Result<(), String> {
    if bytes <= MANIFEST_BYTES_MAX {
        return Ok(());
    }
    Err(format!("length: expected at most {MANIFEST_BYTES_MAX} bytes, found {bytes}"))
}

fn checksum(snapshots: &[ManifestEntry]) -> String {
    let bytes = serde_json::to_vec(snapshots).expect("numbers and text can be written as JSON");
    format!("{:032x}", xxh3_128(&bytes))
}
