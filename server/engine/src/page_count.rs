//! How many pages the running sequences of a model hold, told after every step.

/// Pages in some page tables, a shared one counted once. They are counted anew only where number,
/// lengths or ends of the tables have changed, in memory that is used again.
#[derive(Debug, Default)]
pub(crate) struct PageCount {
    /// What the tables looked like.
    counted: u64,
    /// A bit for each page.
    seen: Vec<u64>,
    pages: usize,
}

impl PageCount {
    /// The pages of `tables` in a pool of `pages_max`.
    pub(crate) fn of<'a>(
        &mut self,
        tables: impl Iterator<Item = &'a [u32]> + Clone,
        pages_max: usize,
    ) -> usize {
        let looks = tables.clone().fold(0, look);
        if looks == self.counted {
            return self.pages;
        }
        self.counted = looks;
        self.seen.clear();
        self.seen.resize(pages_max.div_ceil(64), 0);
        for &page in tables.flatten() {
            self.seen[page as usize / 64] |= 1 << (page % 64);
        }
        self.pages = self.seen.iter().map(|bits| bits.count_ones() as usize).sum();
        self.pages
    }
}

/// A fingerprint with one more table in it; 0 of none.
fn look(before: u64, table: &[u32]) -> u64 {
    /// Odd, with bits spread out (that of FNV-1a).
    const PRIME: u64 = 0x0100_0000_01b3;
    let ends = [table.len() as u64, table.first().map_or(0, |page| u64::from(*page) + 1)];
    let last = table.last().map_or(0, |page| u64::from(*page) + 1);
    ends.into_iter()
        .fold(before ^ last, |hash, part| (hash.wrapping_mul(PRIME) ^ part).wrapping_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_page_counts_once_and_changes_are_seen() {
        let mut count = PageCount::default();
        let mut of = |tables: &[&[u32]]| count.of(tables.iter().copied(), 130);
        assert_eq!(of(&[]), 0);
        assert_eq!(of(&[&[1, 2, 129]]), 3);
        assert_eq!(of(&[&[1, 2, 129], &[1, 2, 64]]), 4);
        assert_eq!(of(&[&[1, 2, 129], &[3, 4, 64]]), 6);
        assert_eq!(of(&[&[1, 2, 129], &[1, 2, 3, 64]]), 5);
        assert_eq!(of(&[&[7]]), 1);
        assert_eq!(of(&[]), 0);
    }
}
