//! A picture of what can be reused, in blocks of one size, kept true by the cache's events.
//!
//! The cache thinks in stretches of tokens in tiers, a gateway in blocks that are there or not. A
//! block is there if the state of its last token is, in whatever tier; the cache keeps none without
//! that of all tokens before. Where a prompt can be resumed only at points, a block also needs a
//! point at its end or after it on some path: without one nothing of it is ever used.

use std::collections::{BTreeSet, HashMap};

use sconce_cache::{Event, PageStart, Stretch};

/// What a reader of the picture is told.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Hashes of blocks that are there no more.
    pub(super) removed: Vec<u64>,
    /// Blocks that are there from now on; what comes before comes first.
    pub(super) stored: Vec<StoredBlock>,
}

/// A block as a reader learns of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoredBlock {
    /// Of all tokens up to its end.
    pub(super) hash: u64,
    /// That of the block before; none for the first of a prompt.
    pub(super) parent: Option<u64>,
    /// Its tokens, a block full.
    pub(super) tokens: Box<[u32]>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Mirror {
    block_tokens: usize,
    needs_points: bool,
    blocks: HashMap<u64, Block>,
    /// Points by the block at whose end they lie, or after it before the next one's.
    points: HashMap<u64, u32>,
    /// Blocks that a change may have made appear or vanish, by depth: a parent before its children.
    touched: BTreeSet<(usize, u64)>,
}

#[derive(Debug)]
struct Block {
    /// Offset of its end.
    end: usize,
    parent: Option<u64>,
    tokens: Box<[u32]>,
    /// Tiers that hold its last token.
    held: u32,
    /// Children below which, or at which, there is a point.
    supported_children: u32,
    /// Whether readers know it.
    told: bool,
}

impl Mirror {
    /// A picture of nothing.
    pub(super) fn new(block_tokens: usize, needs_points: bool) -> Self {
        Self {
            block_tokens,
            needs_points,
            blocks: HashMap::new(),
            points: HashMap::new(),
            touched: BTreeSet::new(),
        }
    }

    /// Takes in an event of the picture's own namespace.
    pub(super) fn take(&mut self, event: &Event) {
        match event {
            Event::Stored(stretch) => self.stored(stretch),
            Event::Removed(stretch) => self.removed(stretch),
            Event::PointStored(mark) => self.point(&mark.page, true),
            Event::PointRemoved(mark) => self.point(&mark.page, false),
            // What was cleared was told as removed before.
            Event::Cleared { .. } => {}
        }
    }

    /// What readers must be told since they were told last. A move from tier to tier is nothing.
    pub(super) fn changes(&mut self) -> Changes {
        let mut changes = Changes::default();
        for (_, hash) in std::mem::take(&mut self.touched) {
            let supported = !self.needs_points || self.is_supported(hash);
            let Some(block) = self.blocks.get_mut(&hash) else { continue };
            let there = block.held > 0 && supported;
            if there != block.told {
                block.told = there;
                if there {
                    changes.stored.push(block.as_told(hash));
                } else {
                    changes.removed.push(hash);
                }
            }
            if block.held == 0 && block.supported_children == 0 && !self.points.contains_key(&hash)
            {
                self.blocks.remove(&hash);
            }
        }
        // Tails first, as they are lost.
        changes.removed.reverse();
        changes
    }

    /// Everything that readers know; what comes before comes first.
    pub(super) fn told(&self) -> Vec<StoredBlock> {
        let mut told: Vec<_> = self.blocks.iter().filter(|(_, block)| block.told).collect();
        told.sort_by_key(|(hash, block)| (block.end, **hash));
        told.into_iter().map(|(&hash, block)| block.as_told(hash)).collect()
    }

    /// The blocks that end in a stretch, as (hash, parent's hash, end, tokens).
    fn each_block(&self, stretch: &Stretch, mut each: impl FnMut(u64, Option<u64>, usize, &[u32])) {
        let size = self.block_tokens;
        let before = &stretch.page.tokens;
        let mut tokens = Vec::with_capacity(before.len() + stretch.tokens.len());
        tokens.extend_from_slice(before);
        tokens.extend_from_slice(&stretch.tokens);
        let mut parent = (stretch.page.offset > 0).then_some(stretch.page.hash);
        let mut hash = stretch.page.hash;
        for (i, block) in tokens.chunks_exact(size).enumerate() {
            hash = block.iter().fold(hash, |hash, &token| extended(hash, token));
            each(hash, parent, stretch.page.offset + (i + 1) * size, block);
            parent = Some(hash);
        }
    }

