//! Peers: a Python process that measures one round of theirs when it is asked, so that they have their
//! turn beside ours on the same device.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::Outcome;
use super::clock::Side;

/// The process, or why there is none.
pub(crate) struct Peer(Result<Process, String>);

struct Process {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts `[python, script]`.
    pub(crate) fn start(command: Option<&[String; 2]>) -> Self {
        let Some([python, script]) = command else {
            return Self(Err("no peer was named".to_owned()));
        };
        let started =
            Command::new(python).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let process = started.map_err(|error| format!("{python} does not start: {error}"));
        Self(process.and_then(|mut child| {
            let pipes = child.stdin.take().zip(child.stdout.take());
            let (to, from) = pipes.ok_or("a process without pipes")?;
            Ok(Process { child, to, from: BufReader::new(from) })
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
        let mut answer = String::new();
        writeln!(self.to, "{line}")
            .and_then(|()| self.to.flush())
            .and_then(|()| self.from.read_line(&mut answer))
            .map_err(|error| format!("the peer ended: {error}"))?;
        if answer.is_empty() { Err("the peer ended".to_owned()) } else { Ok(answer) }
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
    use super::*;

    #[test]
    fn an_answer_is_seconds_or_a_reason() {
        assert_eq!(reading("0.25\n"), Ok(0.25));
        assert_eq!(reading("no module named fla\n"), Err("no module named fla".to_owned()));
    }

    #[test]
    fn a_peer_that_is_not_there_says_why() {
        let none = Peer::start(None).side("delta 64".to_owned()).err();
        assert_eq!(none.as_deref(), Some("no peer was named"));
        let missing = ["no-such-python", "script"].map(str::to_owned);
        let why = Peer::start(Some(&missing)).side("delta 64".to_owned()).err().unwrap();
        assert!(why.starts_with("no-such-python does not start"), "{why}");
    }

    #[test]
    fn a_peer_answers_every_line_until_it_ends() {
        let script = "read -r line; echo 0.5; read -r line; echo 0.25; read -r line; echo cannot";
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), script).unwrap();
        let command = ["sh".to_owned(), path.path().display().to_string()];
        let mut peer = Peer::start(Some(&command));
        let mut side = peer.side("matmul 64".to_owned()).unwrap();
        assert_eq!(side.round().unwrap(), 0.25);
        assert_eq!(side.round().unwrap_err().to_string(), "cannot");
        assert!(side.round().unwrap_err().to_string().starts_with("the peer ended"));
    }
}
