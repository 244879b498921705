//! SentencePiece's joins by score as the ranked merges of pairs that `tokenizer.json` knows.

use std::collections::HashMap;

use crate::tokenizer::gguf::{GgufVocabulary, NORMAL, UNUSED, USER_DEFINED};

impl GgufVocabulary {
    /// The pairs that join to a learned piece, best first, as the converters of Hugging Face order
    /// them: by the score of what they join to; of those that join to the same, the longer left part
    /// first.
    ///
    /// `None` where scores say what no ranks can: two pieces with the same score, of which SentencePiece
    /// joins the leftmost; an unused piece that is taken apart again; a character that is no piece but
    /// part of one.
    ///
    /// What remains is a choice between pairs that overlap and join to the same piece (`a`+`ba` or
    /// `ab`+`a` in `ababa`): by place here, by rank there. Joins by rank do not leave such pairs side by
    /// side in any text known, and transformers takes the same step.
    pub(super) fn ranked_merges(&self) -> Option<Vec<[&str; 2]>> {
        let mut learned = HashMap::new();
        let mut user_defined = Vec::new();
        for (id, token) in self.tokens.iter().enumerate() {
            match self.kind(id) {
                NORMAL | UNUSED => _ = learned.insert(token.as_str(), id),
                USER_DEFINED => user_defined.push(token.as_str()),
                _ => {}
            }
        }
        // Those are cut out of the text before anything is joined, so nothing has them inside.
        user_defined.retain(|token| token.chars().count() == 1);
        let is_known = |c: &str| learned.contains_key(c) || user_defined.contains(&c);

        let mut joins: Vec<(f32, Vec<[&str; 2]>)> = Vec::new();
        for (&token, &id) in &learned {
            let ends: Vec<usize> = token.char_indices().map(|(at, _)| at).skip(1).collect();
            let chars = std::iter::zip(
                std::iter::once(0).chain(ends.iter().copied()),
                ends.iter().copied().chain([token.len()]),
            );
            if !ends.is_empty() && !chars.clone().all(|(from, to)| is_known(&token[from..to])) {
                return None;
            }
            let pairs = ends.iter().rev().map(|&at| [&token[..at], &token[at..]]);
            let pairs: Vec<_> =
                pairs.filter(|pair| pair.iter().all(|part| learned.contains_key(part))).collect();
            if pairs.is_empty() {
                continue;
            }
            if self.kind(id) == UNUSED {
                return None;
            }
            joins.push((*self.scores.get(id)?, pairs));
        }
        joins.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        if joins.windows(2).any(|two| two[0].0 == two[1].0) {
            return None;
        }
        Some(joins.into_iter().flat_map(|(_, pairs)| pairs).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocabulary(pieces: &[(&str, f32, i32)]) -> GgufVocabulary {
        GgufVocabulary {
            model: "llama".to_owned(),
            tokens: pieces.iter().map(|(token, ..)| (*token).to_owned()).collect(),
            scores: pieces.iter().map(|(_, score, _)| *score).collect(),
            token_types: pieces.iter().map(|(.., kind)| *kind).collect(),
            ..GgufVocabulary::default()
        }
    }

    #[test]
    fn the_best_score_is_ranked_first_and_of_one_piece_the_longer_left_part() {
        let vocabulary = vocabulary(&[
            ("a", -9.0, NORMAL),
            ("b", -9.0, NORMAL),
            ("ab", -2.0, NORMAL),
            ("ba", -1.0, NORMAL),
            ("aba", -3.0, NORMAL),
            ("bb", -4.0, USER_DEFINED),
        ]);
        let expected = [["b", "a"], ["a", "b"], ["ab", "a"], ["a", "ba"]];
        assert_eq!(vocabulary.ranked_merges().unwrap(), expected);
    }

    #[test]
    fn what_ranks_cannot_say_is_not_said() {
        let plain = [("a", 0.0, NORMAL), ("b", 0.0, NORMAL), ("ab", -1.0, NORMAL)];
        assert!(vocabulary(&plain).ranked_merges().is_some());
        let merges = |piece| {
            let vocabulary = vocabulary(&[&plain[..], &[piece]].concat());
            vocabulary.ranked_merges().map(|merges| merges.len())
        };
        assert_eq!(merges(("ba", -1.0, NORMAL)), None, "the score of another");
        assert_eq!(merges(("ba", -2.0, UNUSED)), None, "taken apart again");
        assert_eq!(merges(("ac", -2.0, NORMAL)), None, "c is no piece");
        assert_eq!(merges(("<x>", -2.0, UNUSED)), None, "nor is <");
        assert_eq!(merges(("\n", 0.0, USER_DEFINED)), Some(1));
    }
}
