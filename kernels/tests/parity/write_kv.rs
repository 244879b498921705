//! Rows of the table of `write_kv`: what lies in pages, whatever backend wrote it.

use candle_core::{DType, Tensor};
use sconce_kernels::attention::reference;
use sconce_kernels::attention::{KvSide, KvType, Shape};
use sconce_kernels::{AttentionOptions, Error, Isa, KvPages, PageTable, paged_attention, write_kv};

use crate::attention::unwritten;
use crate::common::{Backend, Random, bits, device, poisoned, tensor, values};

/// The words of a pool in the order of the CPU, made of that of a backend.
fn in_cpu_order(backend: Backend, side: KvSide, shape: &Shape, words: Vec<u32>) -> Vec<u32> {
    if !backend.is_gpu() {
        return words;
    }
    let (tokens, dim) = (shape.page_tokens, shape.head_dim);
    let (turned, group) = match shape.kv_type {
        KvType::F32 if side == KvSide::Values => return words,
        KvType::F32 => (dim, 0),
        KvType::Int8 => (dim / 4, dim.div_ceil(side.group())),
    };
    let mut all = Vec::new();
    for block in words.chunks(shape.block_len(side)) {
        let (codes, scales) = block.split_at(tokens * turned);
        if shape.kv_type == KvType::Int8 && side == KvSide::Values {
            // An element of four tokens to a word.
            let byte =
                |token: usize, at: usize| codes[token * turned + at / 4].to_le_bytes()[at % 4];
            let word = |first: usize, at: usize| [0, 1, 2, 3].map(|token| byte(first + token, at));
            let line = |first: usize| (0..dim).map(move |at| (first, at));
            all.extend(
                (0..tokens)
                    .step_by(4)
                    .flat_map(line)
                    .map(|(first, at)| u32::from_le_bytes(word(first, at))),
            );
        } else {
            all.extend((0..turned * tokens).map(|i| codes[i % tokens * turned + i / tokens]));
        }
        all.extend((0..group * tokens).map(|i| scales[i % tokens * group + i / tokens]));
    }
    all
}

/// The words of a pool, or the bits of its elements.
fn words(pool: &Tensor) -> Vec<u32> {
    match pool.dtype() {
        DType::F32 => bits(&values(pool)),
        _ => pool.flatten_all().unwrap().to_vec1().unwrap(),
    }
}

#[test]
fn written_keys_and_values_match_their_reference() {
    let shape = Shape {
        pages: 4,
        kv_heads: 2,
        page_tokens: 5,
        head_dim: 6,
        heads: 2,
        kv_type: KvType::F32,
    };
    let slots = [7, 0, 19, 12];
    let mut random = Random::new(2);
    let (k, v) = (random.numbers(4 * 12), random.numbers(4 * 12));
    let (mut keys, mut vals) = (vec![0.0; 240], vec![0.0; 240]);
    reference::write_keys(&mut keys, &k, &slots, &shape);
    reference::write_values(&mut vals, &v, &slots, &shape);
    for backend in Backend::all() {
        let pool = || Tensor::zeros((4, 2, 5, 6), DType::F32, &device()).unwrap();
        let (found_keys, found_values) = (pool(), pool());
        let kv = KvPages { keys: &found_keys, values: &found_values };
        backend.with(|| {
            write_kv(kv, &tensor(&k, 12), &tensor(&v, 12), &slots).unwrap();
            write_kv(kv, &tensor(&k, 12), &tensor(&v, 12), &[]).unwrap();
        });
        let found = in_cpu_order(backend, KvSide::Keys, &shape, words(&found_keys));
        assert_eq!(found, bits(&keys), "{backend}");
        assert_eq!(words(&found_values), bits(&vals), "{backend}");
        let wrong = || write_kv(kv, &tensor(&k, 12), &tensor(&v, 12), &[0, 20]);
        let error = backend.with(wrong).unwrap_err();
        assert_eq!(error.to_string(), "write_kv: slots[1] is 20, must be below 20");
    }
}

#[test]
fn keys_and_values_in_8_bits_are_the_same_whatever_backend_wrote_them() {
    let shape = Shape {
        pages: 3,
        kv_heads: 2,
        page_tokens: 16,
        head_dim: 80,
        heads: 2,
        kv_type: KvType::Int8,
    };
    let width = shape.kv_heads * shape.head_dim;
    let mut random = Random::new(5);
    let [mut k, v] = [(); 2].map(|()| random.numbers(48 * width));
    k[..80].fill(0.0);
    k[200] = f32::INFINITY;
    let slots: Vec<u32> = (0..48).rev().collect();
    let written = |backend: Backend| {
        let sides = [KvSide::Keys, KvSide::Values];
        let here = |tensor: Tensor| tensor.to_device(&backend.device()).unwrap();
        let [keys, values] = sides.map(|side| here(unwritten(side, &shape)));
        let [k, v] = [&k, &v].map(|rows| here(tensor(rows, width)));
        let kv = KvPages { keys: &keys, values: &values };
        backend.with(|| write_kv(kv, &k, &v, &slots)).unwrap();
        let pools = [(KvSide::Keys, keys), (KvSide::Values, values)];
        pools.map(|(side, pool)| in_cpu_order(backend, side, &shape, words(&pool)))
    };
    let expected = written(Backend::Cpu(Isa::Portable));
    for backend in Backend::all() {
        for (found, expected) in written(backend).iter().zip(&expected) {
            let differs =
                found.iter().zip(expected).position(|(found, expected)| found != expected);
            assert_eq!(differs.map(|at| (at, found[at], expected[at])), None, "{backend}");
        }
    }
}

