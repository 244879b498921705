//! Pools on GPUs, emulated: the histories of the CPU, and pages as kernels of GPUs lay them out.

use proptest::prelude::*;
use sconce_kernels::gpu::{Language, emulate};
use sconce_kernels::{KvPages, write_kv};

use super::histories::{action, play};
use super::*;

/// Tokens of a page that eight bits fit.
const TOKENS: usize = 16;

const LANGUAGES: [Language; 2] = [Language::Cuda, Language::Metal];

proptest! {
    // Emulated threads are slow.
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn everybody_reads_what_they_wrote_on_gpus(
        actions in prop::collection::vec(action(), 1..60)
    ) {
        for language in LANGUAGES {
            emulate(language, || play(pool(), &actions))?;
            emulate(language, || play(hybrid(), &actions))?;
        }
    }
}

/// Pages of two groups, in which token after token writes numbers of its own.
#[test]
fn pages_move_with_their_tokens_and_none_that_follow() {
    let group = |layers, key_dim, value_dim, kv_type| AttentionGroup {
        layers,
        kv_heads: 2,
        key_dim,
        value_dim,
        kv_type,
    };
    for kv_type in [KvType::F32, KvType::Int8] {
        let attention = vec![group(2, 16, 32, kv_type), group(1, 32, 16, kv_type)];
        let layout = StateLayout { attention, page_tokens: TOKENS, ..layout(0) };
        for language in LANGUAGES {
            emulate(language, || assert_pages_move(&layout, kv_type));
        }
    }
}

fn assert_pages_move(layout: &StateLayout, kv_type: KvType) {
    let mut pool = StatePool::new(layout.clone(), &Device::Cpu).unwrap();
    let size = layout.bytes_per_page() as usize;
    let pages = pool.take_pages(5).unwrap();
    let tokens = [16, 16, 7, 0, 1];
    // The first time with what follows the tokens, the second time without.
    let [all, few] = [[TOKENS; 5], tokens].map(|written| {
        pool.write_pages(&pages, &[vec![0; size].as_slice(); 5]).unwrap();
        for (page, tokens) in pages.iter().zip(written) {
            fill_page(&pool, *page, tokens);
        }
        let wanted: Vec<_> = pages.iter().copied().zip(tokens).collect();
        let mut blocks: Vec<_> = pages.iter().map(|_| pool.host_buffer(size)).collect();
        let mut slices: Vec<&mut [u8]> = blocks.iter_mut().map(|block| &mut **block).collect();
        pool.read_pages(&wanted, &mut slices).unwrap();
        blocks.iter().map(|block| block.to_vec()).collect::<Vec<_>>()
    });
    assert!(all == few, "{kv_type:?}: tokens that follow were read");
    assert!(all[3].iter().all(|byte| *byte == 0) && all[0].iter().any(|byte| *byte != 0));
    let others = pool.take_pages(5).unwrap();
    let slices: Vec<_> = all.iter().map(Vec::as_slice).collect();
    pool.write_pages(&others, &slices).unwrap();
    for (page, expected) in others.iter().zip(&all) {
        let mut found = Vec::new();
        pool.read_page(*page, TOKENS, &mut found).unwrap();
        assert!(found == *expected, "{kv_type:?}: page {page}");
    }
}

/// Writes the first tokens of a page in all layers.
fn fill_page(pool: &StatePool, page: u32, tokens: usize) {
    let slots: Vec<u32> = (0..tokens as u32).map(|token| page * TOKENS as u32 + token).collect();
    let mut layer = 0;
    for group in &pool.layout().attention {
        for _ in 0..group.layers {
            let kv = pool.layer(layer).unwrap();
            let rows = |dim: usize| {
                let columns = group.kv_heads * dim;
                let number = |index: usize| ((index * 7 + layer) % 97) as f32 - 40.5;
                let numbers: Vec<f32> = (0..TOKENS * columns).map(number).collect();
                Tensor::from_vec(numbers, (TOKENS, columns), &Device::Cpu).unwrap()
            };
            let pages = KvPages { keys: &kv.keys, values: &kv.values };
            write_kv(pages, &rows(group.key_dim), &rows(group.value_dim), &slots).unwrap();
            layer += 1;
        }
    }
}
