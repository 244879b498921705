//! A storage of integers: its payloads know which tokens they stand for, its registry knows every
//! payload that is alive, and it checks each move against the limits while the move goes on.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use sconce_cache::{Budgets, DomainKey, Place, Refused, Storage, Tier};

/// Tokens of a page.
pub(crate) const PAGE: usize = 4;
/// Bytes of a page.
pub(crate) const PAGE_BYTES: u64 = 10;
/// Bytes of a point.
pub(crate) const POINT_BYTES: u64 = 35;
/// A disk record takes this many bytes more.
pub(crate) const HEADER_BYTES: u64 = 3;

/// Whose a payload is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) domain: DomainKey,
    pub(crate) salt: Option<String>,
}

/// What the registry knows of a payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) owner: Owner,
    /// The path `[0, end)`.
    pub(crate) path: Rc<[u32]>,
    /// First token; the end for a point.
    pub(crate) start: usize,
    pub(crate) tier: Tier,
    pub(crate) bytes: u64,
    pub(crate) is_point: bool,
    /// The page that the first token lies in is charged to the span before.
    pub(crate) shares_border: bool,
}

impl Record {
    pub(crate) fn end(&self) -> usize {
        self.path.len()
    }
}

/// A span is its number in the registry.
#[derive(Debug)]
pub(crate) struct Span(pub(crate) u64);

/// A point is its number in the registry.
#[derive(Debug)]
pub(crate) struct Point(pub(crate) u64);

/// How the next moves go.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Moods {
    /// One bit for each move to come, the lowest first: refused.
    pub(crate) refuse: u32,
    /// One bit for each move to come from below the device: the payload is damaged.
    pub(crate) damage: u32,
}

#[derive(Debug)]
pub(crate) struct Integers {
    pub(crate) alive: BTreeMap<u64, Record>,
    made: u64,
    pub(crate) limits: Budgets,
    pub(crate) moods: RefCell<Moods>,
    /// Payloads reported damaged by a move so far.
    pub(crate) damaged: u64,
    /// Moves so far.
    pub(crate) moves: u64,
}

pub(crate) fn limit(limits: &Budgets, tier: Tier) -> u64 {
    match tier {
        Tier::Device => limits.device,
        Tier::Host => limits.host,
        Tier::Disk => limits.disk,
    }
}

fn pages(range: Range<usize>, shares_border: bool) -> u64 {
    let first = if shares_border { range.start.div_ceil(PAGE) } else { range.start / PAGE };
    (range.end.div_ceil(PAGE) - first) as u64
}

fn bytes_in(tier: Tier, range: Range<usize>, shares_border: bool) -> u64 {
    let header = if tier == Tier::Disk { HEADER_BYTES } else { 0 };
    pages(range, shares_border) * PAGE_BYTES + header
}

impl Integers {
    pub(crate) fn new(limits: Budgets) -> Self {
        Self {
            alive: BTreeMap::new(),
            made: 0,
            limits,
            moods: RefCell::default(),
            damaged: 0,
            moves: 0,
        }
    }

    fn add(&mut self, record: Record) -> u64 {
        self.made += 1;
        self.alive.insert(self.made, record);
        self.made
    }

    fn remove(&mut self, id: u64) -> Record {
        self.alive.remove(&id).expect("a payload is freed or moved once")
    }

    /// A span of `[start, path.len())` as a sequence that has computed it gives it.
    pub(crate) fn make_span(
        &mut self,
        owner: &Owner,
        path: &[u32],
        start: usize,
        tier: Tier,
    ) -> Span {
        // On the device the page at the border is the one of the span before.
        let shares_border = tier == Tier::Device && !start.is_multiple_of(PAGE);
        let bytes = bytes_in(tier, start..path.len(), shares_border);
        let (owner, path) = (owner.clone(), path.into());
        Span(self.add(Record { owner, path, start, tier, bytes, is_point: false, shares_border }))
    }

    /// A point at the end of `path`.
    pub(crate) fn make_point(&mut self, owner: &Owner, path: &[u32], tier: Tier) -> Point {
        let (owner, start) = (owner.clone(), path.len());
        let bytes = point_bytes_in(tier);
        let path = path.into();
        Point(self.add(Record {
            owner,
            path,
            start,
            tier,
            bytes,
            is_point: true,
            shares_border: false,
        }))
    }

    /// Bytes alive in a tier.
    pub(crate) fn used(&self, tier: Tier) -> u64 {
        self.alive.values().filter(|record| record.tier == tier).map(|record| record.bytes).sum()
    }