    fn stored(&mut self, stretch: &Stretch) {
        let mut found = Vec::new();
        self.each_block(stretch, |hash, parent, end, tokens| {
            found.push((hash, parent, end, Box::<[u32]>::from(tokens)));
        });
        for (hash, parent, end, tokens) in found {
            let new = Block { end, parent, tokens, held: 0, supported_children: 0, told: false };
            let is_new = !self.blocks.contains_key(&hash);
            self.blocks.entry(hash).or_insert(new).held += 1;
            self.touched.insert((end, hash));
            // A point may have been told of before its stretch.
            if is_new && self.points.contains_key(&hash) {
                self.support_changed(parent, true);
            }
        }
    }

    fn removed(&mut self, stretch: &Stretch) {
        let mut found = Vec::new();
        self.each_block(stretch, |hash, _, end, _| found.push((hash, end)));
        for (hash, end) in found {
            if let Some(block) = self.blocks.get_mut(&hash) {
                block.held = block.held.saturating_sub(1);
                self.touched.insert((end, hash));
            }
        }
    }

    /// A point came or went; it lies in the page that begins at `page`.
    fn point(&mut self, page: &PageStart, came: bool) {
        if page.offset == 0 {
            return;
        }
        let was = self.is_supported(page.hash);
        let points = self.points.entry(page.hash).or_default();
        *points = if came { *points + 1 } else { points.saturating_sub(1) };
        if *points == 0 {
            self.points.remove(&page.hash);
        }
        let is = self.is_supported(page.hash);
        let Some(block) = self.blocks.get(&page.hash) else { return };
        self.touched.insert((block.end, page.hash));
        if was != is {
            self.support_changed(block.parent, is);
        }
    }

    /// Whether there is a point at a block's end or below.
    fn is_supported(&self, hash: u64) -> bool {
        let below = self.blocks.get(&hash).is_some_and(|block| block.supported_children > 0);
        below || self.points.contains_key(&hash)
    }

    /// Tells a block and those before it that one of its children became supported, or is no more.
    fn support_changed(&mut self, mut parent: Option<u64>, supported: bool) {
        while let Some(hash) = parent {
            let was = self.is_supported(hash);
            let Some(block) = self.blocks.get_mut(&hash) else { return };
            block.supported_children = if supported {
                block.supported_children + 1
            } else {
                block.supported_children.saturating_sub(1)
            };
            self.touched.insert((block.end, hash));
            parent = block.parent;
            if self.is_supported(hash) == was {
                return;
            }
        }
    }
}

impl Block {
    fn as_told(&self, hash: u64) -> StoredBlock {
        StoredBlock { hash, parent: self.parent, tokens: self.tokens.clone() }
    }
}

/// The hash of a path with one more token, as [`Stretch`] has it.
fn extended(hash: u64, token: u32) -> u64 {
    (hash.rotate_left(5) ^ u64::from(token)).wrapping_mul(0x517c_c1b7_2722_0a95)
}

#[cfg(test)]
mod tests {
    use sconce_cache::{DomainKey, Landmark, Tier};

    use super::*;

    const SIZE: usize = 4;
    const DOMAIN: DomainKey = DomainKey { fingerprint: 1, instance: 0 };

    fn hash(tokens: &[u32]) -> u64 {
        tokens.iter().fold(7, |hash, &token| extended(hash, token))
    }

    fn page(path: &[u32]) -> PageStart {
        let offset = path.len() / SIZE * SIZE;
        let (head, tail) = path.split_at(offset);
        PageStart { offset, hash: hash(head), tokens: tail.into() }
    }

    /// The part of a path from `start` on.
    fn stretch(path: &[u32], start: usize, tier: Tier) -> Stretch {
        Stretch {
            domain: DOMAIN,
            salt: None,
            start,
            tokens: path[start..].into(),
            hash_before: hash(&path[..start]),
            hash_after: hash(path),
            page: page(&path[..start]),
            tier,
        }
    }

    fn mark(path: &[u32]) -> Landmark {
        Landmark { domain: DOMAIN, salt: None, offset: path.len(), page: page(path) }
    }

    fn ends(changes: &Changes) -> Vec<&[u32]> {
        changes.stored.iter().map(|block| &block.tokens[..]).collect()
    }

