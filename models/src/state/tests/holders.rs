//! Pages that others than sequences hold, and their bytes.

use bytemuck::cast_slice;
use candle_core::Device;

use super::*;

/// The bytes of a page, as numbers.
fn page(pool: &StatePool, page: u32, tokens: usize) -> Vec<f32> {
    let mut bytes = Vec::new();
    pool.read_page(page, tokens, &mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, pool.layout().bytes_per_page());
    bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
}

#[test]
fn a_page_that_is_held_outlives_its_sequence_unchanged() {
    let mut pool = pool();
    let id = pool.open().unwrap();
    extend(&mut pool, id, &[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
    let table = pool.page_table(id).unwrap().to_vec();
    pool.share_pages(&table).unwrap();
    assert_eq!((pool.page_holders(table[1]), pool.room(id).unwrap()), (2, 0));
    let before = page(&pool, table[1], 1);
    extend(&mut pool, id, &[6.0]).unwrap();
    assert_ne!(pool.page_table(id).unwrap()[1], table[1]);
    pool.close(id).unwrap();
    assert_eq!((pool.pages_used(), pool.page_holders(table[0])), (2, 1));
    assert_eq!(page(&pool, table[1], 1), before);
    pool.check_invariants().unwrap();
    pool.release_pages(&table).unwrap();
    assert_eq!(pool.pages_used(), 0);
    pool.check_invariants().unwrap();
}

#[test]
fn letting_go_what_is_not_held_is_an_error_and_changes_nothing() {
    let mut pool = pool();
    let id = pool.open().unwrap();
    extend(&mut pool, id, &[1.0; 2 * PAGE]).unwrap();
    let table = pool.page_table(id).unwrap().to_vec();
    let not_held = |result: Result<(), StateError>, expected: u32| {
        let error = result.unwrap_err();
        assert!(matches!(error, StateError::PageNotHeld { page } if page == expected), "{error}");
    };
    not_held(pool.release_pages(&table), table[0]);
    pool.share_pages(&table[..1]).unwrap();
    not_held(pool.release_pages(&table), table[1]);
    not_held(pool.release_pages(&[table[0], table[0]]), table[0]);
    assert_eq!(pool.page_holders(table[0]), 2);
    not_held(pool.share_pages(&[table[0], 9]), 9);
    not_held(pool.share_pages(&[PAGES as u32]), PAGES as u32);
    not_held(pool.read_page(9, 0, &mut Vec::new()), 9);
    assert_eq!(pool.page_holders(table[0]), 2);
    pool.check_invariants().unwrap();
    pool.release_pages(&table[..1]).unwrap();
    assert_eq!(read(&pool, id), [1.0; 2 * PAGE]);
}

#[test]
fn a_page_without_tokens_yet_cannot_be_shared() {
    let mut pool = pool();
    let id = pool.open().unwrap();
    extend(&mut pool, id, &[1.0; PAGE]).unwrap();
    pool.reserve(id, 1).unwrap();
    let table = pool.page_table(id).unwrap().to_vec();
    let error = pool.share_pages(&table).unwrap_err();
    assert!(matches!(error, StateError::PageReserved { page } if page == table[1]), "{error}");
    assert_eq!(pool.page_holders(table[0]), 1);
    let prefix = Prefix { len: PAGE + 1, pages: &table, ..Prefix::default() };
    assert!(matches!(pool.open_at(prefix), Err(StateError::PageReserved { .. })));
    pool.check_invariants().unwrap();
}

#[test]
fn pages_are_taken_all_or_none() {
    let mut pool = pool();
    let pages = pool.take_pages(PAGES - 1).unwrap();
    let error = pool.take_pages(2).unwrap_err();
    assert!(matches!(error, StateError::OutOfPages { needed: 2, free: 1, .. }), "{error}");
    assert_eq!(pool.pages_free(), 1);
    pool.check_invariants().unwrap();
    pool.release_pages(&pages).unwrap();
    assert_eq!(pool.take_pages(PAGES).unwrap().len(), PAGES);
}

#[test]
fn bytes_of_a_page_come_back_in_another_one() {
    let mut pool = pool();
    let id = pool.open().unwrap();
    let values: Vec<f32> = (1..=2 * PAGE).map(|value| value as f32).collect();
    extend(&mut pool, id, &values).unwrap();
    let bytes: Vec<Vec<u8>> = pool
        .page_table(id)
        .unwrap()
        .iter()
        .map(|&page| {
            let mut bytes = Vec::new();
            pool.read_page(page, PAGE, &mut bytes).unwrap();
            bytes
        })
        .collect();
    pool.close(id).unwrap();
    let pages = pool.take_pages(4).unwrap();
    for (page, bytes) in pages[2..].iter().zip(&bytes) {
        pool.write_page(*page, bytes).unwrap();
    }
    let prefix = Prefix { len: 2 * PAGE - 1, pages: &pages[2..], ..Prefix::default() };
    let again = pool.open_at(prefix).unwrap();
    assert_eq!(read(&pool, again), values[..2 * PAGE - 1]);
    pool.check_invariants().unwrap();
}

#[test]
fn only_the_one_holder_of_a_page_writes_it_and_all_of_it() {
    let mut pool = pool();
    let id = pool.open().unwrap();
    extend(&mut pool, id, &[1.0; PAGE]).unwrap();
    let of_sequence = pool.page_table(id).unwrap()[0];
    let bytes = vec![0; pool.layout().bytes_per_page() as usize];
    assert!(matches!(pool.write_page(of_sequence, &bytes), Err(StateError::PageNotHeld { .. })));
    pool.share_pages(&[of_sequence]).unwrap();
    let error = pool.write_page(of_sequence, &bytes).unwrap_err();
    assert!(matches!(error, StateError::PageShared { holders: 2, .. }), "{error}");
    let own = pool.take_pages(1).unwrap()[0];
    let error = pool.write_page(own, &bytes[4..]).unwrap_err().to_string();
    assert_eq!(error, "state of a page: expected 128 bytes, found 124");
    assert!(pool.write_page(PAGES as u32, &bytes).is_err());
    assert_eq!(read(&pool, id), [1.0; PAGE]);
}

/// Every element of a page is a number of its own, so that each that is cleared is known.
#[test]
fn what_lies_behind_the_tokens_of_a_page_is_not_read() {
    let [first, second] = [
        AttentionGroup { layers: 1, kv_heads: 2, key_dim: 3, value_dim: 5, kv_type: KvType::F32 },
        AttentionGroup { layers: 2, kv_heads: 1, key_dim: 2, value_dim: 1, kv_type: KvType::F32 },
    ];
    let layout = StateLayout { attention: vec![first, second], ..layout(0) };
    let mut pool = StatePool::new(layout, &Device::Cpu).unwrap();
    let held = pool.take_pages(3).unwrap()[1];
    let count = pool.layout().bytes_per_page() as usize / 4;
    let numbers: Vec<f32> = (1..=count).map(|number| number as f32).collect();
    pool.write_page(held, cast_slice(&numbers)).unwrap();
    for tokens in 0..=PAGE {
        let mut expected = numbers.clone();
        let mut at = 0;
        for group in [first, second, second] {
            for row in 0..group.kv_heads * group.key_dim {
                expected[at + row * PAGE..][tokens..PAGE].fill(0.0);
            }
            at += group.kv_heads * group.key_dim * PAGE;
            for head in 0..group.kv_heads {
                let of_head = &mut expected[at + head * PAGE * group.value_dim..];
                of_head[tokens * group.value_dim..PAGE * group.value_dim].fill(0.0);
            }
            at += group.kv_heads * group.value_dim * PAGE;
        }
        assert_eq!(page(&pool, held, tokens), expected, "{tokens} tokens");
    }
    assert_eq!(page(&pool, held, PAGE + 1), numbers);
}

/// The kernels decide where an element of a key lies.
#[test]
fn keys_are_cleared_where_the_kernels_write_them() {
    let group =
        AttentionGroup { layers: 1, kv_heads: 2, key_dim: 16, value_dim: 8, kv_type: KvType::F32 };
    let layout = StateLayout { attention: vec![group], ..layout(0) };
    let mut pool = StatePool::new(layout, &Device::Cpu).unwrap();
    let held = pool.take_pages(1).unwrap()[0];
    let layer = pool.layer(0).unwrap();
    let kv = sconce_kernels::KvPages { keys: &layer.keys, values: &layer.values };
    let rows =
        |columns| Tensor::ones((PAGE, columns), candle_core::DType::F32, &Device::Cpu).unwrap();
    let slots: Vec<u32> = (0..PAGE as u32).map(|token| held * PAGE as u32 + token).collect();
    for tokens in 0..=PAGE {
        sconce_kernels::write_kv(kv, &rows(32), &rows(16), &slots[..tokens]).unwrap();
        // What is cleared is what those tokens did not write.
        assert_eq!(page(&pool, held, tokens), page(&pool, held, PAGE), "{tokens} tokens");
        let set = page(&pool, held, tokens).iter().filter(|value| **value == 1.0).count();
        assert_eq!(set, tokens * 48);
    }
}

#[test]
fn of_a_page_in_eight_bits_what_lies_behind_the_tokens_is_not_read() {
    const PAGE: usize = 16;
    let kv_type = KvType::Int8;
    let group = AttentionGroup { layers: 1, kv_heads: 2, key_dim: 80, value_dim: 16, kv_type };
    let layout = StateLayout { attention: vec![group], page_tokens: PAGE, ..layout(0) };
    let mut pool = StatePool::new(layout, &Device::Cpu).unwrap();
    let (fresh, used) = (pool.take_pages(1).unwrap()[0], pool.take_pages(1).unwrap()[0]);
    let bytes = pool.layout().bytes_per_page() as usize;
    assert_eq!(bytes, PAGE * 2 * (80 + 3 * 4 + 16 + 4));
    let rows = |columns: usize| {
        let numbers: Vec<f32> =
            (0..PAGE * columns).map(|index| (index % 97) as f32 - 40.0).collect();
        Tensor::from_vec(numbers, (PAGE, columns), &Device::Cpu).unwrap()
    };
    let (k, v) = (rows(160), rows(32));
    for tokens in 0..=PAGE {
        pool.write_page(fresh, &vec![0; bytes]).unwrap();
        pool.write_page(used, &vec![0xff; bytes]).unwrap();
        let [found, expected] = [used, fresh].map(|page| {
            let layer = pool.layer(0).unwrap();
            let kv = sconce_kernels::KvPages { keys: &layer.keys, values: &layer.values };
            let slots: Vec<u32> = (0..tokens).map(|token| page * 16 + token as u32).collect();
            sconce_kernels::write_kv(kv, &k, &v, &slots).unwrap();
            let mut bytes = Vec::new();
            pool.read_page(page, tokens, &mut bytes).unwrap();
            bytes
        });
        assert_eq!(found, expected, "{tokens} tokens");
        assert_eq!(found.iter().all(|byte| *byte == 0), tokens == 0);
    }
}
