//! Text to ids as SentencePiece's BPE does it, from scores alone (Kudo and Richardson,
//! arXiv 1808.06226): the pair whose union has the best score is joined first, the leftmost of
//! equals; what stays unknown falls back to bytes. Work is `n log n` in the length of the text.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::ops::Range;

use crate::tokenizer::marks::Tokens;

/// What SentencePiece knows of one vocabulary entry.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Piece {
    id: u32,
    score: f32,
    /// Pieces that may be joined on the way but not be left over.
    unused: bool,
}

/// Pieces by text, byte tokens and the unknown token.
#[derive(Debug)]
pub(crate) struct SentencePiece {
    pieces: HashMap<Box<str>, Piece>,
    bytes: Box<[Option<u32>; 256]>,
    unknown: Option<u32>,
}

impl SentencePiece {
    pub(crate) fn new(unknown: Option<u32>) -> Self {
        Self { pieces: HashMap::new(), bytes: Box::new([None; 256]), unknown }
    }

    /// Adds a piece that text can be joined to; false if there is one with this text.
    pub(crate) fn add(&mut self, text: &str, id: u32, score: f32, unused: bool) -> bool {
        self.pieces.insert(text.into(), Piece { id, score, unused }).is_none()
    }

    /// Adds the token of a single byte.
    pub(crate) fn add_byte(&mut self, byte: u8, id: u32) {
        self.bytes[usize::from(byte)].get_or_insert(id);
    }

    /// The first byte value without a token, if any.
    pub(crate) fn missing_byte(&self) -> Option<u8> {
        (0..=255).find(|&byte: &u8| self.bytes[usize::from(byte)].is_none())
    }

    /// Appends the ids of `text`, in which spaces are already written as U+2581, with the bytes of
    /// it that they end at.
    pub(crate) fn encode(&self, text: &str, tokens: &mut Tokens) {
        let mut joiner = Joiner::new(self, text);
        joiner.run();
        let mut at = 0;
        while at < joiner.symbols.len() {
            let symbol = joiner.symbols[at];
            self.emit(text, symbol.start..symbol.end, &joiner.splits, tokens);
            at = symbol.next;
        }
    }

    /// The ids of one symbol: its piece, the parts of an unused piece, or bytes.
    fn emit(
        &self,
        text: &str,
        whole: Range<usize>,
        splits: &HashMap<&str, usize>,
        tokens: &mut Tokens,
    ) {
        // Parts still to be written, the next one last.
        let mut parts = vec![whole];
        while let Some(part) = parts.pop() {
            let symbol = &text[part.clone()];
            match self.pieces.get(symbol) {
                Some(piece) if !piece.unused => tokens.push(piece.id, part.end),
                found => match splits.get(symbol) {
                    Some(&left) => {
                        parts.push(part.start + left..part.end);
                        parts.push(part.start..part.start + left);
                    }
                    None => match found {
                        Some(piece) => tokens.push(piece.id, part.end),
                        None => self.emit_bytes(symbol, part.end, tokens),
                    },
                },
            }
        }
    }

    fn emit_bytes(&self, symbol: &str, end: usize, tokens: &mut Tokens) {
        let before = tokens.ids.len();
        for byte in symbol.bytes() {
            match self.bytes[usize::from(byte)] {
                Some(id) => tokens.push(id, end),
                None => {
                    // Bytes are all or nothing, as in SentencePiece.
                    tokens.truncate(before);
                    if let Some(id) = self.unknown {
                        tokens.push(id, end);
                    }
                    return;
                }
            }
        }
    }
}

/// A run of text in a doubly linked list; `next` and `previous` are indices, `usize::MAX` and
/// the length of the list mark the ends. An empty run was joined to its left neighbour.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    start: usize,
    end: usize,
    previous: usize,
    next: usize,
}

/// Two neighbours that could be joined.
#[derive(Debug, PartialEq)]
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// Bytes of the union: tells whether the neighbours are still the same.
    bytes: usize,
}

impl Eq for Pair {}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then_with(|| other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

struct Joiner<'a> {
    model: &'a SentencePiece,
    text: &'a str,
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Pair>,
    /// Where the text of an unused piece was joined: the bytes of its left part.
    splits: HashMap<&'a str, usize>,
}

