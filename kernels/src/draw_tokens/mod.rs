//! The next token of each row, drawn where its largest logits are, so that it alone leaves the device:
//! greedily, or after top_k, softmax, top_p and min_p, in this order.
//!
//! A draw falls between the edges of two tokens' masses, and a filter between two tokens. GPUs add in
//! f32, and where an edge is so near that f64 might fall to its other side, no token is given: then
//! whoever asked draws from the largest logits, as where more than these are needed. So a device gives
//! the token that f64 gives of these logits and sums.

mod cpu;
mod gpu;
pub mod reference;

use candle_core::{DType, Device, Tensor};

use crate::access::{View, check, check_dim, distinct, rows_of, write};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::top_logits::TopLogits;

/// How near an edge may be to a draw, as a part of the mass that is drawn from, or to `min_p`, as a part
/// of it. Three times what sums of [`TOP_MAX`](crate::top_logits::TOP_MAX) weights in f32 are off by.
pub const MARGIN: f32 = 1e-5;
/// Temperatures below it, but zero, are not divided by: f32 has no digits left there.
pub const TEMPERATURE_MIN: f32 = 1e-6;
/// A `min_p` below it, but zero, is of weights of which f32 knows fewer digits than [`MARGIN`].
pub const MIN_P_MIN: f32 = 1e-20;

/// The word of a row without a token.
const UNDRAWN: u32 = u32::MAX;
/// The word of a row with a logit that is not finite.
const NOT_FINITE: u32 = u32::MAX - 1;

/// How a row's token is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// Divides the logits; 0 takes the largest.
    pub temperature: f32,
    /// So many of the largest are left; 0 leaves all.
    pub top_k: usize,
    /// Of these, the first that together have this part of their mass; 1 leaves all.
    pub top_p: f32,
    /// Of these, those with this part of the largest's mass; 0 leaves all.
    pub min_p: f32,
    /// Where in the mass of what is left the token lies, in [0, 1).
    pub uniform: f64,
}

impl Draw {
    /// The largest logit's token.
    pub const GREEDY: Self =
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, uniform: 0.0 };

    /// How many of a row's `available` largest logits it may look at.
    pub fn looks_at(&self, available: usize) -> usize {
        match self.top_k {
            _ if self.temperature == 0.0 => 1.min(available),
            top_k if (1..available).contains(&top_k) => top_k,
            _ => available,
        }
    }

    /// Whether f32 is enough for its numbers.
    fn is_plain(&self) -> bool {
        (self.temperature == 0.0 || self.temperature >= TEMPERATURE_MIN)
            && (self.min_p == 0.0 || self.min_p >= MIN_P_MIN)
    }
}

/// What came of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drawn {
    /// Its next token.
    Token(u32),
    /// Its largest logits do not tell, or nothing was to be drawn.
    Undrawn,
    /// A logit is an infinity or not a number.
    NotFinite,
}

impl Drawn {
    /// What a word of [`DrawnTokens::words`] says.
    pub fn of(word: u32) -> Self {
        match word {
            UNDRAWN => Self::Undrawn,
            NOT_FINITE => Self::NotFinite,
            id => Self::Token(id),
        }
    }

    fn word(self) -> u32 {
        match self {
            Self::Token(id) => id,
            Self::Undrawn => UNDRAWN,
            Self::NotFinite => NOT_FINITE,
        }
    }
}

/// The tokens of the rows of a step, allocated once.
#[derive(Debug)]
pub struct DrawnTokens {
    /// `[rows_max, 1]`, u32: see [`Drawn::of`].
    pub words: Tensor,
}

impl DrawnTokens {
    /// Room for at most `rows_max` rows.
    ///
    /// # Errors
    /// A device that cannot allocate.
    pub fn new(rows_max: usize, device: &Device) -> Result<Self> {
        Ok(Self { words: Tensor::zeros((rows_max, 1), DType::U32, device)? })
    }

    /// Bytes that as much room takes on a device.
    pub fn bytes_for(rows_max: usize) -> u64 {
        rows_max as u64 * 4
    }

    /// Draws a token for each of `draws` from a row of `top`, in which at least as many logits were
    /// found as the draw [looks at](Draw::looks_at), with its temperature; none where there is no draw.
    /// `counts` says how many were found.
    ///
    /// # Errors
    /// More rows than there is room for, counts of other rows or beyond what `top` holds, tensors that
    /// are not contiguous, a device without an implementation.
    pub fn draw(&mut self, top: &TopLogits, draws: &[Option<Draw>], counts: &[u32]) -> Result<()> {
        const OP: &str = "draw_tokens";
        let rows = draws.len();
        let (room, _) = rows_of(OP, "words", &self.words, 0)?;
        check(OP, "draws", rows <= room, || (format!("at most {room}"), rows.to_string()))?;
        check_dim(OP, "counts", counts.len(), rows)?;
        let (_, held) = rows_of(OP, "values", &top.values, rows)?;
        let most = counts.iter().max().map_or(0, |count| *count as usize);
        check(OP, "counts", most <= held, || (format!("at most {held}"), most.to_string()))?;
        let inputs = [("values", &top.values), ("ids", &top.ids), ("sums", &top.sums)];
        distinct(OP, &self.words, &inputs)?;
        let rows = Rows { draws, counts, vocab: top.vocab(), held };
        if let Some(gpu) = Gpu::of(&top.values) {
            return gpu::draw(gpu, self, top, rows);
        }
        let [values, sums] =
            [View::new(OP, "values", &top.values)?, View::new(OP, "sums", &top.sums)?];
        let ids = View::new(OP, "ids", &top.ids)?;
        let (values, ids, sums) = (values.slice()?, ids.elements()?, sums.slice()?);
        write(OP, &self.words, |words| {
            cpu::draw(words, values, ids, sums, rows);
            Ok(())
        })
    }
}

/// What is to be drawn.
#[derive(Debug, Clone, Copy)]
struct Rows<'a> {
    draws: &'a [Option<Draw>],
    /// Logits that were found of each row.
    counts: &'a [u32],
    /// Logits of a row.
    vocab: usize,
    /// Logits that there is room for in a row of what was found.
    held: usize,
}

impl Rows<'_> {
    /// The draw of a row and its number of logits; none where the device draws nothing.
    fn get(&self, row: usize) -> Option<(Draw, usize)> {
        let count = self.counts[row] as usize;
        let draw = self.draws[row].filter(|draw| count > 0 && draw.is_plain())?;
        Some((draw, count))
    }
}
