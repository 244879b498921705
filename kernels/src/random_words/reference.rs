//! The definition of `random_words`: a hash of where a word is, so that every word can be made alone.

/// Word `index` of the sequence of `seed`.
pub fn word(index: u32, seed: u64) -> u32 {
    let (low, high) = (seed as u32, (seed >> 32) as u32);
    mixed(mixed(index.wrapping_add(low)) ^ high)
}

/// One to one, and every bit depends on every bit: "lowbias32" by C. Wellons, "Prospecting for Hash
/// Functions" (2018).
pub fn mixed(mut word: u32) -> u32 {
    word = (word ^ word >> 16).wrapping_mul(0x7feb_352d);
    word = (word ^ word >> 15).wrapping_mul(0x846c_a68b);
    word ^ word >> 16
}
