//! A cursor over the header of a GGUF file: bounded reads that name what they were reading.

use crate::error::Error;

/// Longest key or tensor name, the limit of the GGUF specification for keys.
pub(super) const NAME_BYTES_MAX: usize = 65_535;

/// Reads little-endian values from a byte slice, front to back.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
    file: &'a str,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8], file: &'a str) -> Reader<'a> {
        Reader { bytes, position: 0, file }
    }

    /// Offset of the next byte.
    pub(super) fn position(&self) -> usize {
        self.position
    }

    /// Bytes that are left.
    pub(super) fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }

    /// An error about `place`.
    pub(super) fn error(
        &self,
        place: &str,
        expected: impl ToString,
        found: impl ToString,
    ) -> Error {
        Error::format(self.file, place, expected, found)
    }

    /// The next `len` bytes, of `place`.
    pub(super) fn take(&mut self, len: usize, place: &str) -> Result<&'a [u8], Error> {
        if len > self.remaining() {
            let expected = format!("{len} bytes at offset {}", self.position);
            return Err(self.error(place, expected, format!("{} left", self.remaining())));
        }
        let start = self.position;
        self.position += len;
        Ok(&self.bytes[start..self.position])
    }

    /// The next `N` bytes, of `place`.
    pub(super) fn array<const N: usize>(&mut self, place: &str) -> Result<[u8; N], Error> {
        let bytes = self.take(N, place)?;
        Ok(bytes.try_into().expect("take returns as many bytes as asked"))
    }

    pub(super) fn u32(&mut self, place: &str) -> Result<u32, Error> {
        self.array(place).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, place: &str) -> Result<u64, Error> {
        self.array(place).map(u64::from_le_bytes)
    }

    /// A count of things that take at least `bytes_each` bytes of the file each, so that a count
    /// never justifies an allocation that the file's size does not.
    pub(super) fn count(&mut self, bytes_each: usize, place: &str) -> Result<usize, Error> {
        let count = self.u64(place)?;
        let max = self.remaining() / bytes_each.max(1);
        if count > max as u64 {
            let expected = format!("at most {max}, as many as the file has bytes for");
            return Err(self.error(place, expected, count));
        }
        Ok(count as usize)
    }

    /// A string of at most `bytes_max` bytes.
    pub(super) fn string(&mut self, bytes_max: usize, place: &str) -> Result<&'a str, Error> {
        let len = self.count(1, place)?;
        if len > bytes_max {
            let expected = format!("a string of at most {bytes_max} bytes");
            return Err(self.error(place, expected, format!("{len} bytes")));
        }
        let bytes = self.take(len, place)?;
        std::str::from_utf8(bytes).map_err(|error| {
            self.error(place, "UTF-8", format!("an invalid byte at {}", error.valid_up_to()))
        })
    }
}
