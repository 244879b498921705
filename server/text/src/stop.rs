//! Stop strings over a stream of text: what lies before a match is emitted, the match and what
//! follows is not, and only text that could still become a match is held back.
//!
//! The match that is complete first wins; of two that end at the same byte the longer one, of
//! two equal ones the first in the list. This does not depend on how the text is cut into
//! chunks. Work is linear in the text (Knuth, Morris and Pratt, one automaton per stop string).

use crate::error::TextError;

/// Most stop strings in one request.
pub const MAX_STOPS: usize = 32;

/// Longest stop string, in bytes of UTF-8.
pub const MAX_STOP_BYTES: usize = 1024;

/// Looks for the stop strings of one request in its generated text.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<Stop>,
    /// Text not yet emitted: a suffix of the stream that begins some stop string.
    held: String,
    matched: Option<usize>,
}

#[derive(Debug, Clone)]
struct Stop {
    text: String,
    /// `border[n]` is the longest proper prefix of the first `n + 1` bytes that also ends them.
    border: Vec<usize>,
    /// How many bytes of the stop string the stream now ends with.
    reached: usize,
}

impl Stop {
    fn new(text: &str) -> Self {
        let bytes = text.as_bytes();
        let mut border = vec![0; bytes.len()];
        let mut length = 0;
        for index in 1..bytes.len() {
            while length > 0 && bytes[index] != bytes[length] {
                length = border[length - 1];
            }
            length += usize::from(bytes[index] == bytes[length]);
            border[index] = length;
        }
        Self { text: text.to_owned(), border, reached: 0 }
    }

    /// Takes the stream's next byte; true if the stop string is complete.
    fn advance(&mut self, byte: u8) -> bool {
        let bytes = self.text.as_bytes();
        while self.reached > 0 && bytes[self.reached] != byte {
            self.reached = self.border[self.reached - 1];
        }
        self.reached += usize::from(bytes[self.reached] == byte);
        self.reached == bytes.len()
    }
}

impl StopMatcher {
    /// A matcher for these stop strings; none at all lets every text through.
    ///
    /// # Errors
    /// If there are more than [`MAX_STOPS`], one is empty or longer than [`MAX_STOP_BYTES`].
    pub fn new<S: AsRef<str>>(stops: &[S]) -> Result<Self, TextError> {
        if stops.len() > MAX_STOPS {
            return Err(TextError::TooManyStops { found: stops.len(), max: MAX_STOPS });
        }
        for (index, stop) in stops.iter().enumerate() {
            match stop.as_ref().len() {
                0 => return Err(TextError::EmptyStop { index }),
                found if found > MAX_STOP_BYTES => {
                    return Err(TextError::StopTooLong { index, found, max: MAX_STOP_BYTES });
                }
                _ => {}
            }
        }
        let stops = stops.iter().map(|stop| Stop::new(stop.as_ref())).collect();
        Ok(Self { stops, held: String::new(), matched: None })
    }

    /// Takes the stream's next text and returns what can be shown: nothing that belongs to a
    /// match or could still become one. After a match everything is swallowed.
    pub fn push(&mut self, text: &str) -> String {
        if self.matched.is_some() {
            return String::new();
        }
        if self.stops.is_empty() {
            return text.to_owned();
        }
        for (offset, byte) in text.bytes().enumerate() {
            let mut complete: Option<usize> = None;
            for index in 0..self.stops.len() {
                let longer =
                    |best: usize| self.stops[best].text.len() >= self.stops[index].text.len();
                let beaten = complete.is_some_and(longer);
                if self.stops[index].advance(byte) && !beaten {
                    complete = Some(index);
                }
            }
            if let Some(index) = complete {
                return self.stop_at(index, text, offset + 1);
            }
        }
        self.held.push_str(text);
        let hold = self.stops.iter().map(|stop| stop.reached).max().unwrap_or(0);
        // A stop string begins on a character, so the cut is one too.
        let kept = self.held.split_off(self.held.len() - hold);
        std::mem::replace(&mut self.held, kept)
    }

    /// The match `index` ends after `end` bytes of `text`.
    fn stop_at(&mut self, index: usize, text: &str, end: usize) -> String {
        self.matched = Some(index);
        let mut shown = std::mem::take(&mut self.held);
        shown.push_str(&text[..end]);
        shown.truncate(shown.len() - self.stops[index].text.len());
        shown
    }

