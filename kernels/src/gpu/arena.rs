//! Blocks of a few sizes, cut from slabs that are dear to allocate, as the driver locks each page of
//! them. A slab has blocks of one size until all of them are free, then it may get another.

use std::collections::BTreeSet;

/// Most bytes of a slab, unless a block has more. A new one has as many blocks as fit, and nothing else.
const SLAB_BYTES: usize = 64 << 20;
/// An idle slab is cut into blocks of another size if these leave no more than one part in so many of
/// it: what is left is locked, and nobody counts it.
const REST_PARTS_MIN: usize = 8;
/// Most bytes of slabs without a block in use that are kept: the state of a long conversation or two.
const IDLE_BYTES_MAX: usize = 2 << 30;
/// Blocks start at multiples of as many bytes.
const ALIGNMENT: usize = 16;
/// Bytes behind the blocks of a slab, so that no block of another one follows them: who copies blocks
/// that follow one another at once must not cross from one allocation into the next.
const GAP: usize = ALIGNMENT;

/// Where slabs come from.
pub(super) trait Source {
    /// The address of `bytes` new bytes, at a multiple of [`ALIGNMENT`]; none if there is no room.
    fn allocate(&mut self, bytes: usize) -> Option<usize>;

    /// Takes them back.
    fn free(&mut self, address: usize);
}

/// See the module.
pub(super) struct Arena<S> {
    source: S,
    slabs: Vec<Slab>,
}

struct Slab {
    address: usize,
    bytes: usize,
    /// Bytes of a block.
    block: usize,
    /// Blocks that nobody has. The first is taken first, so that what is taken in a row lies in one.
    free: BTreeSet<usize>,
    /// How many somebody has.
    used: usize,
}

impl Slab {
    fn has_blocks_of(&self, block: usize) -> bool {
        self.block == block && !self.free.is_empty()
    }

    /// Bytes that are left if all of it becomes blocks of another size; none if it cannot.
    fn rest(&self, block: usize) -> Option<usize> {
        (self.used == 0 && self.bytes >= block).then(|| self.bytes % block)
    }

    fn cut(&mut self, block: usize) {
        self.block = block;
        let blocks = 0..self.bytes / block;
        self.free = blocks.map(|index| self.address + index * block).collect();
    }
}

impl<S: Source> Arena<S> {
    pub(super) fn new(source: S) -> Self {
        Self { source, slabs: Vec::new() }
    }

    /// The address of a block of `len` bytes, at least one; none if there is no room.
    pub(super) fn take(&mut self, len: usize) -> Option<usize> {
        let block = len.checked_next_multiple_of(ALIGNMENT)?;
        let found = self.slabs.iter().position(|slab| slab.has_blocks_of(block));
        let index = match found {
            Some(index) => index,
            None => self.cut(block)?,
        };
        let slab = &mut self.slabs[index];
        let address = slab.free.pop_first()?;
        slab.used += 1;
        Some(address)
    }

    /// A slab of blocks of a size: one that is idle, or a new one.
    fn cut(&mut self, block: usize) -> Option<usize> {
        let fitting = |slab: &Slab, rest: usize| rest <= slab.bytes / REST_PARTS_MIN;
        let index = self
            .idle(block, fitting)
            .or_else(|| self.allocate(block))
            // Better than nothing, where no more memory can be locked.
            .or_else(|| self.idle(block, |_, _| true))?;
        self.slabs[index].cut(block);
        Some(index)
    }

    /// The smallest idle slab that can be cut into blocks of a size, by what that would leave of it.
    fn idle(&self, block: usize, may: impl Fn(&Slab, usize) -> bool) -> Option<usize> {
        let fits = |slab: &Slab| slab.rest(block).is_some_and(|rest| may(slab, rest));
        let found = self.slabs.iter().enumerate().filter(|(_, slab)| fits(slab));
        found.min_by_key(|(_, slab)| slab.bytes).map(|(index, _)| index)
    }

    /// A new slab for blocks of a size.
    fn allocate(&mut self, block: usize) -> Option<usize> {
        let bytes = block * (SLAB_BYTES / block).max(1);
        let address = self.source.allocate(bytes.checked_add(GAP)?)?;
        self.slabs.push(Slab { address, bytes, block, free: BTreeSet::new(), used: 0 });
        Some(self.slabs.len() - 1)
    }

