//! The operators on entries on the CPU: copies.

use std::ops::Range;

use super::{Packing, Word};

pub(super) fn gather<T: Word>(
    packed: &mut [u32],
    pool: &[T],
    entries: &[u32],
    (len, Packing { stride, offset }): (usize, Packing),
) {
    for (index, entry) in entries.iter().enumerate() {
        let words = &mut packed[index * stride + offset..][..len];
        for (word, element) in words.iter_mut().zip(&pool[range(*entry, len)]) {
            *word = element.to_word();
        }
    }
}

pub(super) fn scatter<T: Word>(
    pool: &mut [T],
    packed: &[u32],
    entries: &[u32],
    (len, Packing { stride, offset }): (usize, Packing),
) {
    for (index, entry) in entries.iter().enumerate() {
        let words = &packed[index * stride + offset..][..len];
        for (element, word) in pool[range(*entry, len)].iter_mut().zip(words) {
            *element = T::of_word(*word);
        }
    }
}

pub(super) fn copy<T: Word>(pool: &mut [T], [from, to]: [u32; 2], len: usize) {
    pool.copy_within(range(from, len), range(to, len).start);
}

pub(super) fn clear<T: Word>(pool: &mut [T], entry: u32, len: usize) {
    pool[range(entry, len)].fill(T::of_word(0));
}

/// The elements of an entry.
fn range(entry: u32, len: usize) -> Range<usize> {
    entry as usize * len..(entry as usize + 1) * len
}
