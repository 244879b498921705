//! Setting values that are written as text: byte sizes, durations, addresses, and `auto`.
//! What they are used for is in `mod.rs`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::serve::ListenAddress;
use serde::de::Unexpected;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Units of byte sizes, largest first; a size is shown in the largest that divides it.
const UNITS: &[(&str, u64)] = &[
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// A number of bytes, written `8GiB`, `500MB` or as a plain number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl ByteSize {
    const EXPECTED: &'static str = "a byte size such as `8GiB`, `500MB` or `4096`";
}

impl FromStr for ByteSize {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = text[..digits].parse().map_err(|_| Self::EXPECTED)?;
        let unit = match text[digits..].trim_start() {
            "" => 1,
            unit => UNITS
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(unit))
                .map(|(_, factor)| *factor)
                .ok_or(Self::EXPECTED)?,
        };
        number.checked_mul(unit).map(Self).ok_or(Self::EXPECTED)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, factor) = UNITS
            .iter()
            .find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor))
            .unwrap_or(&("B", 1));
        write!(f, "{}{name}", self.0 / factor)
    }
}

/// A span of time, written `30s`, `500ms`, `1h 30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl Span {
    const EXPECTED: &'static str = "a duration such as `30s`, `500ms` or `1h 30m`";
}

impl FromStr for Span {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        humantime::parse_duration(text.trim()).map(Self).map_err(|_| Self::EXPECTED)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

/// A value, or `auto` for what fits the machine or the model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Auto<T> {
    /// Chosen at start.
    #[default]
    Auto,
    /// As given.
    Given(T),
}

impl<T> Auto<T> {
    /// The value, if one was given.
    pub fn given(self) -> Option<T> {
        match self {
            Self::Auto => None,
            Self::Given(value) => Some(value),
        }
    }
}

impl<T> From<Option<T>> for Auto<T> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Auto, Self::Given)
    }
}

impl<T: Serialize> Serialize for Auto<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Given(value) => value.serialize(serializer),
        }
    }
}

/// Text or a number, as it stands in a file or in the environment.
#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Number(u64),
    Text(String),
    Other(serde::de::IgnoredAny),
}

impl Scalar {
    fn refuse<E: serde::de::Error>(&self, expected: &str) -> E {
        let found = match self {
            Self::Number(number) => Unexpected::Unsigned(*number),
            Self::Text(text) => Unexpected::Str(text),
            Self::Other(_) => Unexpected::Other("another kind of value"),
        };
        E::invalid_value(found, &expected)
    }
}

/// Types whose `auto` can also be a number or a text.
pub trait FromScalar: Sized {
    /// What is expected, for messages.
    const EXPECTED: &'static str;
    /// The value, or `None` if it is not one.
    fn from_number(number: u64) -> Option<Self>;
    /// The value, or `None` if it is not one.
    fn from_text(text: &str) -> Option<Self>;
}

impl FromScalar for Span {
    const EXPECTED: &'static str = "`auto` or a duration such as `30s`";

    fn from_number(_: u64) -> Option<Self> {
        None
    }

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl FromScalar for usize {
    const EXPECTED: &'static str = "`auto` or a number above 0";

    fn from_number(number: u64) -> Option<Self> {
        Self::try_from(number).ok().filter(|number| *number > 0)
    }

    fn from_text(_: &str) -> Option<Self> {
        None
    }
}

impl<'de, T: FromScalar> Deserialize<'de> for Auto<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let scalar = Scalar::deserialize(deserializer)?;
        match &scalar {
            Scalar::Text(text) if text == "auto" => return Ok(Self::Auto),
            Scalar::Text(text) => T::from_text(text),
            Scalar::Number(number) => T::from_number(*number),
            Scalar::Other(_) => None,
        }
        .map(Self::Given)
        .ok_or_else(|| scalar.refuse(T::EXPECTED))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let scalar = Scalar::deserialize(deserializer)?;
        match &scalar {
            Scalar::Text(text) => text.parse().ok(),
            _ => None,
        }
        .ok_or_else(|| scalar.refuse(Self::EXPECTED))
    }
}

