//! `sconce top` as text; what it draws on a terminal is tested beside its code.

use crate::harness::{Server, run, stderr, stdout};

/// Most frames until a request that ended is in one.
const FRAMES_MAX: usize = 100;

#[test]
fn one_frame_tells_what_the_server_holds_and_did() {
    let server = Server::start("sim:", &[]);
    let at = ["--server", &server.address];
    let complete = ["complete", "--ignore-eos", "-n", "5", "The lamp on the wall"];
    stdout(&run(&[&complete[..], &at].concat()));
    let once = [&["top", "--once", "--interval", "100ms"][..], &at].concat();
    // The account of a request is told after the step that ended it.
    let mut frames = (0..FRAMES_MAX).map(|_| stdout(&run(&once)));
    let frame = frames.find(|frame| frame.contains("; 1 done, 0 failed")).expect("it is told");
    for part in [
        concat!("sconce ", env!("CARGO_PKG_VERSION"), " at "),
        "requests  0 running, 0 waiting; ",
        "tokens/s  ",
        " memory ",
        "device",
        " models ",
        "ready",
        "nothing that begins like it is remembered",
    ] {
        assert!(frame.contains(part), "no {part:?} in\n{frame}");
    }
}

#[test]
fn without_a_terminal_or_a_server_it_says_so() {
    let server = Server::start("sim:", &[]);
    let piped = run(&["top", "--server", &server.address]);
    assert_eq!(piped.status.code(), Some(2));
    assert!(stderr(&piped).contains("--once"), "{}", stderr(&piped));
    let gone = run(&["top", "--once", "--server", "127.0.0.1:1"]);
    assert_eq!(gone.status.code(), Some(69));
    let hasty = run(&["top", "--once", "--interval", "1ms", "--server", &server.address]);
    assert_eq!(hasty.status.code(), Some(2));
}
