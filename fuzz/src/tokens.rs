//! Any text as the file of bearer tokens: read or refused, and a refusal does not tell the secrets.

use sconce_server::serve::Tokens;

/// What is told of a line may be as long by accident.
const SECRET_BYTES_MIN: usize = 12;

pub(crate) fn run(bytes: &[u8]) {
    let Err(problem) = Tokens::parse(bytes) else { return };
    let text = String::from_utf8_lossy(bytes);
    for line in text.lines() {
        let secret = line.split_once(':').map_or(line, |(_, secret)| secret).trim();
        let told = secret.len() >= SECRET_BYTES_MIN && problem.contains(secret);
        // Words of the message itself, written into the file.
        let known = Tokens::parse(b"").is_err_and(|known| known.contains(secret));
        assert!(!told || known, "{problem}");
    }
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
