//! Entries of pools: packed, unpacked, copied, cleared, and to the memory of the host and back.

use candle_core::{DType, Tensor};
use sconce_kernels::entries::reference;
use sconce_kernels::{
    Error, Packing, clear_entry, copy_entry, gather_entries, read_entries, scatter_entries,
    write_entries,
};

use crate::common::{Backend, Random, device, displaced, tensor, values};

const ENTRIES: usize = 9;
/// Words of an entry; strides and offsets at which they are packed.
const SHAPES: [(usize, usize, usize); 6] =
    [(1, 1, 0), (5, 9, 3), (8, 16, 4), (8, 18, 8), (1100, 1104, 4), (4096, 4096, 0)];

/// Every bit pattern, NaN with a payload among them.
fn words(len: usize, seed: u64) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..len).map(|index| if index == 1 { 0x7fa1_2345 } else { random.next() }).collect()
}

fn floats(words: &[u32]) -> Vec<f32> {
    words.iter().map(|word| f32::from_bits(*word)).collect()
}

fn tensor_of_words(words: &[u32]) -> Tensor {
    Tensor::from_slice(words, words.len(), &device()).unwrap()
}

/// A pool of words as f32, one that begins one element late, and one as u32.
fn pools(words: &[u32], len: usize) -> [Tensor; 3] {
    let ints = tensor_of_words(words).reshape((words.len() / len, len)).unwrap();
    [tensor(&floats(words), len), displaced(&floats(words), len), ints]
}

fn words_of(tensor: &Tensor) -> Vec<u32> {
    match tensor.dtype() {
        DType::U32 => tensor.flatten_all().unwrap().to_vec1().unwrap(),
        _ => values(tensor).iter().map(|value| value.to_bits()).collect(),
    }
}

#[test]
fn gather_entries_matches_its_reference() {
    for (len, stride, offset) in SHAPES {
        let (pool, packing) = (words(ENTRIES * len, 1), Packing { stride, offset });
        for entries in [vec![], vec![8], vec![3, 0, 3, 7]] {
            let before = words(entries.len() * stride + 3, 2);
            let mut expected = before.clone();
            reference::gather_entries(&mut expected, &pool, &entries, len, packing);
            for backend in Backend::all() {
                for pool in pools(&pool, len) {
                    let packed = tensor_of_words(&before);
                    backend.with(|| gather_entries(&packed, &pool, &entries, packing)).unwrap();
                    let case = format!("{backend} {:?} {packing:?} {entries:?}", pool.dtype());
                    assert_eq!(words_of(&packed), expected, "{case}");
                }
            }
        }
    }
}

#[test]
fn scatter_entries_matches_its_reference() {
    for (len, stride, offset) in SHAPES {
        let (before, packing) = (words(ENTRIES * len, 1), Packing { stride, offset });
        for entries in [vec![], vec![8], vec![3, 0, 7]] {
            let packed = words(entries.len() * stride + 3, 2);
            let mut expected = before.clone();
            reference::scatter_entries(&mut expected, &packed, &entries, len, packing);
            let packed = tensor_of_words(&packed);
            for backend in Backend::all() {
                for pool in pools(&before, len) {
                    backend.with(|| scatter_entries(&pool, &packed, &entries, packing)).unwrap();
                    let case = format!("{backend} {:?} {packing:?} {entries:?}", pool.dtype());
                    assert_eq!(words_of(&pool), expected, "{case}");
                }
            }
        }
    }
}

#[test]
fn entries_copied_and_cleared_match_and_the_others_stay() {
    for len in [1, 5, 8, 1100] {
        let before = words(ENTRIES * len, 1);
        for (from, to) in [(0, 8), (8, 0), (4, 4)] {
            let mut copied = before.clone();
            copied.copy_within(from * len..(from + 1) * len, to * len);
            let mut cleared = before.clone();
            cleared[to * len..(to + 1) * len].fill(0);
            for backend in Backend::all() {
                for pool in pools(&before, len) {
                    backend.with(|| copy_entry(&pool, from as u32, to as u32)).unwrap();
                    assert_eq!(words_of(&pool), copied, "{backend} {len}: {from} to {to}");
                }
                for pool in pools(&before, len) {
                    backend.with(|| clear_entry(&pool, to as u32)).unwrap();
                    assert_eq!(words_of(&pool), cleared, "{backend} {len}: {to}");
                }
            }
        }
    }
}

/// The bytes that entries of several pools have, by the definition.
fn blocks_of(pools: &[(Vec<u32>, usize)], entries: &[u32]) -> Vec<Vec<u8>> {
    let of_entry = |entry: &u32| {
        let words = pools.iter().flat_map(|(words, len)| &words[*entry as usize * len..][..*len]);
        words.flat_map(|word| word.to_le_bytes()).collect()
    };
    entries.iter().map(of_entry).collect()
}

