//! Records of cached state: any bytes, and records of ours that something happened to. A record comes
//! back whole or is refused; what was written is read, however it is cut.

use arbitrary::{Result, Unstructured};
use bytes::Bytes;
use sconce_cache::disk::{
    DecodeLimits, Decoder, Record, RecordFault, RecordHeader, RecordKind, encode,
};

use crate::text::{noises, perhaps, several, text};

/// What a decoder of a fuzzer takes: a head can announce more than the machine has.
const LIMITS: DecodeLimits = DecodeLimits { tokens_max: 1 << 12, payload_bytes_max: 1 << 16 };

pub(crate) fn run(bytes: &[u8]) {
    // As they are.
    drop(decode(bytes, &[]));
    let _ = check(&mut Unstructured::new(bytes));
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = noises(24, 160);
    let header = RecordHeader {
        fingerprint: 7,
        instance: 1,
        salt: Some("salt".to_owned()),
        kind: RecordKind::Span,
        start: 1,
        tokens: vec![1, 2, 3],
        page_tokens: 64,
        payload_bytes: 5,
    };
    let pieces = encode(&header, &[Bytes::from_static(b"state")]).expect("a record of ours");
    seeds.push(pieces.concat());
    seeds
}

fn check(u: &mut Unstructured<'_>) -> Result<()> {
    let payload = several(u, 4, |u| {
        let bytes = several(u, 40, Unstructured::arbitrary)?;
        Ok(Bytes::from(bytes))
    })?;
    let tokens: Vec<u32> = several(u, 60, Unstructured::arbitrary)?;
    let kind = if u.arbitrary()? { RecordKind::Span } else { RecordKind::Point };
    let end = tokens.len() as u32;
    let header = RecordHeader {
        fingerprint: u.arbitrary()?,
        instance: u.arbitrary()?,
        salt: perhaps(u, |u| text(u, 3000))?,
        kind,
        start: match kind {
            RecordKind::Point if u.ratio(7, 8)? => end,
            _ => u.int_in_range(0..=end)?,
        },
        tokens,
        page_tokens: u.int_in_range(0..=1 << 17)?,
        payload_bytes: payload.iter().map(|piece| piece.len() as u64).sum(),
    };
    let Ok(pieces) = encode(&header, &payload) else { return Ok(()) };
    let mut bytes = pieces.concat();
    assert_eq!(bytes.len() as u64, header.record_bytes());
    let cuts = several(u, 6, |u| u.int_in_range(0..=bytes.len()))?;
    let damage = several(u, 3, |u| {
        Ok((u.int_in_range(0..=bytes.len().saturating_sub(1))?, u.int_in_range(1..=255_u8)?))
    })?;
    let whole = decode(&bytes, &cuts);
    let [record] = whole.as_deref().expect("a record of ours is read") else {
        panic!("expected one record, found {whole:?}");
    };
    assert_eq!(record.header, header);
    assert_eq!(record.payload.concat(), payload.concat());
    let before = bytes.clone();
    for (index, flipped) in damage {
        bytes[index] ^= flipped;
    }
    if let Ok(records) = decode(&bytes, &cuts) {
        assert_eq!(bytes, before, "damage was not seen: {records:?}");
    }
    Ok(())
}

/// The records of `bytes`, cut at `cuts`.
fn decode(bytes: &[u8], cuts: &[usize]) -> std::result::Result<Vec<Record>, RecordFault> {
    let mut cuts = cuts.to_vec();
    cuts.sort_unstable();
    cuts.push(bytes.len());
    let mut decoder = Decoder::new(LIMITS);
    let (mut records, mut from) = (Vec::new(), 0);
    for cut in cuts {
        records.extend(decoder.feed(&bytes[from..cut])?);
        from = cut;
    }
    decoder.finish()?;
    Ok(records)
}
