//! `sconce chat`: a conversation of several turns. On a terminal it prompts; from a pipe each line
//! of standard input is one message.

use std::io::{self, IsTerminal as _};

use sconce_proto::v1::complete_request::Prompt;
use sconce_proto::v1::{ChatMessage, ChatPrompt, CompleteRequest};
use tokio::sync::mpsc;

use super::complete::Transcript;
use super::error::CliError;
use super::output;
use super::prompt::{SamplingArgs, message};
use super::target::{Session, TargetArgs};

/// Lines read ahead of the turn they are for.
const LINES_AHEAD_MAX: usize = 16;

const HELP: &str = "/reset forgets the conversation, /exit ends it, /help shows this; \
                    Ctrl-C stops an answer";

/// Arguments of `sconce chat`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    target: TargetArgs,
}

/// Runs `sconce chat`.
pub(crate) async fn run(args: Args) -> Result<(), CliError> {
    super::log_quietly()?;
    let session = Session::open(&args.target).await?;
    let mut conversation = Conversation::new(args.system.as_deref());
    let outcome = conversation.hold(&session, &args.sampling).await;
    session.close().await?;
    outcome
}

struct Conversation {
    system: Option<ChatMessage>,
    turns: Vec<ChatMessage>,
}

impl Conversation {
    fn new(system: Option<&str>) -> Self {
        Self { system: system.map(|text| message("system", text)), turns: Vec::new() }
    }

    async fn hold(&mut self, session: &Session, sampling: &SamplingArgs) -> Result<(), CliError> {
        let terminal = io::stdin().is_terminal();
        if terminal {
            output::note(HELP);
        }
        let mut lines = read_lines();
        loop {
            if terminal {
                output::write("> ")?;
            }
            let line = tokio::select! {
                line = lines.recv() => line,
                _ = tokio::signal::ctrl_c() => None,
            };
            let Some(line) = line else { return Ok(()) };
            let line = line.map_err(|source| CliError::io("cannot read standard input", source))?;
            match line.trim() {
                "" => {}
                "/exit" | "/quit" => return Ok(()),
                "/help" => output::note(HELP),
                "/reset" => {
                    self.turns.clear();
                    output::note("the conversation is forgotten");
                }
                command if command.starts_with('/') => {
                    output::note(&format!("unknown command {command}; {HELP}"));
                }
                text => self.turn(session, sampling, text, terminal).await?,
            }
        }
    }

    /// One question and its answer. On a terminal a refused turn does not end the conversation.
    async fn turn(
        &mut self,
        session: &Session,
        sampling: &SamplingArgs,
        text: &str,
        terminal: bool,
    ) -> Result<(), CliError> {
        self.turns.push(message("user", text));
        let answer = tokio::select! {
            answer = self.ask(session, sampling) => answer,
            // Dropping the stream cancels the work on the server.
            _ = tokio::signal::ctrl_c() => {
                output::write("\n")?;
                Ok(None)
            }
        };
        match answer {
            Ok(Some(text)) => self.turns.push(message("assistant", &text)),
            Ok(None) => drop(self.turns.pop()),
            Err(error @ CliError::Rpc(_)) if terminal => {
                self.turns.pop();
                output::note(&format!("error: {error}"));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn ask(
        &self,
        session: &Session,
        sampling: &SamplingArgs,
    ) -> Result<Option<String>, CliError> {
        let messages = self.system.iter().chain(&self.turns).cloned().collect();
        let request = CompleteRequest {
            prompt: Some(Prompt::Chat(ChatPrompt { messages, ..ChatPrompt::default() })),
            ..sampling.request(&session.model)
        };
        let request = sampling.timed(request);
        let mut stream = session.inference().complete(request).await?.into_inner();
        let mut transcript = Transcript::default();
        let outcome = transcript.print(&mut stream).await;
        transcript.close()?;
        outcome.map(|()| Some(transcript.text))
    }
}

/// Lines of standard input. A thread of its own, since a read of a terminal cannot be cancelled; it
/// ends with the process.
fn read_lines() -> mpsc::Receiver<io::Result<String>> {
    let (sender, receiver) = mpsc::channel(LINES_AHEAD_MAX);
    std::thread::spawn(move || {
        for line in io::stdin().lines() {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