/// Reads entries on every backend, and writes them to other ones of pools of zeros.
fn assert_moves(lens: &[usize], entries: &[u32], to: &[u32]) {
    let pools: Vec<_> = lens.iter().map(|len| (words(ENTRIES * len, *len as u64), *len)).collect();
    let expected = blocks_of(&pools, entries);
    for backend in Backend::all() {
        for kind in 0..3 {
            let of_kind = |(words, len): &(Vec<u32>, usize)| {
                let [a, b, c] = self::pools(words, *len);
                [a, b, c][kind].clone()
            };
            let from: Vec<Tensor> = pools.iter().map(of_kind).collect();
            let zeros = pools.iter().map(|(words, len)| (vec![0; words.len()], *len));
            let target: Vec<Tensor> = zeros.map(|pool| of_kind(&pool)).collect();
            let case = format!("{backend} {lens:?} {entries:?}, pools of kind {kind}");
            let mut blocks: Vec<Vec<u8>> = expected.iter().map(|b| vec![7; b.len()]).collect();
            let read = |blocks: &mut Vec<Vec<u8>>, pools: &[Tensor], entries: &[u32]| {
                let pools: Vec<_> = pools.iter().collect();
                let mut blocks: Vec<_> = blocks.iter_mut().map(Vec::as_mut_slice).collect();
                backend.with(|| read_entries(&pools, entries, &mut blocks)).unwrap();
            };
            read(&mut blocks, &from, entries);
            assert!(blocks == expected, "{case}: read");
            let pools: Vec<_> = target.iter().collect();
            let sources: Vec<_> = blocks.iter().map(Vec::as_slice).collect();
            backend.with(|| write_entries(&pools, to, &sources)).unwrap();
            let mut back: Vec<Vec<u8>> = expected.iter().map(|b| vec![7; b.len()]).collect();
            read(&mut back, &target, to);
            assert!(back == expected, "{case}: written");
            let written = target.iter().flat_map(words_of).filter(|word| *word != 0).count();
            let there = expected.concat().len() / 4;
            assert!(written <= there && written * 10 >= there * 9, "{case}: others were touched");
        }
    }
}

#[test]
fn entries_move_to_the_memory_of_the_host_and_back() {
    assert_moves(&[5, 8, 3], &[7, 0, 3, 7], &[1, 2, 8, 0]);
    assert_moves(&[8, 1100], &[8], &[0]);
    assert_moves(&[4], &[], &[]);
    assert_moves(&[], &[], &[]);
}

#[test]
fn more_than_the_buffers_hold_moves_in_batches() {
    // A lane has 4 Ki words emulated, 4 Mi otherwise: two entries at a time, less than one, and less
    // than what one pool has of one.
    let unit = if cfg!(any(feature = "cuda", feature = "metal")) { 1 << 10 } else { 1 };
    assert_moves(&[1000 * unit, 900 * unit + 1], &[7, 0, 3, 5, 1], &[1, 2, 8, 0, 4]);
    assert_moves(&[2500 * unit, 2000 * unit, 1000 * unit, 9], &[7, 0], &[1, 2]);
    assert_moves(&[3, 4200 * unit, 900 * unit], &[7, 0], &[1, 2]);
}

#[test]
fn entries_that_are_not_there_or_do_not_fit_are_refused() {
    let pool = tensor(&[0.0; 12], 4);
    let packed = tensor_of_words(&[0; 8]);
    let packing = Packing { stride: 4, offset: 0 };
    let error = gather_entries(&packed, &pool, &[0, 3], packing).unwrap_err();
    assert_eq!(error.to_string(), "gather_entries: entries[1] is 3, must be below 3");
    let error = gather_entries(&packed, &pool, &[0, 1, 2], packing).unwrap_err();
    let expected = "gather_entries: packed must be 3 entries 4 words apart, found 8 words";
    assert_eq!(error.to_string(), expected);
    for packing in [Packing { stride: 4, offset: 1 }, Packing { stride: 8, offset: usize::MAX }] {
        let error = scatter_entries(&pool, &packed, &[0], packing).unwrap_err();
        assert!(matches!(error, Error::Shape { operand: "packing", .. }), "{error}");
    }
    assert!(copy_entry(&pool, 3, 0).is_err() && copy_entry(&pool, 0, 3).is_err());
    assert!(clear_entry(&pool, 3).is_err());
    let turned = pool.t().unwrap();
    assert!(matches!(clear_entry(&turned, 0), Err(Error::NotContiguous { .. })));
    let halves = pool.to_dtype(DType::F16).unwrap();
    assert!(matches!(clear_entry(&halves, 0), Err(Error::DType { .. })));
    assert!(matches!(read_entries(&[&halves], &[], &mut []), Err(Error::DType { .. })));
    let mut block = [0; 16];
    assert!(read_entries(&[&pool], &[3], &mut [&mut block]).is_err());
    assert!(read_entries(&[&pool], &[0, 1], &mut [&mut block]).is_err());
    assert!(write_entries(&[&pool], &[0], &[&block[..12]]).is_err());
    assert!(write_entries(&[&pool, &pool], &[0], &[&block]).is_err());
}