impl<'a> Joiner<'a> {
    fn new(model: &'a SentencePiece, text: &'a str) -> Self {
        let mut symbols = Vec::new();
        for (index, (start, c)) in text.char_indices().enumerate() {
            symbols.push(Symbol {
                start,
                end: start + c.len_utf8(),
                previous: index.wrapping_sub(1),
                next: index + 1,
            });
        }
        Self { model, text, symbols, queue: BinaryHeap::new(), splits: HashMap::new() }
    }

    fn offer(&mut self, left: usize, right: usize) {
        let (Some(a), Some(b)) = (self.symbols.get(left), self.symbols.get(right)) else {
            return;
        };
        let union = &self.text[a.start..b.end];
        let Some(piece) = self.model.pieces.get(union) else { return };
        if piece.unused {
            self.splits.insert(union, a.end - a.start);
        }
        self.queue.push(Pair { score: piece.score, left, right, bytes: union.len() });
    }

    fn run(&mut self) {
        for right in 1..self.symbols.len() {
            self.offer(right - 1, right);
        }
        while let Some(pair) = self.queue.pop() {
            let (left, right) = (self.symbols[pair.left], self.symbols[pair.right]);
            let gone = left.start == left.end || right.start == right.end;
            if gone || right.end - left.start != pair.bytes {
                continue;
            }
            self.symbols[pair.left].end = right.end;
            self.symbols[pair.left].next = right.next;
            self.symbols[pair.right].end = right.start;
            if let Some(after) = self.symbols.get_mut(right.next) {
                after.previous = pair.left;
            }
            self.offer(left.previous, pair.left);
            self.offer(pair.left, right.next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(pieces: &[(&str, f32, bool)]) -> SentencePiece {
        let mut model = SentencePiece::new(Some(0));
        for (index, (text, score, unused)) in pieces.iter().enumerate() {
            assert!(model.add(text, index as u32 + 1, *score, *unused));
        }
        model
    }

    fn encode(model: &SentencePiece, text: &str) -> Vec<u32> {
        let mut tokens = Tokens::default();
        model.encode(text, &mut tokens);
        assert_eq!(tokens.ends.len(), tokens.ids.len());
        assert!(tokens.ends.is_sorted() && tokens.ends.last().is_none_or(|&end| end == text.len()));
        tokens.ids
    }

    #[test]
    fn the_best_score_is_joined_first_and_the_leftmost_of_equals() {
        let pieces =
            [("a", 0.0, false), ("b", 0.0, false), ("ab", -2.0, false), ("ba", -1.0, false)];
        assert_eq!(encode(&model(&pieces), "aba"), [1, 4]);
        let pieces = [("a", 0.0, false), ("aa", -1.0, false)];
        assert_eq!(encode(&model(&pieces), "aaa"), [2, 1]);
    }

    #[test]
    fn an_unused_piece_is_a_stepping_stone_and_is_taken_apart_if_left_over() {
        let pieces = [
            ("a", 0.0, false),
            ("b", 0.0, false),
            ("c", 0.0, false),
            ("ab", -1.0, true),
            ("abc", -2.0, false),
        ];
        let model = model(&pieces);
        assert_eq!(encode(&model, "abc"), [5]);
        assert_eq!(encode(&model, "abb"), [1, 2, 2]);
    }

    #[test]
    fn what_is_unknown_becomes_bytes_or_the_unknown_token() {
        let mut model = model(&[("a", 0.0, false)]);
        assert_eq!(encode(&model, "a\u{e9}a"), [1, 0, 1]);
        model.add_byte(0xc3, 70);
        assert_eq!(encode(&model, "\u{e9}"), [0]);
        model.add_byte(0xa9, 71);
        assert_eq!(encode(&model, "a\u{e9}"), [1, 70, 71]);
        assert_eq!(model.missing_byte(), Some(0));
    }

    #[test]
    fn a_mebibyte_of_one_letter_is_joined_without_quadratic_work() {
        let model = model(&[("a", 0.0, false), ("aa", -1.0, false), ("aaaa", -2.0, false)]);
        assert_eq!(encode(&model, &"a".repeat(1 << 20)).len(), 1 << 18);
    }
}
