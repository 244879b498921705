//! The one question the cache asks of what it holds.

/// Something that takes memory in one tier.
///
/// The answer must not change while the thing is held, or the ledger and the truth part ways.
pub trait Footprint {
    /// Bytes it occupies, with everything it alone keeps alive.
    fn bytes(&self) -> u64;
}

impl<T: Footprint + ?Sized> Footprint for Box<T> {
    fn bytes(&self) -> u64 {
        (**self).bytes()
    }
}