    /// Takes a block back.
    pub(super) fn release(&mut self, address: usize) {
        let of = |slab: &&mut Slab| (slab.address..slab.address + slab.bytes).contains(&address);
        let Some(slab) = self.slabs.iter_mut().find(of) else { return };
        slab.free.insert(address);
        slab.used -= 1;
        if slab.used > 0 {
            return;
        }
        let idle = |slab: &Slab| if slab.used == 0 { slab.bytes } else { 0 };
        while self.slabs.iter().map(idle).sum::<usize>() > IDLE_BYTES_MAX {
            let Some(index) = self.slabs.iter().position(|slab| slab.used == 0) else { return };
            let slab = self.slabs.swap_remove(index);
            self.source.free(slab.address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Slabs one behind another, as many as there may be.
    struct Counted {
        made: usize,
        bytes: usize,
        next: usize,
        held: BTreeSet<usize>,
        max: usize,
    }

    impl Source for Counted {
        fn allocate(&mut self, bytes: usize) -> Option<usize> {
            if self.held.len() == self.max {
                return None;
            }
            self.made += 1;
            self.bytes += bytes;
            self.held.insert(self.next);
            self.next += bytes;
            Some(self.next - bytes)
        }

        fn free(&mut self, address: usize) {
            assert!(self.held.remove(&address));
        }
    }

    fn arena(max: usize) -> Arena<Counted> {
        Arena::new(Counted { made: 0, bytes: 0, next: 1 << 40, held: BTreeSet::new(), max })
    }

    #[test]
    fn blocks_of_one_size_follow_one_another_and_are_used_again() {
        let mut arena = arena(1);
        let blocks: Vec<_> = (0..3).map(|_| arena.take(100).unwrap()).collect();
        assert_eq!([blocks[1] - blocks[0], blocks[2] - blocks[1]], [112; 2]);
        arena.release(blocks[1]);
        arena.release(blocks[0]);
        assert_eq!([arena.take(112).unwrap(), arena.take(100).unwrap()], [blocks[0], blocks[1]]);
        assert_eq!(arena.source.made, 1);
    }

    #[test]
    fn a_slab_gets_another_size_when_all_of_it_is_free() {
        let mut arena = arena(1);
        let block = arena.take(1000).unwrap();
        assert_eq!(arena.take(2000), None);
        arena.release(block);
        assert_eq!(arena.take(2000), Some(block));
        assert_eq!(arena.take(1000), None);
    }

    #[test]
    fn a_slab_is_full_when_its_blocks_are_taken() {
        let mut arena = arena(2);
        let half = SLAB_BYTES / 2;
        let blocks = [(); 4].map(|()| arena.take(half).unwrap());
        assert_eq!(blocks.iter().collect::<BTreeSet<_>>().len(), 4);
        assert_eq!(blocks[1] - blocks[0], half);
        assert!(blocks[2] - blocks[1] > half, "a block of another slab follows");
        assert_eq!((arena.source.made, arena.take(half)), (2, None));
    }

    #[test]
    fn a_slab_has_no_more_bytes_than_its_blocks() {
        let mib = |count: usize| count << 20;
        for (block, blocks) in [
            (mib(1), 64),
            (mib(16) + 16, 3),
            (mib(33), 1),
            (mib(63), 1),
            (mib(64), 1),
            (mib(65), 1),
            (mib(600), 1),
        ] {
            let mut arena = arena(1);
            let taken = std::iter::from_fn(|| arena.take(block)).count();
            assert_eq!(taken, blocks, "{block} bytes");
            assert_eq!(arena.source.bytes, taken * block + GAP, "{block} bytes");
        }
    }

    #[test]
    fn an_idle_slab_that_another_size_would_waste_is_left_as_it_is_while_there_is_more() {
        let mut arena = arena(2);
        let small = arena.take(1 << 20).unwrap();
        arena.release(small);
        let large = arena.take(40 << 20).unwrap();
        assert_eq!(arena.source.made, 2, "40 of 64 MiB would leave 24");
        let second = arena.take(40 << 20).unwrap();
        assert_eq!((arena.source.made, second), (2, small), "there is no more");
        arena.release(second);
        // Four of 15 MiB leave one in sixteen.
        assert_eq!(arena.take(15 << 20), Some(small));
        arena.release(large);
    }

    #[test]
    fn idle_slabs_are_kept_up_to_a_bound() {
        let mut arena = arena(usize::MAX);
        let large = 600 << 20;
        let blocks = [(); 5].map(|()| arena.take(large).unwrap());
        assert_eq!(arena.source.held.len(), 5);
        blocks.iter().for_each(|block| arena.release(*block));
        assert_eq!(arena.source.held.len(), 3);
        assert!(blocks.contains(&arena.take(large).unwrap()));
        assert_eq!(arena.source.made, 5);
    }
}
