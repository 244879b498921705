//! Cutting text with the regular expressions of pre-tokenizers, in linear time.
//!
//! Nearly all of them end in `\s+(?!\S)|\s+`, whose look-ahead needs a backtracking engine: one
//! that gives up on a long run of spaces. Here the look-ahead is done by hand and the rest runs on
//! a finite automaton; only patterns with other look-around keep the backtracking engine, and its
//! limits are errors, never wrong cuts.

use tokenizers::tokenizer::pattern::Pattern;

/// The ending that stands for: a run of white space, without its last character if a word
/// follows (that one goes with the word).
const WHITESPACE_TAIL: &str = r"|\s+(?!\S)|\s+";

/// GPT-2's pattern, which byte-level tokenizers use unless they say otherwise.
pub(crate) const GPT2_PATTERN: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A compiled pattern.
#[derive(Debug)]
pub(crate) struct Splitter {
    engine: Engine,
    /// Everything before the white-space ending, anchored; `None` without such an ending.
    head: Option<Engine>,
}

#[derive(Debug)]
enum Engine {
    Automaton(regex::Regex),
    Backtracking(fancy_regex::Regex),
}

impl Engine {
    fn new(pattern: &str) -> Result<Self, BoxError> {
        // The automaton would read a possessive quantifier as a nested one.
        if !has_possessive_quantifier(pattern)
            && let Ok(regex) = regex::Regex::new(pattern)
        {
            return Ok(Self::Automaton(regex));
        }
        Ok(Self::Backtracking(fancy_regex::Regex::new(pattern)?))
    }

    fn find_at(&self, text: &str, start: usize) -> Result<Option<(usize, usize)>, BoxError> {
        Ok(match self {
            Self::Automaton(regex) => regex.find_at(text, start).map(|m| (m.start(), m.end())),
            Self::Backtracking(regex) => {
                regex.find_from_pos(text, start)?.map(|m| (m.start(), m.end()))
            }
        })
    }
}

impl Splitter {
    pub(crate) fn new(pattern: &str) -> Result<Self, BoxError> {
        let anchored = |p: &str| Engine::new(&format!(r"\A(?:{p})"));
        if let Some(head) = pattern.strip_suffix(WHITESPACE_TAIL)
            && !looks_around(head)
        {
            let engine = Engine::new(&format!(r"(?:{head})|\s+"))?;
            return Ok(Self { engine, head: Some(anchored(head)?) });
        }
        Ok(Self { engine: Engine::new(pattern)?, head: None })
    }

    /// The next match at or after `start`. Matches are not empty, except where the pattern
    /// itself matches nothing.
    fn next(&self, text: &str, start: usize) -> Result<Option<(usize, usize)>, BoxError> {
        let Some((from, to)) = self.engine.find_at(text, start)? else { return Ok(None) };
        let Some(head) = &self.head else { return Ok(Some((from, to))) };
        let matched = &text[from..to];
        if to == text.len() || !matched.chars().all(char::is_whitespace) {
            return Ok(Some((from, to)));
        }
        if head.find_at(&text[from..], 0)?.is_some() {
            return Ok(Some((from, to)));
        }
        // A run of white space before a word: its last character belongs to the word.
        let last = matched.char_indices().next_back().map_or(0, |(index, _)| index);
        Ok(Some((from, if last == 0 { to } else { from + last })))
    }
}

/// True for quantifiers such as `?+` or `{1,3}+` outside of character classes.
fn has_possessive_quantifier(pattern: &str) -> bool {
    let mut in_class = 0_usize;
    let mut after_quantifier = false;
    let mut chars = pattern.chars();
    let mut previous = ' ';
    while let Some(c) = chars.next() {
        if c == '+' && after_quantifier && in_class == 0 {
            return true;
        }
        after_quantifier = match c {
            '\\' => {
                chars.next();
                false
            }
            '[' | ']' => {
                in_class = if c == '[' { in_class + 1 } else { in_class.saturating_sub(1) };
                false
            }
            '?' => previous != '(',
            '*' | '+' => true,
            // `{1,3}`, but not the end of `\p{L}`.
            '}' => previous.is_ascii_digit() || previous == ',',
            _ => false,
        };
        previous = c;
    }
    false
}