    /// The text still held back, when the stream ends without a match. Empty after a match.
    pub fn finish(&mut self) -> String {
        for stop in &mut self.stops {
            stop.reached = 0;
        }
        std::mem::take(&mut self.held)
    }

    /// Which stop string matched: its position in the list.
    #[must_use]
    pub fn matched(&self) -> Option<usize> {
        self.matched
    }

    /// The stop string that matched.
    #[must_use]
    pub fn matched_stop(&self) -> Option<&str> {
        self.matched.map(|index| self.stops[index].text.as_str())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition: every prefix of the text in turn, every stop string in turn.
    fn naive(stops: &[String], text: &str) -> (String, Option<usize>) {
        for end in 0..=text.len() {
            let ending = stops
                .iter()
                .enumerate()
                .filter(|(_, s)| text.as_bytes()[..end].ends_with(s.as_bytes()));
            if let Some((index, stop)) =
                ending.min_by_key(|(index, s)| (std::cmp::Reverse(s.len()), *index))
            {
                return (text[..end - stop.len()].to_owned(), Some(index));
            }
        }
        (text.to_owned(), None)
    }

    fn chunks(text: &str, cuts: &[usize]) -> Vec<String> {
        let chars: Vec<char> = text.chars().collect();
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (chars.len() + 1)).collect();
        ends.push(chars.len());
        ends.sort_unstable();
        let mut from = 0;
        ends.into_iter()
            .map(|to| chars[std::mem::replace(&mut from, to)..to].iter().collect())
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn any_chunking_equals_a_naive_search(
            text in "[ab\u{e9}\u{1f600}]{0,30}",
            stops in prop::collection::vec("[ab\u{e9}\u{1f600}]{1,5}", 0..5),
            cuts in prop::collection::vec(0_usize..40, 0..12),
        ) {
            let (expected, index) = naive(&stops, &text);
            let mut matcher = StopMatcher::new(&stops).unwrap();
            let mut shown = String::new();
            let mut taken = String::new();
            for chunk in chunks(&text, &cuts) {
                shown.push_str(&matcher.push(&chunk));
                taken.push_str(&chunk);
                // Held back is exactly the longest suffix that begins a stop string.
                if matcher.matched().is_none() {
                    let longest = (0..=taken.len()).find(|&at| {
                        taken.is_char_boundary(at)
                            && (at == taken.len() || stops.iter().any(|s| s.starts_with(&taken[at..])))
                    });
                    prop_assert_eq!(shown.len(), longest.unwrap());
                }
            }
            shown.push_str(&matcher.finish());
            prop_assert_eq!(shown, expected);
            prop_assert_eq!(matcher.matched(), index);
            prop_assert_eq!(matcher.matched_stop(), index.map(|i| stops[i].as_str()));
        }
    }

    #[test]
    fn a_stop_string_over_three_tokens_is_trimmed_exactly() {
        let mut matcher = StopMatcher::new(&["\n\nUser:"]).unwrap();
        assert_eq!(matcher.push("Hi\n"), "Hi");
        assert_eq!(matcher.push("\nUs"), "");
        assert_eq!(matcher.push("er: you"), "");
        assert_eq!(matcher.matched_stop(), Some("\n\nUser:"));
        assert_eq!(matcher.push("more"), "");
        assert_eq!(matcher.finish(), "");
    }

    #[test]
    fn what_did_not_become_a_stop_string_is_released() {
        let mut matcher = StopMatcher::new(&["abc"]).unwrap();
        assert_eq!(matcher.push("ab"), "");
        assert_eq!(matcher.push("abd"), "ababd");
        assert_eq!(matcher.push("ab"), "");
        assert_eq!(matcher.finish(), "ab");
        assert_eq!(matcher.matched(), None);
    }

    #[test]
    fn the_bounds_are_errors_that_name_the_stop_string() {
        assert_eq!(StopMatcher::new(&["a", ""]).unwrap_err(), TextError::EmptyStop { index: 1 });
        let long = "x".repeat(MAX_STOP_BYTES + 1);
        assert!(StopMatcher::new(&[long]).unwrap_err().to_string().contains("1025"));
        assert!(StopMatcher::new(&vec!["x"; MAX_STOPS + 1]).is_err());
        assert!(StopMatcher::new(&vec!["x"; MAX_STOPS]).is_ok());
    }
}
