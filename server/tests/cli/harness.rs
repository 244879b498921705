//! Runs the program, and servers that tests can talk to.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};

/// The program, without the settings of whoever runs the tests.
pub(crate) fn sconce(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sconce"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SCONCE_") || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    command.args(args).stdin(Stdio::null());
    command
}

/// Runs the program to its end.
pub(crate) fn run(args: &[&str]) -> Output {
    sconce(args).output().expect("the program starts")
}

/// Runs the program to its end with `input` on standard input.
pub(crate) fn run_with(args: &[&str], input: &str) -> Output {
    let mut child = sconce(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().expect("standard input is piped");
    stdin.write_all(input.as_bytes()).expect("the program reads its input");
    drop(stdin);
    child.wait_with_output().expect("the program ends")
}

/// Standard output of a run that must succeed.
pub(crate) fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}: {}", output.status, stderr(output));
    String::from_utf8(output.stdout.clone()).expect("output is UTF-8")
}

/// Standard error of a run.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A server of its own process; killed when dropped.
pub(crate) struct Server {
    child: Child,
    /// Where it listens.
    pub(crate) address: String,
    stdout: BufReader<ChildStdout>,
}

impl Server {
    /// Starts a server on a free port of loopback with the simulated model as `sim`, and waits
    /// until it answers.
    pub(crate) fn start(sim: &str, args: &[&str]) -> Self {
        let model = format!("sim={sim}");
        let mut all = vec!["serve", "--listen", "127.0.0.1:0", "--model", &model];
        all.extend_from_slice(args);
        let mut command = sconce(&all);
        command.env("SCONCE__SERVER__WITHDRAWAL", "0s");
        let server = Self::spawn(command);
        server.until_ready();
        server
    }

    /// Waits until its models are loaded.
    pub(crate) fn until_ready(&self) {
        let ready = run(&["health", "--wait", "--service", "readiness", "--server", &self.address]);
        assert_eq!(stdout(&ready), "SERVING\n");
    }

    /// Starts a server and reads where it listens.
    pub(crate) fn spawn(command: Command) -> Self {
        Self::spawn_with_log(command, Stdio::null())
    }

    /// Starts a server whose log goes to `log`, and reads where it listens.
    pub(crate) fn spawn_with_log(mut command: Command, log: impl Into<Stdio>) -> Self {
        let mut child =
            command.stdout(Stdio::piped()).stderr(log).spawn().expect("the program starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("standard output is piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("the server announces its address");
        let address = line
            .trim_end()
            .strip_prefix("listening on ")
            .unwrap_or_else(|| panic!("expected `listening on ADDR`, found {line:?}"))
            .to_owned();
        Self { child, address, stdout }
    }

    /// The next line of its standard output.
    pub(crate) fn next_line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("standard output is UTF-8");
        line.trim_end().to_owned()
    }

    /// Sends a signal, such as `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([format!("-{name}"), self.child.id().to_string()])
            .status()
            .expect("kill runs");
        assert!(status.success());
    }

    /// Waits until it ends.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait().expect("the server ends")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