/// True if cutting the text before a match could change what matches.
fn looks_around(pattern: &str) -> bool {
    [r"(?=", r"(?!", r"(?<=", r"(?<!", r"\b", r"\B", r"\A", r"\z", r"\Z", r"\G"]
        .iter()
        .any(|mark| pattern.contains(mark))
}

impl Pattern for &Splitter {
    fn find_matches(&self, inside: &str) -> Result<Vec<((usize, usize), bool)>, BoxError> {
        if inside.is_empty() {
            return Ok(vec![((0, 0), false)]);
        }
        let mut cuts = Vec::new();
        let mut done = 0;
        let mut position = 0;
        while position <= inside.len()
            && let Some((from, to)) = self.next(inside, position)?
        {
            if from == to {
                // An empty match cuts nothing here; look on from the next character.
                position = from + inside[from..].chars().next().map_or(1, char::len_utf8);
                continue;
            }
            if done < from {
                cuts.push(((done, from), false));
            }
            cuts.push(((from, to), true));
            done = to;
            position = to;
        }
        if done < inside.len() {
            cuts.push(((done, inside.len()), false));
        }
        Ok(cuts)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

    /// Compiled once: in a debug build that costs more than the matching.
    static BOTH: LazyLock<Vec<(Splitter, fancy_regex::Regex)>> = LazyLock::new(|| {
        let compile = |p| (Splitter::new(p).unwrap(), fancy_regex::Regex::new(p).unwrap());
        [GPT2_PATTERN, LLAMA3].map(compile).into()
    });

    fn by_backtracking(regex: &fancy_regex::Regex, text: &str) -> Vec<String> {
        regex.find_iter(text).map(|m| m.unwrap().as_str().to_owned()).collect()
    }

    fn by_splitter(splitter: &Splitter, text: &str) -> Vec<String> {
        assert!(matches!(splitter.engine, Engine::Automaton(_)));
        let cuts = splitter.find_matches(text).unwrap();
        cuts.iter().filter(|c| c.1).map(|((a, b), _)| text[*a..*b].to_owned()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        #[test]
        fn cuts_equal_those_of_a_backtracking_engine(
            text in r"([ \t\r\n\u{a0}\u{3000}]{0,4}(a|Bc|'s|'LL|\.|\(|7|123456|\u{4f60}|\u{e9}|\u{1f600})?){0,12}"
        ) {
            for (splitter, regex) in BOTH.iter() {
                prop_assert_eq!(by_splitter(splitter, &text), by_backtracking(regex, &text));
            }
        }
    }

    #[test]
    fn a_mebibyte_of_spaces_is_one_cut() {
        let mut text = " ".repeat(1 << 20);
        for (splitter, _) in BOTH.iter() {
            assert_eq!(by_splitter(splitter, &text).len(), 1);
        }
        text.push('x');
        for (splitter, _) in BOTH.iter() {
            let cuts = by_splitter(splitter, &text);
            assert_eq!((cuts.len(), cuts[1].as_str()), (2, " x"));
        }
    }

    #[test]
    fn possessive_quantifiers_keep_their_meaning() {
        let pattern = r"[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}|\s+(?!\S)|\s+";
        let splitter = Splitter::new(pattern).unwrap();
        assert!(matches!(splitter.engine, Engine::Backtracking(_)));
        let cuts = (&splitter).find_matches("..a  b").unwrap();
        let parts: Vec<_> = cuts.iter().map(|((a, b), _)| &"..a  b"[*a..*b]).collect();
        assert_eq!(parts, [".", ".a", " ", " b"]);
    }

    #[test]
    fn exhausting_the_backtracking_engine_is_an_error_and_no_wrong_cut() {
        let splitter = Splitter::new(r"(?:(?!c).)*(?=c)").unwrap();
        assert!((&splitter).find_matches(&"a".repeat(1_200_000)).is_err());
    }

    #[test]
    fn possessive_quantifiers_are_told_from_classes_and_properties() {
        for possessive in [r"a?+b", r"\p{L}++", r"[a]*+", r"a{1,3}+", r"a{2,}+"] {
            assert!(has_possessive_quantifier(possessive), "{possessive}");
        }
        for plain in [GPT2_PATTERN, LLAMA3, r"[*+,]", r"\*+", r"(?+", r"\p{L}+", r"[\]*+]"] {
            assert!(!has_possessive_quantifier(plain), "{plain}");
        }
    }
}