    #[test]
    fn only_full_blocks_are_told_and_a_later_stretch_fills_one() {
        let mut mirror = Mirror::new(SIZE, false);
        let path: Vec<u32> = (0..11).collect();
        mirror.take(&Event::Stored(stretch(&path[..6], 0, Tier::Device)));
        let first = mirror.changes();
        assert_eq!(ends(&first), [&path[..4]]);
        assert_eq!(first.stored[0].parent, None);
        mirror.take(&Event::Stored(stretch(&path, 6, Tier::Device)));
        let second = mirror.changes();
        assert_eq!(ends(&second), [&path[4..8]]);
        assert_eq!(second.stored[0].parent, Some(first.stored[0].hash));
        assert_eq!(second.stored[0].hash, hash(&path[..8]));
        assert_eq!(mirror.told().len(), 2);
        assert_eq!(mirror.changes(), Changes::default());
    }

    #[test]
    fn a_move_between_tiers_is_no_change_in_either_order() {
        let mut mirror = Mirror::new(SIZE, false);
        let path: Vec<u32> = (0..8).collect();
        mirror.take(&Event::Stored(stretch(&path, 0, Tier::Device)));
        assert_eq!(mirror.changes().stored.len(), 2);
        mirror.take(&Event::Stored(stretch(&path, 0, Tier::Host)));
        mirror.take(&Event::Removed(stretch(&path, 0, Tier::Device)));
        assert_eq!(mirror.changes(), Changes::default());
        mirror.take(&Event::Removed(stretch(&path, 0, Tier::Host)));
        mirror.take(&Event::Stored(stretch(&path, 0, Tier::Device)));
        assert_eq!(mirror.changes(), Changes::default());
        mirror.take(&Event::Removed(stretch(&path, 4, Tier::Device)));
        assert_eq!(mirror.changes().removed, [hash(&path)]);
        mirror.take(&Event::Removed(stretch(&path[..4], 0, Tier::Device)));
        assert_eq!(mirror.changes().removed, [hash(&path[..4])]);
        assert!(mirror.blocks.is_empty() && mirror.told().is_empty());
    }

    #[test]
    fn a_branch_in_a_block_shares_the_blocks_before() {
        let mut mirror = Mirror::new(SIZE, false);
        let path: Vec<u32> = (0..8).collect();
        let branch = [&path[..6], &[90, 91]].concat();
        mirror.take(&Event::Stored(stretch(&path, 0, Tier::Device)));
        mirror.take(&Event::Stored(stretch(&branch, 6, Tier::Device)));
        let told = mirror.changes();
        assert_eq!(ends(&told).len(), 3);
        let children = told.stored.iter().filter(|block| block.parent == Some(hash(&path[..4])));
        assert_eq!(children.count(), 2);
    }

    #[test]
    fn without_a_point_after_it_a_block_cannot_be_resumed() {
        let mut mirror = Mirror::new(SIZE, true);
        let path: Vec<u32> = (0..16).collect();
        mirror.take(&Event::Stored(stretch(&path, 0, Tier::Device)));
        assert_eq!(mirror.changes(), Changes::default());
        // A point inside the third block serves two whole ones.
        mirror.take(&Event::PointStored(mark(&path[..9])));
        assert_eq!(ends(&mirror.changes()), [&path[..4], &path[4..8]]);
        mirror.take(&Event::PointStored(mark(&path)));
        assert_eq!(ends(&mirror.changes()), [&path[8..12], &path[12..]]);
        mirror.take(&Event::PointRemoved(mark(&path[..9])));
        assert_eq!(mirror.changes(), Changes::default(), "the later one serves all");
        mirror.take(&Event::PointRemoved(mark(&path)));
        assert_eq!(mirror.changes().removed.len(), 4);
        mirror.take(&Event::Removed(stretch(&path, 0, Tier::Device)));
        mirror.changes();
        assert!(mirror.blocks.is_empty() && mirror.points.is_empty());
    }

    #[test]
    fn a_lost_head_takes_everything_with_it_in_any_order() {
        let mut mirror = Mirror::new(SIZE, true);
        let path: Vec<u32> = (0..12).collect();
        mirror.take(&Event::Stored(stretch(&path[..8], 0, Tier::Device)));
        mirror.take(&Event::Stored(stretch(&path, 8, Tier::Device)));
        mirror.take(&Event::PointStored(mark(&path)));
        assert_eq!(mirror.changes().stored.len(), 3);
        mirror.take(&Event::Removed(stretch(&path[..8], 0, Tier::Device)));
        mirror.take(&Event::PointRemoved(mark(&path)));
        mirror.take(&Event::Removed(stretch(&path, 8, Tier::Device)));
        assert_eq!(mirror.changes().removed.len(), 3);
        assert!(mirror.blocks.is_empty());
    }
}
