//! Stop strings against the definition: of all matches the one that ends first, of two that end at
//! the same byte the longer one; what lies before it is shown, however the text was cut.

use arbitrary::{Result, Unstructured};
use sconce_text::StopMatcher;

use crate::text::{noises, several};

pub(crate) fn run(bytes: &[u8]) {
    // Bytes that do not last draw zeros, so this fails for no input.
    let _ = check(&mut Unstructured::new(bytes));
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    noises(32, 120)
}

/// Few letters, so that matches begin in matches.
fn word(u: &mut Unstructured<'_>, most: usize) -> Result<String> {
    let letters = ["a", "b", "ab", "\u{e9}", "\u{1f600}"];
    Ok(several(u, most, |u| u.choose(&letters).copied())?.concat())
}

fn check(u: &mut Unstructured<'_>) -> Result<()> {
    let stops = several(u, 5, |u| word(u, 6))?;
    let pieces = several(u, 40, |u| word(u, 8))?;
    let Ok(mut matcher) = StopMatcher::new(&stops) else {
        assert!(stops.iter().any(String::is_empty), "{stops:?} were refused");
        return Ok(());
    };
    let mut shown = String::new();
    for piece in &pieces {
        shown += &matcher.push(piece);
    }
    shown += &matcher.finish();
    let (expected, matched) = naive(&stops, &pieces.concat());
    assert_eq!((shown, matcher.matched()), (expected, matched), "{stops:?} in {pieces:?}");
    Ok(())
}

fn naive(stops: &[String], text: &str) -> (String, Option<usize>) {
    for end in 1..=text.len() {
        let mut best: Option<usize> = None;
        for (index, stop) in stops.iter().enumerate() {
            let longer = best.is_none_or(|best| stop.len() > stops[best].len());
            if longer && text.as_bytes()[..end].ends_with(stop.as_bytes()) {
                best = Some(index);
            }
        }
        if let Some(index) = best {
            return (text[..end - stops[index].len()].to_owned(), Some(index));
        }
    }
    (text.to_owned(), None)
}