    /// What the coming move does.
    fn mood(&mut self, from: Tier) -> (bool, bool) {
        self.moves += 1;
        let moods = self.moods.get_mut();
        let refuse = moods.refuse & 1 == 1;
        moods.refuse >>= 1;
        if from == Tier::Device {
            return (refuse, false);
        }
        let damage = moods.damage & 1 == 1;
        moods.damage >>= 1;
        (refuse, damage)
    }

    /// Moves a record, whose place was said to be `place`.
    fn travel(&mut self, id: u64, to: Tier, place: &Place<'_>) -> Result<u64, Refused<u64>> {
        let record = self.alive.get(&id).expect("only what is alive moves").clone();
        assert_ne!(record.tier, to, "a move goes somewhere");
        assert_eq!(place.tokens, &record.path[..], "a payload moves under its own tokens");
        assert_eq!(place.start, record.start);
        assert_eq!((place.domain, place.salt), (record.owner.domain, record.owner.salt.as_deref()));
        let (refuse, damage) = self.mood(record.tier);
        if damage {
            self.damaged += 1;
            self.remove(id);
            return Err(Refused::Lost);
        }
        if refuse {
            return Err(Refused::Kept(id));
        }
        let bytes = if record.is_point {
            point_bytes_in(to)
        } else {
            bytes_in(to, record.start..record.end(), false)
        };
        let there = self.used(to) + bytes;
        assert!(there <= limit(&self.limits, to), "{there} bytes on {to} in the middle of a move");
        self.remove(id);
        Ok(self.add(Record { tier: to, bytes, shares_border: false, ..record }))
    }
}

fn point_bytes_in(tier: Tier) -> u64 {
    POINT_BYTES + if tier == Tier::Disk { HEADER_BYTES } else { 0 }
}

impl Storage for Integers {
    type Span = Span;
    type Point = Point;

    fn span_bytes(&self, span: &Span) -> u64 {
        self.alive[&span.0].bytes
    }

    fn point_bytes(&self, point: &Point) -> u64 {
        self.alive[&point.0].bytes
    }

    fn span_bytes_in(&self, span: &Span, to: Tier) -> u64 {
        let record = &self.alive[&span.0];
        bytes_in(to, record.start..record.end(), false)
    }

    fn point_bytes_in(&self, _: &Point, to: Tier) -> u64 {
        point_bytes_in(to)
    }

    fn split(&mut self, span: Span, at: usize) -> (Span, Span) {
        let whole = self.remove(span.0);
        assert!(whole.start < at && at < whole.end(), "a cut lies inside");
        let bytes = pages(whole.start..at, whole.shares_border) * PAGE_BYTES;
        let head = Record { path: whole.path[..at].into(), bytes, ..whole.clone() };
        let tail = Record {
            start: at,
            bytes: whole.bytes - bytes,
            shares_border: !at.is_multiple_of(PAGE),
            ..whole
        };
        (Span(self.add(head)), Span(self.add(tail)))
    }

    fn join(&mut self, head: Span, tail: Span) -> Span {
        let (head, tail) = (self.remove(head.0), self.remove(tail.0));
        assert_eq!(head.end(), tail.start, "only what is consecutive is joined");
        assert_eq!(head.tier, tail.tier, "only what lies in one tier is joined");
        assert_eq!(head.path[..], tail.path[..head.end()], "only what is one path is joined");
        assert_eq!(head.owner, tail.owner, "only what is one owner's is joined");
        assert_ne!(head.tier, Tier::Disk, "files are not joined");
        let bytes = bytes_in(head.tier, head.start..tail.end(), head.shares_border);
        assert!(bytes <= head.bytes + tail.bytes);
        Span(self.add(Record { path: tail.path, bytes, ..head }))
    }

    fn settle(&mut self, span: &mut Span) {
        let record = self.alive.get_mut(&span.0).expect("only what is alive settles");
        if record.shares_border {
            record.shares_border = false;
            record.bytes += PAGE_BYTES;
        }
    }

    fn move_span(
        &mut self,
        span: Span,
        to: Tier,
        place: &Place<'_>,
    ) -> Result<Span, Refused<Span>> {
        self.travel(span.0, to, place).map(Span).map_err(|refused| match refused {
            Refused::Kept(id) => Refused::Kept(Span(id)),
            Refused::Lost => Refused::Lost,
        })
    }

    fn move_point(
        &mut self,
        point: Point,
        to: Tier,
        place: &Place<'_>,
    ) -> Result<Point, Refused<Point>> {
        self.travel(point.0, to, place).map(Point).map_err(|refused| match refused {
            Refused::Kept(id) => Refused::Kept(Point(id)),
            Refused::Lost => Refused::Lost,
        })
    }

    fn free_span(&mut self, span: Span) {
        self.remove(span.0);
    }

    fn free_point(&mut self, point: Point) {
        self.remove(point.0);
    }
}
