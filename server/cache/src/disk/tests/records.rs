//! The format: what is written is what is read, and nothing else is.

use bytes::Bytes;
use proptest::prelude::*;
use xxhash_rust::xxh3::xxh3_128;

use super::support::*;
use crate::disk::{
    DecodeLimits, Decoder, HEAD_BYTES_MAX, MAGIC, PAYLOAD_BYTES_MAX, PIECE_BYTES, Record,
    RecordFault, RecordHeader, RecordKind, SALT_BYTES_MAX, encode,
};

const HEAD_BYTES: usize = 72 + 16;

fn encoded(header: &RecordHeader) -> Vec<u8> {
    whole(&encode(header, &payload(header)).unwrap())
}

fn decode(bytes: &[u8], chunk: usize) -> Result<Vec<Record>, RecordFault> {
    let mut decoder = Decoder::new(DecodeLimits::default());
    let mut records = Vec::new();
    for part in bytes.chunks(chunk) {
        records.extend(decoder.feed(part)?);
    }
    decoder.finish()?;
    Ok(records)
}

/// The record with `edit` done to the head before its checksum, which is made anew; a head may
/// become longer.
fn forged(header: &RecordHeader, edit: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = encoded(header);
    let rest = bytes.split_off(HEAD_BYTES + header.salt.as_ref().map_or(0, String::len));
    bytes.truncate(bytes.len() - 16);
    edit(&mut bytes);
    let checksum = xxh3_128(&bytes);
    [bytes, checksum.to_le_bytes().to_vec(), rest].concat()
}

fn put<const N: usize>(at: usize, value: [u8; N]) -> impl FnOnce(&mut Vec<u8>) {
    move |bytes| bytes[at..at + N].copy_from_slice(&value)
}

fn headers() -> impl Strategy<Value = RecordHeader> {
    let salt = prop::option::of("[a-zäß/ ]{0,12}");
    (any::<u64>(), any::<u32>(), salt, 1..200_u32, 0..200_u32, any::<bool>(), 0..3000_u64).prop_map(
        |(fingerprint, instance, salt, end, length, is_point, bytes)| {
            let length = length.clamp(1, end);
            let header = if is_point {
                point(fingerprint, end, bytes)
            } else {
                span(fingerprint, end, length, bytes)
            };
            RecordHeader { instance, salt, ..header }
        },
    )
}

#[test]
fn every_field_stands_where_the_table_says() {
    let header = RecordHeader {
        fingerprint: 0x0102_0304_0506_0708,
        instance: 9,
        salt: Some("ab".into()),
        kind: RecordKind::Span,
        start: 1,
        tokens: vec![10, 11, 12],
        page_tokens: 64,
        payload_bytes: 4,
    };
    let bytes = whole(&encode(&header, &[Bytes::from_static(b"wxyz")]).unwrap());
    let tokens = [10_u32, 11, 12].map(u32::to_le_bytes).concat();
    let mut expected = b"\x89sconce\n\x01\0\0\0".to_vec();
    expected.extend((HEAD_BYTES as u32 + 2).to_le_bytes());
    expected.extend(header.fingerprint.to_le_bytes());
    for field in [9_u32, 0, 1, 3, 64, 3] {
        expected.extend(field.to_le_bytes());
    }
    expected.extend(4_u64.to_le_bytes());
    expected.extend(xxh3_128(&tokens).to_le_bytes());
    expected.extend(b"ab");
    let head = xxh3_128(&expected);
    expected.extend(head.to_le_bytes());
    expected.extend(tokens);
    expected.extend(b"wxyz");
    let checksum = xxhash_rust::xxh3::xxh3_128_with_seed(b"wxyz", head as u64);
    expected.extend(checksum.to_le_bytes());
    assert_eq!(bytes, expected);
    assert_eq!(header.record_bytes(), bytes.len() as u64);
}

#[test]
fn the_pieces_of_the_payload_are_shared_and_not_copied() {
    let header = span(1, 3, 3, 100);
    let payload = payload(&header);
    let pieces = encode(&header, &payload).unwrap();
    assert_eq!(pieces.len(), payload.len() + 2);
    for (given, piece) in payload.iter().zip(&pieces[1..]) {
        assert_eq!(given.as_ptr(), piece.as_ptr());
    }
}

