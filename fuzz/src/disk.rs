//! A cache directory in which something happened to the files: it opens, and what comes back of it is
//! what was written, whole.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use arbitrary::{Result, Unstructured};
use bytes::Bytes;
use sconce_cache::disk::{
    DiskConfig, DiskTier, MANIFEST, ManifestEntry, RECORD_EXTENSION, RECORDS, RecordHeader,
    RecordId, RecordKind, TEMPORARY_EXTENSION, encode,
};

use crate::text::{noises, perhaps, several, text};

/// Of all records, so that some belong to the model that is asked for.
const FINGERPRINTS: u64 = 3;
/// Bytes of the directory, of which an input may have more.
const BYTES_MAX: u64 = 24 << 10;
/// Longest wait for a read.
const PATIENCE: Duration = Duration::from_secs(20);

/// Snapshots that have a name, and the file that says so.
static NAMED: LazyLock<(Vec<ManifestEntry>, Vec<u8>)> = LazyLock::new(|| {
    let entry = |name: &str, pinned: bool| ManifestEntry {
        fingerprint: 1,
        instance: 0,
        salt: pinned.then(|| "salt".to_owned()),
        name: name.to_owned(),
        tokens: vec![1, 2, 3],
        pinned,
        expires_unix_ms: (!pinned).then_some(7),
    };
    let entries = vec![entry("kept", true), entry("", false)];
    let folder = tempfile::tempdir().expect("a temporary directory");
    let mut tier = open(folder.path());
    tier.write_manifest(&entries).expect("it is short");
    assert!(tier.flush(Instant::now() + PATIENCE), "the manifest is written");
    let file = std::fs::read(folder.path().join(MANIFEST)).expect("it was written");
    (entries, file)
});

/// What was written, by what a record says of itself.
type Written = Vec<(RecordHeader, Vec<u8>)>;

pub(crate) fn run(bytes: &[u8]) {
    let _ = check(&mut Unstructured::new(bytes));
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    noises(32, 300)
}

fn check(u: &mut Unstructured<'_>) -> Result<()> {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let written = fill(folder.path(), u)?;
    let mut tier = open(folder.path());
    assert!(tier.status().bytes <= BYTES_MAX, "{:?}", tier.status());
    let before = read(&mut tier, &written);
    let manifest = tier.read_manifest();
    if let Ok(entries) = &manifest {
        assert!(entries.is_empty() || *entries == NAMED.0, "{entries:?}");
    }
    drop(tier);
    // What was refused is gone, and what was not is still there.
    let mut tier = open(folder.path());
    assert_eq!(tier.counters().refused, 0, "{:?}", tier.counters());
    assert_eq!(read(&mut tier, &written), before);
    assert_eq!(tier.read_manifest(), manifest);
    Ok(())
}

/// Opens a directory, whatever is in it, and waits until what does not fit is gone.
fn open(folder: &Path) -> DiskTier {
    let config = DiskConfig::new(folder, BYTES_MAX);
    let mut tier = DiskTier::open(config, Arc::new(|| {})).expect("a directory of ours opens");
    assert!(tier.flush(Instant::now() + PATIENCE), "what does not fit is removed");
    tier
}

/// All records that are there, read; each must be one that was written.
fn read(tier: &mut DiskTier, written: &Written) -> BTreeMap<RecordId, RecordHeader> {
    let mut found = BTreeMap::new();
    for fingerprint in 0..FINGERPRINTS {
        let mut visit = |id, header: RecordHeader| {
            assert_eq!(header.fingerprint, fingerprint);
            found.insert(id, header);
        };
        tier.scan(fingerprint, &mut visit);
    }
    found.retain(|id, header| {
        let ticket = tier.read(*id).expect("it was found");
        let payload = tier.wait(ticket, Instant::now() + PATIENCE).expect("a read ends");
        let Ok(payload) = payload else { return false };
        let whole = |record: &(RecordHeader, Vec<u8>)| record.0 == *header && record.1 == payload;
        assert!(written.iter().any(whole), "{header:?} was never written");
        true
    });
    found
}

/// Makes the directory as a killed or damaged server left it.
fn fill(folder: &Path, u: &mut Unstructured<'_>) -> Result<Written> {
    let records = folder.join(RECORDS);
    std::fs::create_dir(&records).expect("a new directory");
    let mut written = Written::new();
    for _ in 0..u.int_in_range(0..=6)? {
        let (header, payload) = record(u)?;
        let Ok(pieces) = encode(&header, &[Bytes::from(payload.clone())]) else { continue };
        let mut bytes = pieces.concat();
        damage(&mut bytes, u)?;
        std::fs::write(records.join(name(u)?), bytes).expect("room for a record");
        written.push((header, payload));
    }
    if u.arbitrary()? {
        let mut manifest = NAMED.1.clone();
        damage(&mut manifest, u)?;
        std::fs::write(folder.join(MANIFEST), manifest).expect("room for the manifest");
    }
    Ok(written)
}

fn record(u: &mut Unstructured<'_>) -> Result<(RecordHeader, Vec<u8>)> {
    let tokens: Vec<u32> = several(u, 20, Unstructured::arbitrary)?;
    let payload: Vec<u8> = several(u, 40, Unstructured::arbitrary)?;
    let is_span: bool = u.arbitrary()?;
    let end = tokens.len() as u32;
    let header = RecordHeader {
        fingerprint: u.int_in_range(0..=FINGERPRINTS - 1)?,
        instance: u.int_in_range(0..=2)?,
        salt: perhaps(u, |u| text(u, 20))?,
        kind: if is_span { RecordKind::Span } else { RecordKind::Point },
        start: if is_span { u.int_in_range(0..=end)? } else { end },
        tokens,
        page_tokens: 64,
        payload_bytes: payload.len() as u64,
    };
    Ok((header, payload))
}

/// Usually that of a record, at times of a temporary file or of nobody's.
fn name(u: &mut Unstructured<'_>) -> Result<String> {
    let id = if u.ratio(1, 8)? { u.arbitrary()? } else { u.int_in_range(0..=4_u64)? };
    Ok(match u.int_in_range(0..=15)? {
        0 => format!("{id:016x}.{TEMPORARY_EXTENSION}"),
        1 => format!("{id:x}.{RECORD_EXTENSION}"),
        2 => format!("{id:016X}.{RECORD_EXTENSION}"),
        3 => "other".to_owned(),
        _ => format!("{id:016x}.{RECORD_EXTENSION}"),
    })
}

fn damage(bytes: &mut Vec<u8>, u: &mut Unstructured<'_>) -> Result<()> {
    match u.int_in_range(0..=7)? {
        0 => bytes.truncate(u.int_in_range(0..=bytes.len())?),
        1 => bytes.extend(several(u, 20, Unstructured::arbitrary::<u8>)?),
        2 | 3 if !bytes.is_empty() => {
            let index = u.choose_index(bytes.len())?;
            bytes[index] ^= u.int_in_range(1..=255)?;
        }
        _ => {}
    }
    Ok(())
}
