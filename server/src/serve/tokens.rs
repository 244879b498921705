//! The file of bearer tokens: one `NAME:TOKEN` a line, several of one name where a token is being
//! replaced by another. A token can stand as `sha256:HEX`, so that the file gives none away.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use subtle::{ConditionallySelectable as _, ConstantTimeEq as _};

/// Most tokens of a file; each request is compared with all of them.
const TOKENS_MAX: usize = 4096;

/// Shortest token: what 12 random bytes are in base64.
const TOKEN_BYTES_MIN: usize = 16;

/// Longest token.
const TOKEN_BYTES_MAX: usize = 1024;

/// Longest name of an identity, also of one in a certificate.
pub(super) const NAME_BYTES_MAX: usize = 128;

/// What a hashed token begins with.
const HASHED: &str = "sha256:";

/// Who has which token. Tokens themselves are not kept.
pub struct Tokens {
    entries: Vec<Entry>,
}

struct Entry {
    name: Arc<str>,
    sha256: [u8; 32],
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").field("count", &self.entries.len()).finish()
    }
}

impl Tokens {
    /// Reads the text of a file.
    ///
    /// # Errors
    /// The first line that is wrong, by its number; what is on it is not told.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(text).map_err(|_| "expected UTF-8 text".to_owned())?;
        let mut entries = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let entry = entry(line).map_err(|why| format!("line {}: {why}", index + 1))?;
            entries.push(entry);
            if entries.len() > TOKENS_MAX {
                return Err(format!("expected at most {TOKENS_MAX} tokens, found more"));
            }
        }
        if entries.is_empty() {
            return Err("expected at least one line `NAME:TOKEN`, found none".to_owned());
        }
        Ok(Self { entries })
    }

    /// Whose `token` is. Takes the same time whether it is anybody's, and whose.
    pub(crate) fn identity(&self, token: &[u8]) -> Option<Arc<str>> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        let mut found = u32::MAX;
        for (index, entry) in (0_u32..).zip(&self.entries) {
            found.conditional_assign(&index, entry.sha256.ct_eq(&digest));
        }
        self.entries.get(found as usize).map(|entry| entry.name.clone())
    }
}

fn entry(line: &str) -> Result<Entry, String> {
    let (name, token) =
        line.split_once(':').ok_or_else(|| "expected `NAME:TOKEN`, found no `:`".to_owned())?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-@/".contains(&byte);
    if !(1..=NAME_BYTES_MAX).contains(&name.len()) || !name.bytes().all(allowed) {
        return Err(format!(
            "expected a name of 1 to {NAME_BYTES_MAX} letters, digits, `.`, `_`, `-`, `@` and `/`"
        ));
    }
    let sha256 = match token.strip_prefix(HASHED) {
        Some(hex) => from_hex(hex).ok_or("expected 64 hexadecimal digits after `sha256:`")?,
        None => {
            let length = token.len();
            let printable = token.bytes().all(|byte| byte.is_ascii_graphic());
            if !(TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX).contains(&length) || !printable {
                return Err(format!(
                    "expected a token of {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX} printable ASCII \
                     characters without spaces, found one of {length} bytes"
                ));
            }
            Sha256::digest(token.as_bytes()).into()
        }
    };
    Ok(Entry { name: name.into(), sha256 })
}

fn from_hex(hex: &str) -> Option<[u8; 32]> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let mut bytes = [0; 32];
    if hex.len() != 2 * bytes.len() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks(2)) {
        *byte = (digit(pair[0])? << 4) | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_found_by_value_plain_or_hashed() {
        // The SHA-256 of `abc` (FIPS 180-2, appendix B.1).
        let text = "# rotation: the first goes next week\nalice:first-token-of-alice\n\n \
                    alice:second-token-of-alice\n\
                    b@x/y.z:sha256:BA7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n";
        let tokens = Tokens::parse(text.as_bytes()).expect("is right");
        let of = |token: &str| tokens.identity(token.as_bytes()).map(|name| name.to_string());
        assert_eq!(of("first-token-of-alice").as_deref(), Some("alice"));
        assert_eq!(of("second-token-of-alice").as_deref(), Some("alice"));
        assert_eq!(of("abc").as_deref(), Some("b@x/y.z"));
        for other in ["", "first-token-of-alicf", "alice", "ba7816bf"] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn a_wrong_line_is_told_by_its_number_and_not_by_what_is_on_it() {
        for (text, parts) in [
            ("", &["at least one"][..]),
            ("# nothing\n", &["at least one"]),
            ("a:0123456789abcdef\nsecret", &["line 2", "no `:`"]),
            (":0123456789abcdef", &["line 1", "a name of 1 to 128"]),
            ("a b:0123456789abcdef", &["line 1", "a name"]),
            ("a:secret", &["line 1", "16 to 1024", "6 bytes"]),
            ("a:0123456789 abcdef", &["line 1", "without spaces"]),
            ("a:sha256:secret", &["line 1", "64 hexadecimal"]),
        ] {
            let error = Tokens::parse(text.as_bytes()).expect_err(text);
            assert!(parts.iter().all(|part| error.contains(part)), "{text:?}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
        let many = "a:0123456789abcdef\n".repeat(TOKENS_MAX + 1);
        assert!(Tokens::parse(many.as_bytes()).is_err());
        assert!(Tokens::parse(&[0xff]).is_err());
    }
}