#[test]
fn a_long_payload_arrives_in_pieces_of_bounded_size() {
    let header = span(1, 3, 3, 2 * PIECE_BYTES as u64 + 5);
    let records = decode(&encoded(&header), 100_000).unwrap();
    let lengths: Vec<usize> = records[0].payload.iter().map(|piece| piece.len()).collect();
    assert_eq!(lengths, [PIECE_BYTES, PIECE_BYTES, 5]);
    assert_eq!(whole(&records[0].payload), whole(&payload(&header)));
}

#[test]
fn a_header_out_of_bounds_is_not_written() {
    let fine = span(1, 10, 4, 3);
    let bytes: [Bytes; 1] = [Bytes::from_static(&[1, 2, 3])];
    encode(&fine, &bytes).unwrap();
    let refused = |header: RecordHeader, expected: &str| {
        assert_eq!(encode(&header, &bytes).unwrap_err().to_string(), expected);
    };
    refused(
        RecordHeader { payload_bytes: 4, ..fine.clone() },
        "bytes of the payload: expected 4 to 4, found 3",
    );
    refused(
        RecordHeader { start: 10, ..fine.clone() },
        "start of the span: expected 0 to 9, found 10",
    );
    refused(
        RecordHeader { kind: RecordKind::Point, ..fine.clone() },
        "start of the point: expected 10 to 10, found 6",
    );
    refused(
        RecordHeader { tokens: Vec::new(), ..fine.clone() },
        "tokens of the path: expected 1 to 16777216, found 0",
    );
    refused(
        RecordHeader { page_tokens: 0, ..fine.clone() },
        "tokens of a page: expected 1 to 65536, found 0",
    );
    refused(
        RecordHeader { salt: Some("s".repeat(SALT_BYTES_MAX + 1)), ..fine },
        "bytes of the salt: expected 0 to 2048, found 2049",
    );
}

#[test]
fn a_head_with_a_right_checksum_and_wrong_numbers_is_refused_before_memory_is_taken() {
    let header = span(1, 10, 4, 3);
    let refused = |bytes: Vec<u8>, expected: &str| {
        assert_eq!(decode(&bytes, 7).unwrap_err().to_string(), expected);
    };
    let most = HEAD_BYTES_MAX as u32;
    refused(
        forged(&header, put(12, (most + 1).to_le_bytes())),
        "length of the head: expected 88 to 4096, found 4097",
    );
    refused(
        forged(&header, put(12, 87_u32.to_le_bytes())),
        "length of the head: expected 88 to 4096, found 87",
    );
    refused(forged(&header, put(28, 2_u32.to_le_bytes())), "kind: expected 0 or 1, found 2");
    refused(
        forged(&header, put(36, u32::MAX.to_le_bytes())),
        "tokens of the path: expected 1 to 16777216, found 4294967295",
    );
    refused(
        forged(&header, put(44, u32::MAX.to_le_bytes())),
        "bytes of the salt: expected 0 to 0, found 4294967294",
    );
    refused(
        forged(&header, put(48, (PAYLOAD_BYTES_MAX + 1).to_le_bytes())),
        "bytes of the payload: expected 0 to 274877906944, found 274877906945",
    );
    let salted = RecordHeader { salt: Some("ab".into()), ..header };
    refused(forged(&salted, put(72, [0xff, 0xfe])), "the salt is not UTF-8 text");
}

#[test]
fn a_decoder_keeps_to_the_limits_that_it_was_given() {
    let header = span(1, 10, 4, 300);
    let bytes = encoded(&header);
    let feed = |tokens_max, payload_bytes_max| {
        Decoder::new(DecodeLimits { tokens_max, payload_bytes_max }).feed(&bytes)
    };
    assert_eq!(feed(10, 300).unwrap().len(), 1);
    let error = feed(9, 300).unwrap_err().to_string();
    assert_eq!(error, "tokens of the path: expected 0 to 9, found 10");
    let error = feed(10, 299).unwrap_err().to_string();
    assert_eq!(error, "bytes of the payload: expected 0 to 299, found 300");
}

