//! How much of a memory or a disk something may take: bytes, or a share of all there is. How much
//! there is is `machine.rs`'s subject.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::value::{ByteSize, FromScalar};

/// An amount, written as a [`ByteSize`] or as a share such as `25%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// That many bytes.
    Bytes(ByteSize),
    /// Of what there is.
    Share(Share),
}

/// Whole hundredths, at most all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share(u8);

impl Share {
    /// `percent` must be at most 100.
    pub const fn percent(percent: u8) -> Self {
        assert!(percent <= 100, "a share is at most all");
        Self(percent)
    }

    /// That share of `whole`, as [`legible`] has it.
    pub fn of(self, whole: u64) -> u64 {
        let share = u128::from(whole) * u128::from(self.0) / 100;
        legible(u64::try_from(share).expect("a share is at most the whole"))
    }
}

/// Rounds down to whole mebibytes, if there are any: what nobody chose to the byte is shown so.
pub(super) fn legible(bytes: u64) -> u64 {
    const MEBIBYTE: u64 = 1 << 20;
    if bytes < MEBIBYTE { bytes } else { bytes - bytes % MEBIBYTE }
}

impl Amount {
    /// Whether it is nothing, of whatever.
    pub fn is_zero(self) -> bool {
        matches!(self, Self::Bytes(ByteSize(0)) | Self::Share(Share(0)))
    }
}

impl FromStr for Amount {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some(percent) = text.trim().strip_suffix('%') else {
            return text.parse().map(Self::Bytes).map_err(|_| ());
        };
        let percent: u8 = percent.trim_end().parse().map_err(|_| ())?;
        if percent > 100 {
            return Err(());
        }
        Ok(Self::Share(Share(percent)))
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => bytes.fmt(f),
            Self::Share(Share(percent)) => write!(f, "{percent}%"),
        }
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromScalar for Amount {
    const EXPECTED: &'static str =
        "`auto`, a byte size such as `8GiB`, or a share from `0%` to `100%`";

    fn from_number(number: u64) -> Option<Self> {
        Some(Self::Bytes(ByteSize(number)))
    }

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_read_back_as_they_are_shown() {
        for (text, shown) in
            [("25%", "25%"), (" 7 % ", "7%"), ("0%", "0%"), ("100%", "100%"), ("2048", "2KiB")]
        {
            let amount: Amount = text.parse().expect(text);
            assert_eq!(amount.to_string(), shown);
            assert_eq!(shown.parse(), Ok(amount));
        }
        for text in ["101%", "-1%", "%", "2.5%", "25 percent", "300%", "", "25%%"] {
            assert!(text.parse::<Amount>().is_err(), "{text}");
        }
    }

    #[test]
    fn shares_of_anything_fit() {
        assert_eq!(Share::percent(25).of(1001), 250);
        assert_eq!(Share::percent(0).of(u64::MAX), 0);
        assert_eq!(Share::percent(100).of(u64::MAX), u64::MAX - ((1 << 20) - 1));
        assert_eq!(Share::percent(50).of((7 << 20) + 5), 3 << 20);
    }
}
