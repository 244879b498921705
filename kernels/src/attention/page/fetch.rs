//! Fetching the next page while one is computed with, a few lines of the cache at a time: in bursts the
//! processor would wait for memory, and memory for the processor in between.

use crate::simd::prefetch_early;

/// Bytes that are fetched together.
const LINE: usize = 64;

/// Blocks that will be read next.
#[derive(Default)]
pub(super) struct Fetch {
    /// Where the lines begin that are still to be fetched, and how many they are.
    blocks: [(usize, usize); 2],
}

impl Fetch {
    /// Two blocks, in this order.
    pub(super) fn new<T>(blocks: [&[T]; 2]) -> Self {
        Self { blocks: blocks.map(|block| (block.as_ptr().addr(), size_of_val(block) / LINE)) }
    }

    /// Fetches so many lines at most.
    #[inline(always)]
    pub(super) fn some(&mut self, lines: usize) {
        let (at, left) = self.blocks[0];
        let now = lines.min(left);
        for line in 0..now {
            prefetch_early(std::ptr::without_provenance(at + line * LINE));
        }
        self.blocks[0] = (at + now * LINE, left - now);
        if now == left {
            self.blocks = [self.blocks[1], (0, 0)];
        }
    }

    /// Fetches all that is left.
    pub(super) fn all(&mut self) {
        for _ in 0..self.blocks.len() {
            self.some(usize::MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_blocks_are_fetched_to_their_ends_and_no_further() {
        let (keys, values) = ([0_u32; 5 * LINE / 4], [0_u32; 3 * LINE / 4]);
        let mut fetch = Fetch::new([&keys, &values]);
        fetch.some(2);
        assert_eq!(fetch.blocks[0], (keys.as_ptr().addr() + 2 * LINE, 3));
        fetch.some(4);
        assert_eq!(fetch.blocks, [(values.as_ptr().addr(), 3), (0, 0)]);
        fetch.some(1);
        fetch.all();
        assert_eq!(fetch.blocks, [(0, 0); 2]);
        fetch.some(9);
        assert_eq!(fetch.blocks, [(0, 0); 2]);
    }
}
