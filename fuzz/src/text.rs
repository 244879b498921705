//! Text and numbers drawn from a fuzzer's bytes, as often on an edge as not.

use arbitrary::{Result, Unstructured};

/// Text of at most `most` bytes, some of it with what tokenizers and templates look for.
pub(crate) fn text(u: &mut Unstructured<'_>, most: usize) -> Result<String> {
    const PIECES: [&str; 12] = [
        "",
        "a",
        " ",
        "\n",
        "\u{1f600}",
        "\u{e9}",
        "\u{301}",
        "\u{2581}",
        "<s>",
        "<|end|>",
        "\0",
        "the",
    ];
    let mut text = String::new();
    while text.len() < most && u.ratio(7, 8)? {
        if u.arbitrary()? {
            text.push_str(u.choose(&PIECES)?);
        } else {
            text.push(u.arbitrary()?);
        }
        if u.is_empty() {
            break;
        }
    }
    while text.len() > most {
        text.pop();
    }
    Ok(text)
}

/// A count that is small more often than not.
pub(crate) fn count(u: &mut Unstructured<'_>) -> Result<u32> {
    match u.int_in_range(0..=3)? {
        0 => u.arbitrary(),
        _ => u.int_in_range(0..=40),
    }
}

/// At most `most` of what `make` makes.
pub(crate) fn several<'a, T>(
    u: &mut Unstructured<'a>,
    most: usize,
    mut make: impl FnMut(&mut Unstructured<'a>) -> Result<T>,
) -> Result<Vec<T>> {
    let count = u.int_in_range(0..=most)?;
    (0..count).map(|_| make(u)).collect()
}

/// One of what `make` makes, or none.
pub(crate) fn perhaps<'a, T>(
    u: &mut Unstructured<'a>,
    make: impl FnOnce(&mut Unstructured<'a>) -> Result<T>,
) -> Result<Option<T>> {
    if u.ratio(1, 3)? { make(u).map(Some) } else { Ok(None) }
}

/// Bytes of all values in an order that `seed` decides: inputs for structured targets, for which
/// every byte means something. SplitMix64 (Steele, Lea, Flood 2014).
pub(crate) fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed;
    let mut draw = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) as u8
    };
    (0..bytes).map(|_| draw()).collect()
}

/// Some inputs of [`noise`].
pub(crate) fn noises(count: u64, bytes: usize) -> Vec<Vec<u8>> {
    (0..count).map(|seed| noise(seed, bytes)).collect()
}
