//! Symbols: what paths of the trie are made of. Token ids, and stand-ins for media.

/// The bit that tells the stand-in for a medium from a token id.
pub const MEDIA_BIT: u32 = 1 << 31;

/// The symbol at place `index` of the stretch that a medium (an image) takes in a prompt: the top
/// bit, and 31 bits of the medium's hash and the place, so that two media share no stretch.
pub fn media_symbol(hash: u64, index: usize) -> u32 {
    let mut mixed = hash ^ (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // The finalizer of splitmix64.
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    MEDIA_BIT | (mixed >> 33) as u32
}

/// Whether `symbol` stands for a part of a medium.
pub fn is_media(symbol: u32) -> bool {
    symbol & MEDIA_BIT != 0
}

/// How many leading symbols two stretches share.
pub(super) fn common(one: &[u32], other: &[u32]) -> usize {
    /// Symbols compared at a time: equality of slices is vectorized, the search for the first
    /// difference is not.
    const BLOCK: usize = 64;
    let most = one.len().min(other.len());
    let (one, other) = (&one[..most], &other[..most]);
    let equal = one.chunks(BLOCK).zip(other.chunks(BLOCK)).take_while(|(a, b)| a == b).count();
    let from = (equal * BLOCK).min(most);
    from + one[from..].iter().zip(&other[from..]).take_while(|(a, b)| a == b).count()
}

/// Extends the hash of a path by symbols: `h = (rotl(h, 5) ^ symbol) * 0x517cc1b727220a95`, which
/// can be taken up at any offset.
pub(super) fn extend_hash(hash: u64, symbols: &[u32]) -> u64 {
    symbols.iter().fold(hash, |hash, &symbol| {
        (hash.rotate_left(5) ^ u64::from(symbol)).wrapping_mul(0x517c_c1b7_2722_0a95)
    })
}

/// The hash of the empty path of a namespace.
pub(super) fn root_hash(fingerprint: u64, instance: u32, salt: Option<&str>) -> u64 {
    let words = salt
        .into_iter()
        .flat_map(|salt| std::iter::once(0xffff_ffff).chain(salt.bytes().map(u32::from)));
    let start = extend_hash(fingerprint, &[instance]);
    words.fold(start, |hash, word| extend_hash(hash, &[word]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_common_prefix_is_found_on_both_sides_of_a_block() {
        let one: Vec<u32> = (0..200).collect();
        for at in [0, 1, 63, 64, 65, 128, 199] {
            let mut other = one.clone();
            other[at] = 999;
            assert_eq!(common(&one, &other), at);
            assert_eq!(common(&one, &one[..at]), at);
        }
        assert_eq!(common(&one, &one), 200);
    }

    #[test]
    fn a_hash_taken_up_in_the_middle_is_the_hash_of_the_whole() {
        let path: Vec<u32> = (5..50).collect();
        let root = root_hash(7, 0, None);
        assert_eq!(
            extend_hash(extend_hash(root, &path[..13]), &path[13..]),
            extend_hash(root, &path)
        );
        assert_ne!(root_hash(7, 0, None), root_hash(7, 0, Some("")));
    }

    #[test]
    fn media_are_no_tokens_and_differ_by_hash_and_by_place() {
        assert!(is_media(media_symbol(1, 0)));
        assert!(!is_media(151_645));
        assert_ne!(media_symbol(1, 0), media_symbol(2, 0));
        assert_ne!(media_symbol(1, 0), media_symbol(1, 1));
    }
}
