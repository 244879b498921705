//! Peers: a Python process that measures one round of theirs when it is asked, so that they have their
//! turn beside ours on the same device.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Instant;

use super::Outcome;
use super::clock::Side;

/// Answers that wait to be heard.
const ANSWERS_MAX: usize = 1;

/// The process, or why there is none.
pub(crate) struct Peer(Result<Process, String>);

struct Process {
    child: Child,
    to: ChildStdin,
    /// Its answers, read by a thread of their own.
    from: Receiver<String>,
    /// When it is no longer waited for.
    until: Instant,
}

impl Peer {
    /// Starts `[python, script]`, which may work until then. It may compile for minutes: what is held
    /// against it must not be lost with it.
    pub(crate) fn start(command: Option<&[String; 2]>, until: Instant) -> Self {
        let Some([python, script]) = command else {
            return Self(Err("no peer was named".to_owned()));
        };
        let started =
            Command::new(python).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let process = started.map_err(|error| format!("{python} does not start: {error}"));
        Self(process.and_then(|mut child| {
            let pipes = child.stdin.take().zip(child.stdout.take());
            let (to, from) = pipes.ok_or("a process without pipes")?;
            let (said, heard) = sync_channel(ANSWERS_MAX);
            thread::spawn(move || {
                for line in BufReader::new(from).lines().map_while(Result::ok) {
                    if said.send(line).is_err() {
                        break;
                    }
                }
            });
            Ok(Process { child, to, from: heard, until })
        }))
    }

    /// What it has to say to a line: seconds, or why there are none. A process that ended stays so.
    fn ask(&mut self, line: &str) -> Result<f64, String> {
        let process = self.0.as_mut().map_err(|why| why.clone())?;
        let answer = process.ask(line);
        match answer {
            Ok(answer) => reading(&answer),
            Err(why) => {
                self.0 = Err(why.clone());
                Err(why)
            }
        }
    }

    /// Work that the peer knows by the name `line`; why not, if it does not.
    pub(crate) fn side(&mut self, line: String) -> Result<PeerSide<'_>, String> {
        self.ask(&line)?;
        Ok(PeerSide { peer: self, line })
    }
}

impl Process {
    fn ask(&mut self, line: &str) -> Result<String, String> {
        writeln!(self.to, "{line}")
            .and_then(|()| self.to.flush())
            .map_err(|error| format!("the peer ended: {error}"))?;
        let left = self.until.saturating_duration_since(Instant::now());
        self.from.recv_timeout(left).map_err(|error| match error {
            RecvTimeoutError::Timeout => "the peer takes longer than there is time".to_owned(),
            RecvTimeoutError::Disconnected => "the peer ended".to_owned(),
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Seconds, or what was said instead.
fn reading(answer: &str) -> Result<f64, String> {
    let answer = answer.trim();
    answer.parse().map_err(|_| answer.to_owned())
}

/// Work of a peer.
pub(crate) struct PeerSide<'a> {
    peer: &'a mut Peer,
    line: String,
}

impl Side for PeerSide<'_> {
    fn warm_up(&mut self) -> Outcome<()> {
        self.round().map(|_| ())
    }

    fn round(&mut self) -> Outcome<f64> {
        Ok(self.peer.ask(&self.line)?)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_answer_is_seconds_or_a_reason() {
        assert_eq!(reading("0.25\n"), Ok(0.25));
        assert_eq!(reading("no module named fla\n"), Err("no module named fla".to_owned()));
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    /// A peer that runs a script of the shell.
    fn shell(script: &str, until: Instant) -> (Peer, tempfile::NamedTempFile) {
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), script).unwrap();
        let command = ["sh".to_owned(), path.path().display().to_string()];
        (Peer::start(Some(&command), until), path)
    }

    #[test]
    fn a_peer_that_is_not_there_says_why() {
        let none = Peer::start(None, soon()).side("delta 64".to_owned()).err();
        assert_eq!(none.as_deref(), Some("no peer was named"));
        let missing = ["no-such-python", "script"].map(str::to_owned);
        let why = Peer::start(Some(&missing), soon()).side("delta 64".to_owned()).err().unwrap();
        assert!(why.starts_with("no-such-python does not start"), "{why}");
    }

    #[test]
    fn a_peer_answers_every_line_until_it_ends() {
        let script = "read -r line; echo 0.5; read -r line; echo 0.25; read -r line; echo cannot";
        let (mut peer, _script) = shell(script, soon());
        let mut side = peer.side("matmul 64".to_owned()).unwrap();
        assert_eq!(side.round().unwrap(), 0.25);
        assert_eq!(side.round().unwrap_err().to_string(), "cannot");
        assert!(side.round().unwrap_err().to_string().starts_with("the peer ended"));
    }

    #[test]
    fn a_peer_that_takes_too_long_is_not_waited_for_and_stays_away() {
        let (mut peer, _script) = shell("read -r line; read -r never", Instant::now());
        let why = peer.side("delta 64".to_owned()).err();
        assert_eq!(why.as_deref(), Some("the peer takes longer than there is time"));
        assert!(peer.0.is_err(), "its answer would be taken for that of the next question");
    }
}
