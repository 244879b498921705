//! What the tests of the disk tier share: headers, payloads, tiers that nobody waits for long.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::disk::{
    Completion, DiskConfig, DiskError, DiskTier, Notify, RecordHeader, RecordId, RecordKind,
};

/// Only for tests that would otherwise hang; none depends on it.
pub(super) const LONG: Duration = Duration::from_secs(60);

pub(super) const BYTES_MAX: u64 = 1 << 30;

pub(super) fn nobody() -> Notify {
    Arc::new(|| {})
}

/// A tier that tries again at once after a failure.
pub(super) fn config(directory: &Path) -> DiskConfig {
    DiskConfig { retry_after: Duration::ZERO, ..DiskConfig::new(directory, BYTES_MAX) }
}

pub(super) fn open(directory: &Path) -> DiskTier {
    DiskTier::open(config(directory), nobody()).unwrap()
}

/// A span of `length` tokens at the end of a path of `end`, of a payload of `bytes`.
pub(super) fn span(fingerprint: u64, end: u32, length: u32, bytes: u64) -> RecordHeader {
    RecordHeader {
        fingerprint,
        instance: 0,
        salt: None,
        kind: RecordKind::Span,
        start: end - length,
        tokens: (0..end).map(|token| token * 7 + fingerprint as u32).collect(),
        page_tokens: 64,
        payload_bytes: bytes,
    }
}

pub(super) fn point(fingerprint: u64, end: u32, bytes: u64) -> RecordHeader {
    let kind = RecordKind::Point;
    RecordHeader { kind, start: end, ..span(fingerprint, end, 1, bytes) }
}

/// Bytes that differ from record to record, in three pieces.
pub(super) fn payload(header: &RecordHeader) -> Vec<Bytes> {
    let seed = header.fingerprint ^ u64::from(header.start) << 20 ^ header.payload_bytes;
    let bytes: Vec<u8> =
        (0..header.payload_bytes).map(|i| (i.wrapping_mul(seed | 1) >> 3) as u8).collect();
    let third = bytes.len() / 3;
    [&bytes[..third], &bytes[third..2 * third], &bytes[2 * third..]]
        .map(Bytes::copy_from_slice)
        .to_vec()
}

pub(super) fn whole(pieces: &[Bytes]) -> Vec<u8> {
    pieces.concat()
}

pub(super) fn write(tier: &mut DiskTier, header: &RecordHeader) -> RecordId {
    tier.write(header.clone(), payload(header)).unwrap()
}

pub(super) fn flush(tier: &mut DiskTier) -> Vec<Completion> {
    assert!(tier.flush(Instant::now() + LONG));
    std::iter::from_fn(|| tier.poll()).collect()
}

pub(super) fn read(tier: &mut DiskTier, id: RecordId) -> Result<Vec<u8>, DiskError> {
    let ticket = tier.read(id)?;
    let result = tier.wait(ticket, Instant::now() + LONG).unwrap();
    result.map(|payload| payload.to_vec())
}

/// Every record of the directory with its payload, as a server finds it that starts.
pub(super) fn everything(
    tier: &mut DiskTier,
) -> Vec<(RecordId, RecordHeader, Result<Vec<u8>, DiskError>)> {
    let mut found = Vec::new();
    for fingerprint in tier.fingerprints().into_keys() {
        tier.scan(fingerprint, &mut |id, header| found.push((id, header)));
    }
    found
        .into_iter()
        .map(|(id, header)| {
            let result = read(tier, id);
            (id, header, result)
        })
        .collect()
}

/// Names of the files of the directory and of its records, sorted.
pub(super) fn names(directory: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for directory in [directory, &directory.join("records")] {
        for entry in std::fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                names.push(entry.file_name().into_string().unwrap());
            }
        }
    }
    names.sort();
    names
}

/// Lines of the log, of this thread and of the tiers that it opens.
#[derive(Clone, Default)]
pub(super) struct Log {
    lines: Arc<Mutex<Vec<String>>>,
}

impl Log {
    /// Listens until the guard is dropped.
    pub(super) fn listen(&self) -> tracing::subscriber::DefaultGuard {
        // As long as there is one listener only, `tracing` asks the thread that comes first to a
        // line whether anybody listens, and that may be the thread of another test.
        static OTHERS: OnceLock<[tracing::Dispatch; 2]> = OnceLock::new();
        OTHERS.get_or_init(|| [(); 2].map(|()| tracing::Dispatch::new(Self::default())));
        tracing::subscriber::set_default(self.clone())
    }

    pub(super) fn lines(&self, with: &str) -> Vec<String> {
        self.lines.lock().unwrap().iter().filter(|line| line.contains(with)).cloned().collect()
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Fields(String);
        impl tracing::field::Visit for Fields {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
                self.0.push_str(&format!(" {field}={value:?}"));
            }
        }
        let mut fields = Fields(event.metadata().level().to_string());
        event.record(&mut fields);
        self.lines.lock().unwrap().push(fields.0);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}
