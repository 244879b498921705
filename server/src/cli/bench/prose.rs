//! Prose without end, and numbers that look random: the same for the same seed.

/// Where the sentences come from.
pub(super) const PAGE: &str = include_str!("page.txt");

/// The sentences of the built-in page in an order that a seed decides.
#[derive(Debug, Clone)]
pub(super) struct Sentences {
    sentences: Vec<String>,
    draw: Draw,
}

impl Sentences {
    /// The order that `seed` decides.
    pub(super) fn new(seed: u64) -> Self {
        let words: Vec<&str> = PAGE.split_whitespace().collect();
        let sentences =
            words.join(" ").split_inclusive(". ").map(|found| found.trim().to_owned()).collect();
        Self { sentences, draw: Draw::new(seed) }
    }

    /// A number that no other text is likely to begin with.
    pub(super) fn opening(&mut self) -> String {
        format!("{:08}.", self.draw.below(100_000_000))
    }

    /// Adds sentences to `text` until it has `bytes`.
    pub(super) fn extend(&mut self, text: &mut String, bytes: usize) {
        while text.len() < bytes {
            text.push(' ');
            *text += &self.sentences[self.draw.below(self.sentences.len())];
        }
    }
}

/// Numbers that look random: SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Debug, Clone)]
pub(super) struct Draw(u64);

impl Draw {
    /// The numbers that `seed` decides.
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound`, which is not 0.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// A number of a range, both ends included.
    pub(super) fn within(&mut self, (least, most): (usize, usize)) -> usize {
        least + self.below(most - least + 1)
    }

    /// A number in [0, 1).
    pub(super) fn share(&mut self) -> f64 {
        // As many bits as a double has.
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Seconds between two arrivals of a Poisson process of `rate` a second.
    pub(super) fn interval(&mut self, rate: f64) -> f64 {
        -(1.0 - self.share()).ln() / rate
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_are_as_many_as_the_rate_says_and_as_irregular_as_poisson() {
        let mut draw = Draw::new(1);
        let count = 20_000;
        let intervals: Vec<f64> = (0..count).map(|_| draw.interval(4.0)).collect();
        let mean = intervals.iter().sum::<f64>() / f64::from(count);
        let squares: f64 = intervals.iter().map(|interval| (interval - mean).powi(2)).sum();
        let deviation = (squares / f64::from(count)).sqrt();
        // Of an exponential distribution both are the same.
        assert!((mean - 0.25).abs() < 0.01, "{mean}");
        assert!((deviation - 0.25).abs() < 0.01, "{deviation}");
    }

    #[test]
    fn a_range_has_both_its_ends() {
        let mut draw = Draw::new(2);
        let drawn: std::collections::BTreeSet<usize> =
            (0..200).map(|_| draw.within((3, 5))).collect();
        assert_eq!(drawn.into_iter().collect::<Vec<_>>(), [3, 4, 5]);
    }
}