#[test]
fn another_version_is_refused_and_fields_of_a_later_minor_one_are_skipped() {
    let header = RecordHeader { salt: Some("salt".into()), ..span(1, 10, 4, 0) };
    let major = forged(&header, put(8, 2_u16.to_le_bytes()));
    assert_eq!(decode(&major, 9), Err(RecordFault::Version { expected: 1, found: 2 }));
    // The payload is empty and its checksum seeded with that of the head, so it is made anew.
    let mut minor = forged(&header, |bytes| {
        put(10, 7_u16.to_le_bytes())(bytes);
        put(12, (HEAD_BYTES as u32 + 4 + 5).to_le_bytes())(bytes);
        bytes.extend(b"later");
    });
    let head = xxh3_128(&minor[..72 + 4 + 5]);
    let trailer = minor.len() - 16;
    let checksum = xxhash_rust::xxh3::xxh3_128_with_seed(b"", head as u64);
    minor[trailer..].copy_from_slice(&checksum.to_le_bytes());
    assert_eq!(decode(&minor, 9).unwrap(), [Record { header, payload: Vec::new() }]);
}

#[test]
fn the_payload_of_one_record_is_not_taken_for_that_of_another() {
    let (one, other) = (span(1, 10, 4, 100), span(2, 10, 4, 100));
    let body = HEAD_BYTES + 40;
    let mixed = [&encoded(&one)[..body], &encoded(&other)[body..]].concat();
    let error = decode(&mixed, 50).unwrap_err();
    assert!(matches!(error, RecordFault::Checksum { part: "payload", .. }), "{error}");
}

#[test]
fn what_is_no_record_says_what_it_is_instead() {
    let error = decode(b"GGUF\x03\0\0\0and so on", 3).unwrap_err();
    assert_eq!(error, RecordFault::Magic { expected: MAGIC, found: *b"GGUF\x03\0\0\0" });
    assert_eq!(decode(b"", 1), Ok(Vec::new()));
}

#[test]
fn after_a_fault_a_decoder_stays_refusing() {
    let mut decoder = Decoder::new(DecodeLimits::default());
    let fault = decoder.feed(&[0; 100]).unwrap_err();
    assert_eq!(decoder.feed(&encoded(&span(1, 2, 1, 3))), Err(fault.clone()));
    assert_eq!(decoder.finish(), Err(fault));
}

#[test]
fn a_record_that_ends_at_any_byte_is_refused_for_its_length() {
    let bytes = encoded(&RecordHeader { salt: Some("x".into()), ..span(3, 20, 7, 50) });
    for end in 1..bytes.len() {
        match decode(&bytes[..end], 16).unwrap_err() {
            RecordFault::Length { expected, found } => {
                assert_eq!(found, end as u64);
                assert!(found < expected && expected <= bytes.len() as u64, "{end}: {expected}");
                let known = end > HEAD_BYTES;
                assert!(!known || expected == bytes.len() as u64, "{end}: {expected}");
            }
            other => panic!("cut at {end}: {other}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_encoded_is_decoded_however_it_is_cut(
        headers in prop::collection::vec(headers(), 1..4),
        chunk in 1..500_usize,
    ) {
        let bytes: Vec<u8> = headers.iter().flat_map(encoded).collect();
        let records = decode(&bytes, chunk).unwrap();
        prop_assert_eq!(records.len(), headers.len());
        for (record, header) in records.iter().zip(&headers) {
            prop_assert_eq!(&record.header, header);
            prop_assert_eq!(whole(&record.payload), whole(&payload(header)));
            prop_assert_eq!(header.record_bytes(), encoded(header).len() as u64);
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_yields_no_record(
        header in headers(),
        place in any::<prop::sample::Index>(),
        bit in 0..8_u8,
        chunk in 1..500_usize,
    ) {
        let mut bytes = encoded(&header);
        let place = place.index(bytes.len());
        bytes[place] ^= 1 << bit;
        prop_assert!(decode(&bytes, chunk).is_err());
    }

    #[test]
    fn noise_is_refused_and_nothing_panics(
        mut bytes in prop::collection::vec(any::<u8>(), 1..600),
        begins_well in any::<bool>(),
        chunk in 1..100_usize,
    ) {
        if begins_well {
            bytes.splice(..0, *b"\x89sconce\n\x01\0\0\0\x58\0\0\0");
        }
        prop_assert!(decode(&bytes, chunk).is_err());
    }
}