#[test]
fn keys_and_values_may_differ_in_width_when_written_but_not_when_read() {
    let shape = Shape {
        pages: 3,
        kv_heads: 2,
        page_tokens: 4,
        head_dim: 6,
        heads: 2,
        kv_type: KvType::F32,
    };
    let value_shape = Shape { head_dim: 10, ..shape };
    let slots = [7, 0, 11];
    let mut random = Random::new(3);
    let (k, v) = (random.numbers(3 * 12), random.numbers(3 * 20));
    let (mut keys, mut vals) = (vec![0.0; 3 * 2 * 4 * 6], vec![0.0; 3 * 2 * 4 * 10]);
    reference::write_keys(&mut keys, &k, &slots, &shape);
    reference::write_values(&mut vals, &v, &slots, &value_shape);
    let pool =
        |dims: (usize, usize, usize, usize)| Tensor::zeros(dims, DType::F32, &device()).unwrap();
    let pools = || (pool((3, 2, 4, 6)), pool((3, 2, 4, 10)));
    for backend in Backend::all() {
        let (found_keys, found_values) = pools();
        let kv = KvPages { keys: &found_keys, values: &found_values };
        backend.with(|| write_kv(kv, &tensor(&k, 12), &tensor(&v, 20), &slots)).unwrap();
        let found = in_cpu_order(backend, KvSide::Keys, &shape, words(&found_keys));
        assert_eq!(found, bits(&keys), "{backend}");
        assert_eq!(words(&found_values), bits(&vals), "{backend}");
    }
    let (found_keys, found_values) = pools();
    let kv = KvPages { keys: &found_keys, values: &found_values };
    let narrow = write_kv(kv, &tensor(&k, 12), &tensor(&k, 12), &slots);
    assert!(matches!(narrow, Err(Error::Shape { operand: "v", .. })));
    let fewer = pool((3, 2, 5, 6));
    let uneven = KvPages { keys: &found_keys, values: &fewer };
    let error = write_kv(uneven, &tensor(&k, 12), &tensor(&k, 12), &slots).unwrap_err();
    let expected = "write_kv: values must be [3, 2, 4, value_dim], found [3, 2, 5, 6]";
    assert_eq!(error.to_string(), expected);
    let options = AttentionOptions { scale: 1.0, window: None };
    let table = PageTable { segments: &[], pages: &[] };
    let read = paged_attention(&poisoned(1, 12), &tensor(&[0.0; 12], 12), kv, table, options);
    assert!(matches!(read, Err(Error::Shape { operand: "values", .. })));
}

#[test]
fn what_is_written_lies_apart_from_what_is_read_without_gaps_and_in_one_type() {
    let pool = || Tensor::zeros((3, 2, 4, 6), DType::F32, &device()).unwrap();
    let (keys, values) = (pool(), pool());
    let rows = tensor(&[0.5; 12], 12);
    let inside = keys.reshape((12, 12)).unwrap();
    let kv = KvPages { keys: &keys, values: &values };
    let error = |kv, k, v| write_kv(kv, k, v, &[1]).unwrap_err();
    let one = KvPages { values: &keys, ..kv };
    assert!(matches!(error(one, &rows, &rows), Error::Aliased { operand: "values", .. }));
    assert!(matches!(error(kv, &rows, &inside), Error::Aliased { operand: "v", .. }));
    let inside = values.reshape((12, 12)).unwrap();
    assert!(matches!(error(kv, &inside, &rows), Error::Aliased { operand: "k", .. }));
    let gaps = Tensor::zeros((3, 2, 6, 4), DType::F32, &device()).unwrap();
    let gaps = gaps.transpose(2, 3).unwrap();
    let gaps = KvPages { values: &gaps, ..kv };
    assert!(matches!(error(gaps, &rows, &rows), Error::NotContiguous { operand: "values", .. }));
    let words = Tensor::zeros((3, 2, 16, 9), DType::U32, &device()).unwrap();
    let mixed = KvPages { values: &words, ..kv };
    assert!(matches!(error(mixed, &rows, &rows), Error::DType { operand: "values", .. }));
    // Nothing was written by a call that was refused.
    assert_eq!(crate::common::values(&keys), [0.0; 144]);
}