/// What computes, by its name.
pub(crate) mod device {
    use sconce_models::DeviceChoice;
    use serde::de::{Error as _, Unexpected};
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        device: &DeviceChoice,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(device)
    }

    pub(crate) fn deserialize<'de, D>(deserializer: D) -> Result<DeviceChoice, D::Error>
    where
        D: Deserializer<'de>,
    {
        let text = String::deserialize(deserializer)?;
        text.parse()
            .map_err(|expected: &str| D::Error::invalid_value(Unexpected::Str(&text), &expected))
    }
}

/// As [`addresses`], and none is possible: an empty list or text.
pub(crate) mod addresses_or_none {
    use serde::Deserializer;

    pub(crate) use super::addresses::serialize;
    use super::{ListenAddress, addresses};

    pub(crate) fn deserialize<'de, D>(deserializer: D) -> Result<Vec<ListenAddress>, D::Error>
    where
        D: Deserializer<'de>,
    {
        deserializer.deserialize_any(addresses::OneOrMany { none: true })
    }
}

/// Addresses as a list; a single one may stand as plain text.
pub(crate) mod addresses {
    use serde::de::{Error as _, SeqAccess, Unexpected, Visitor};
    use serde::{Deserializer, Serializer};

    use super::{ListenAddress, fmt};

    const EXPECTED: &str = "`IP:PORT` or `unix:PATH`";

    pub(crate) fn serialize<S: Serializer>(
        addresses: &[ListenAddress],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(addresses.iter().map(ToString::to_string))
    }

    pub(crate) fn deserialize<'de, D>(deserializer: D) -> Result<Vec<ListenAddress>, D::Error>
    where
        D: Deserializer<'de>,
    {
        deserializer.deserialize_any(OneOrMany { none: false })
    }

    /// One address or a list.
    pub(super) struct OneOrMany {
        /// Whether none is one of the possibilities.
        pub(super) none: bool,
    }

    impl<'de> Visitor<'de> for OneOrMany {
        type Value = Vec<ListenAddress>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{EXPECTED}, or a list of these")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
            if self.none && text.is_empty() {
                return Ok(Vec::new());
            }
            text.parse()
                .map(|address| vec![address])
                .map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut addresses = Vec::new();
            while let Some(text) = seq.next_element::<String>()? {
                addresses.push(
                    text.parse()
                        .map_err(|_| A::Error::invalid_value(Unexpected::Str(&text), &EXPECTED))?,
                );
            }
            if addresses.is_empty() && !self.none {
                return Err(A::Error::invalid_length(0, &"at least one address"));
            }
            Ok(addresses)
        }
    }
}

macro_rules! serialize_as_text {
    ($($name:ty),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )*};
}

serialize_as_text!(Span);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_sizes_read_every_unit_and_show_the_largest_exact_one() {
        for (text, bytes, shown) in [
            ("8GiB", 8 << 30, "8GiB"),
            ("500MB", 500_000_000, "500MB"),
            ("4096", 4096, "4KiB"),
            ("12 kib", 12 << 10, "12KiB"),
            ("7", 7, "7B"),
            ("0", 0, "0B"),
        ] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!(size.0, bytes, "{text}");
            assert_eq!(size.to_string(), shown, "{text}");
            assert_eq!(shown.parse::<ByteSize>().unwrap(), size, "{text}");
        }
        for text in ["", "GiB", "8 Gi", "-1", "1.5GiB", "99999999999TiB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn durations_survive_being_shown_and_read() {
        for text in ["30s", "500ms", "1h 30m", "0s"] {
            let span: Span = text.parse().unwrap();
            assert_eq!(span.to_string(), text);
        }
        assert!("30".parse::<Span>().is_err(), "a unit is asked for");
    }
}
