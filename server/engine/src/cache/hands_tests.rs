//! A span that is cut, joined and moved in any order still has the bytes of its tokens, is charged
//! for what it takes, and leaves nothing behind.

use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::Device;
use proptest::prelude::*;
use sconce_cache::disk::{DiskConfig, DiskTier};
use sconce_cache::{DomainKey, Place, Storage, Tier};
use sconce_models::state::{AttentionGroup, RecurrentGroup};
use sconce_models::{KvType, PAGE_TOKENS, StateLayout, StatePool};

use super::disk::Disk;
use super::hands::{Hands, Sizes};
use super::payload::{Pages, Point, Span, page_range};

const PAGES: usize = 32;
const END: usize = 600;
/// Longer than a small file takes; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(30);

fn pool() -> StatePool {
    let layout = StateLayout {
        attention: vec![AttentionGroup {
            layers: 2,
            kv_heads: 1,
            key_dim: 1,
            value_dim: 1,
            kv_type: KvType::F32,
        }],
        recurrent: Some(RecurrentGroup {
            layers: 1,
            conv_tail: 1,
            conv_channels: 2,
            value_heads: 1,
            key_dim: 1,
            value_dim: 2,
        }),
        page_tokens: PAGE_TOKENS,
        pages_max: PAGES,
        sequences_max: 1,
        points_max: 2,
    };
    StatePool::new(layout, &Device::Cpu).unwrap()
}

/// A pool, a directory, and a path of tokens.
struct Rig {
    pool: StatePool,
    disk: Disk,
    path: Vec<u32>,
    _directory: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = DiskConfig::new(directory.path(), 1 << 24);
        let disk = Disk::new(DiskTier::open(config, Arc::new(|| {})).unwrap());
        Self { pool: pool(), disk, path: (0..END as u32).collect(), _directory: directory }
    }

    fn hands(&mut self) -> Hands<'_> {
        let sizes = Sizes::of(&self.pool);
        Hands { pool: Some(&mut self.pool), disk: Some(&mut self.disk), sizes }
    }

    /// A span on the device whose page `i` is full of the byte `i`.
    fn span(&mut self, tokens: std::ops::Range<usize>) -> Span {
        let pages = self.pool.take_pages(page_range(&tokens).len()).unwrap();
        let bytes = self.pool.layout().bytes_per_page() as usize;
        for (index, &page) in page_range(&tokens).zip(&pages) {
            self.pool.write_page(page, &vec![index as u8; bytes]).unwrap();
        }
        Span { tokens, pages: Pages::Device(pages), shares_first: false }
    }

    /// Has the files of a payload read, so that it can be moved.
    fn stage(&mut self, span: &Span) {
        let Pages::Disk(extents) = &span.pages else { return };
        let until = Instant::now() + PATIENCE;
        extents.iter().for_each(|extent| self.disk.want(&extent.record));
        while !extents.iter().all(|extent| self.disk.is_read(&extent.record)) {
            assert!(Instant::now() < until, "the files are read");
            self.disk.poll();
            std::thread::yield_now();
        }
    }

    fn unstage(&mut self, records: &[Arc<super::payload::Record>]) {
        records.iter().for_each(|record| self.disk.unwant(record));
    }

    fn move_to(&mut self, span: Span, to: Tier) -> Span {
        self.stage(&span);
        let staged: Vec<_> = match &span.pages {
            Pages::Disk(extents) => extents.iter().map(|extent| extent.record.clone()).collect(),
            _ => Vec::new(),
        };
        let path = self.path[..span.tokens.end].to_vec();
        let domain = DomainKey { fingerprint: 7, instance: 0 };
        let place = Place { domain, salt: None, start: span.tokens.start, tokens: &path };
        let most = self.hands().span_bytes_in(&span, to);
        let moved = self.hands().move_span(span, to, &place).expect("there is room");
        let bytes = self.hands().span_bytes(&moved);
        assert!(bytes <= most, "{bytes} bytes in {to}, announced as {most}");
        self.unstage(&staged);
        staged.into_iter().for_each(|record| self.disk.release(record));
        moved
    }

    /// Every token of a span must find the byte of its page.
    fn check(&mut self, span: &Span) {
        self.stage(span);
        let pages = self.hands().copy_pages(span).expect("it can be read");
        assert_eq!(pages.len(), span.page_range().len());
        for (index, bytes) in span.page_range().zip(&pages) {
            // Past its end a page may be empty.
            let full = span.tokens_in_page(index) == PAGE_TOKENS;
            assert_eq!(bytes[0], index as u8);
            assert!(!full || bytes.iter().all(|&byte| byte == index as u8));
        }
        if let Pages::Disk(extents) = &span.pages {
            let records: Vec<_> = extents.iter().map(|extent| extent.record.clone()).collect();
            self.unstage(&records);
            records.into_iter().for_each(|record| self.disk.release(record));
        }
    }
}

fn tier(span: &Span) -> Tier {
    match span.pages {
        Pages::Device(_) => Tier::Device,
        Pages::Host(_) => Tier::Host,
        Pages::Disk(_) => Tier::Disk,
    }
}

/// A sequence that went on from the middle of a page has copied it.
#[test]
fn a_joined_span_is_charged_for_a_first_page_of_its_own() {
    let mut rig = Rig::new();
    let (whole, own) = (rig.span(0..40), rig.span(40..60));
    let (before, shared) = rig.hands().split(whole, 16);
    assert_eq!((before.charged(), shared.charged()), (1, 0));
    let joined = rig.hands().join(shared, own);
    assert_eq!((joined.charged(), joined.tokens.clone()), (1, 16..60));
    // Cut again, its two parts share the page, and the first one is charged.
    let (first, second) = rig.hands().split(joined, 50);
    assert_eq!((first.charged(), second.charged()), (1, 0));
    let joined = rig.hands().join(first, second);
    // What is still shared is still charged once.
    let (head, tail) = rig.hands().split(before, 8);
    let before = rig.hands().join(head, tail);
    assert_eq!((before.charged(), joined.charged()), (1, 1));
    for span in [before, joined] {
        rig.hands().free_span(span);
    }
    assert_eq!(rig.pool.pages_used(), 0);
}

