//! Any text as the file of bearer tokens: read or refused, and a refusal tells nothing of the secrets.

use sconce_server::serve::Tokens;

/// What a token that is a digest begins with.
const HASHED: &str = "sha256:";

pub(crate) fn run(bytes: &[u8]) {
    let Err(problem) = Tokens::parse(bytes) else { return };
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    // With other letters in all secrets it says the same.
    let masked: Vec<String> = text.lines().map(masked).collect();
    assert_eq!(Tokens::parse(masked.join("\n").as_bytes()).err(), Some(problem));
}

/// The line with other secret letters and digits, of the same kinds.
fn masked(line: &str) -> String {
    let line = line.trim();
    let open = line.find(':').map_or(0, |colon| {
        let hashed = line[colon + 1..].starts_with(HASHED);
        colon + 1 + if hashed { HASHED.len() } else { 0 }
    });
    let mask = |letter: char| match letter {
        letter if letter.is_ascii_hexdigit() => '0',
        letter if letter.is_ascii_alphanumeric() => 'z',
        letter => letter,
    };
    line[..open].chars().chain(line[open..].chars().map(mask)).collect()
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let texts = [
        "",
        "# nobody\n\n",
        "alice:0123456789abcdef\n",
        "a:first-token-of-a\r\na:second-token-of-a\n b@x/y.z:third-token-of-b \n",
        "b:sha256:BA7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "b:sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015",
        "a:0123456789abcdef\nwithout-a-colon-in-it",
        "a:0123456789 abcdef with spaces",
        "a:short",
        "a b:0123456789abcdef",
    ];
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}
