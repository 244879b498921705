//! A stream of ids against all of them at once, and against the bytes of their pieces.

use std::sync::LazyLock;

use arbitrary::{Result, Unstructured};
use sconce_text::{DetokenizeOptions, Tokenizer};

use crate::text::{noises, several};
use crate::tokenizer::vocabularies;

/// Vocabularies of both kinds.
static TOKENIZERS: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
    let built = vocabularies().into_iter().map(|facts| Tokenizer::from_gguf(&facts));
    built.map(|made| made.expect("a vocabulary of ours")).collect()
});

pub(crate) fn run(bytes: &[u8]) {
    let _ = check(&mut Unstructured::new(bytes));
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    noises(32, 200)
}

fn check(u: &mut Unstructured<'_>) -> Result<()> {
    let tokenizer = u.choose(&TOKENIZERS)?;
    let skip_special = u.arbitrary()?;
    let size = tokenizer.vocab_size() as u32;
    let ids = several(u, 80, |u| u.int_in_range(0..=size + 3))?;
    let options = DetokenizeOptions { skip_special, start_of_text: false };
    let mut stream = tokenizer.detokenizer(options);
    let mut text = String::new();
    let mut bytes = Vec::new();
    for &id in &ids {
        text += &stream.push(id);
        assert!(stream.held_bytes() <= 3, "{} bytes are held", stream.held_bytes());
        if !(skip_special && tokenizer.is_special(id)) {
            bytes.extend_from_slice(tokenizer.piece(id).unwrap_or_default());
        }
    }
    text += &stream.finish();
    assert_eq!(text, String::from_utf8_lossy(&bytes), "{ids:?}");
    assert_eq!(stream.held_bytes(), 0);
    if let Ok(whole) = tokenizer.decode(&ids, skip_special) {
        // As the start of a text it may lose one space.
        assert!(whole == text || Some(whole.as_str()) == text.strip_prefix(' '), "{ids:?}");
    }
    Ok(())
}