#[test]
fn a_joined_span_on_disk_is_charged_for_its_files_once() {
    let mut rig = Rig::new();
    let whole = rig.span(0..60);
    let whole = rig.move_to(whole, Tier::Disk);
    let (before, rest) = rig.hands().split(whole, 16);
    let (shared, rest) = rig.hands().split(rest, 40);
    let rest = rig.move_to(rest, Tier::Host);
    let own = rig.move_to(rest, Tier::Disk);
    let parts = rig.hands().span_bytes(&shared) + rig.hands().span_bytes(&own);
    let joined = rig.hands().join(shared, own);
    assert_eq!(rig.hands().span_bytes(&joined), parts);
    for span in [before, joined] {
        rig.hands().free_span(span);
    }
}

/// Something done to the `n`th of a row of spans.
#[derive(Debug, Clone)]
enum Action {
    Split(usize, usize),
    Join(usize),
    Move(usize, Tier),
}

fn action() -> impl Strategy<Value = Action> {
    let tier = prop_oneof![Just(Tier::Device), Just(Tier::Host), Just(Tier::Disk)];
    prop_oneof![
        (0..8_usize, 1..END).prop_map(|(n, at)| Action::Split(n, at)),
        (0..8_usize).prop_map(Action::Join),
        (0..8_usize, tier).prop_map(|(n, tier)| Action::Move(n, tier)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn spans_keep_their_bytes_whatever_is_done_to_them(
        start in 0..200_usize,
        actions in prop::collection::vec(action(), 1..24),
    ) {
        let mut rig = Rig::new();
        let mut spans = vec![rig.span(start..END)];
        for action in actions {
            match action {
                Action::Split(n, at) if n < spans.len() => {
                    let span = spans.remove(n);
                    if at <= span.tokens.start || at >= span.tokens.end {
                        spans.insert(n, span);
                        continue;
                    }
                    let whole = rig.hands().span_bytes(&span);
                    let (head, tail) = rig.hands().split(span, at);
                    let parts = rig.hands().span_bytes(&head) + rig.hands().span_bytes(&tail);
                    prop_assert_eq!(parts, whole);
                    spans.splice(n..n, [head, tail]);
                }
                Action::Join(n) if n + 1 < spans.len() && tier(&spans[n]) == tier(&spans[n + 1]) => {
                    let (head, tail) = (spans.remove(n), spans.remove(n));
                    let parts = rig.hands().span_bytes(&head) + rig.hands().span_bytes(&tail);
                    let joined = rig.hands().join(head, tail);
                    prop_assert!(rig.hands().span_bytes(&joined) <= parts);
                    spans.insert(n, joined);
                }
                Action::Move(n, to) if n < spans.len() && tier(&spans[n]) != to => {
                    let from = tier(&spans[n]);
                    let span = spans.remove(n);
                    spans.insert(n, rig.move_to(span, to));
                    // Whoever shared with it is alone now.
                    if let Some(next) = spans.get_mut(n + 1).filter(|next| tier(next) == from) {
                        rig.hands().settle(next);
                    }
                }
                _ => {}
            }
            for span in &spans {
                rig.check(span);
            }
            rig.pool.check_invariants().map_err(TestCaseError::fail)?;
        }
        spans.into_iter().for_each(|span| rig.hands().free_span(span));
        prop_assert_eq!(rig.pool.pages_free(), PAGES);
        prop_assert_eq!(rig.disk.tier().status().records, 0);
    }
}

#[test]
fn a_point_keeps_its_bytes_in_every_tier() {
    let mut rig = Rig::new();
    let id = rig.pool.take_point().unwrap();
    let bytes: Vec<u8> = (0..rig.pool.layout().bytes_per_sequence() as u8).collect();
    rig.pool.write_point(id, &bytes).unwrap();
    let mut point = Point::Device(id);
    let path = rig.path.clone();
    let domain = DomainKey { fingerprint: 7, instance: 0 };
    let place = Place { domain, salt: Some("a"), start: END, tokens: &path };
    for to in [Tier::Host, Tier::Disk, Tier::Device] {
        let record = match &point {
            Point::Disk(record) => Some(record.clone()),
            _ => None,
        };
        if let Some(record) = &record {
            rig.disk.want(record);
            let until = Instant::now() + PATIENCE;
            while !rig.disk.is_read(record) {
                assert!(Instant::now() < until, "the file is read");
                rig.disk.poll();
                std::thread::yield_now();
            }
        }
        assert_eq!(&rig.hands().point_bytes_of(&point).expect("it can be read")[..], &bytes[..]);
        point = rig.hands().move_point(point, to, &place).expect("there is room");
        let lies = match point {
            Point::Device(_) => Tier::Device,
            Point::Host(_) => Tier::Host,
            Point::Disk(_) => Tier::Disk,
        };
        assert_eq!(lies, to);
        if let Some(record) = record {
            rig.disk.unwant(&record);
            rig.disk.release(record);
        }
    }
    assert_eq!((rig.pool.points_used(), rig.disk.tier().status().records), (1, 0));
    rig.hands().free_point(point);
    assert_eq!(rig.pool.points_used(), 0);
}
