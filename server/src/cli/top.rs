//! `sconce top`: a running server on a terminal, looked at once a second through the protocol alone.

mod draw;
mod rates;
mod view;

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use sconce_proto::v1::model_service_client::ModelServiceClient;
use sconce_proto::v1::state_service_client::StateServiceClient;
use sconce_proto::v1::{DescribeCacheRequest, GetStatusRequest, GetStatusResponse};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};

use self::view::View;
use super::credentials::Connection;
use super::error::CliError;
use super::output;
use super::target::ServerArgs;
use crate::config::Span;

/// Shortest time between two looks.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Longest a server may take to answer; then it counts as gone.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// How often the thread that reads keys looks whether it is still wanted.
const KEY_PATIENCE: Duration = Duration::from_millis(200);
/// Keys that wait to be handled; further ones make their reader wait.
const KEYS_MAX: usize = 32;
/// Most nodes of a tree that are asked for.
const NODES_MAX: u32 = 1000;

/// Arguments of `sconce top`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Time between two looks, at least 100ms
    #[arg(long, value_name = "TIME", default_value = "1s")]
    interval: Span,
    /// Look twice, an interval apart, print what was seen as text and end
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// Runs `sconce top`.
pub(crate) async fn run(args: Args) -> Result<(), CliError> {
    let every = args.interval.0;
    if every < INTERVAL_MIN {
        let found = args.interval;
        return Err(CliError::Usage(format!("--interval: expected at least 100ms, found {found}")));
    }
    let mut view = View::new(&args.server.server);
    // The first look fails like any other command, before the screen is taken.
    let mut server = Watched { server: args.server, channel: None };
    view.see(server.status().await?, Instant::now().into());
    if args.once {
        sleep(every).await;
        view.see(server.status().await?, Instant::now().into());
        return output::write(&draw::plain(&view));
    }
    if !io::stdout().is_terminal() {
        let message = "standard output is no terminal; --once prints what is seen as text";
        return Err(CliError::Usage(message.to_owned()));
    }
    let failed = |source| CliError::io("cannot use the terminal", source);
    let mut terminal = ratatui::try_init().map_err(failed)?;
    let outcome = watch(&mut terminal, &mut view, &mut server, every).await;
    ratatui::try_restore().map_err(failed)?;
    outcome
}

/// Draws what is seen, until a key ends it.
async fn watch(
    terminal: &mut ratatui::DefaultTerminal,
    view: &mut View,
    server: &mut Watched,
    every: Duration,
) -> Result<(), CliError> {
    let mut keys = keys();
    // The first look was just now: another at once would make large rates of little.
    let mut ticks = interval_at(Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let drawn = terminal.draw(|frame| draw::draw(frame, view));
        drawn.map_err(|source| CliError::io("cannot draw on the terminal", source))?;
        tokio::select! {
            event = keys.recv() => match event {
                Some(Event::Key(key)) if key.kind != KeyEventKind::Release => {
                    if !press(view, key) {
                        return Ok(());
                    }
                    server.look_into_tree(view).await;
                }
                // Another size: drawn anew.
                Some(_) => {}
                None => return Err(CliError::Internal("the terminal gives no keys".to_owned())),
            },
            _ = ticks.tick() => {
                match server.status().await {
                    Ok(status) => view.see(status, Instant::now().into()),
                    Err(error) => view.lose(error.to_string()),
                }
                server.look_into_tree(view).await;
            }
        }
    }
}

/// Does what a key means; `false` to end.
fn press(view: &mut View, key: KeyEvent) -> bool {
    match key.code {
        KeyCode::Char('q') => return false,
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
        // Leaves the tree first.
        KeyCode::Esc => return view.close_tree(),
        KeyCode::Char('t') => view.toggle_tree(),
        KeyCode::Up => view.go(-1),
        KeyCode::Down => view.go(1),
        KeyCode::PageUp => view.go(-20),
        KeyCode::PageDown => view.go(20),
        _ => {}
    }
    true
}

/// What is typed, read by a thread, since reading a terminal blocks.
fn keys() -> mpsc::Receiver<Event> {
    let (sender, receiver) = mpsc::channel(KEYS_MAX);
    std::thread::spawn(move || {
        while !sender.is_closed() {
            match event::poll(KEY_PATIENCE) {
                Ok(false) => {}
                Ok(true) => match event::read() {
                    Ok(event) => drop(sender.blocking_send(event)),
                    Err(_) => return,
                },
                Err(_) => return,
            }
        }
    });
    receiver
}

/// A server that may go and come back.
struct Watched {
    server: ServerArgs,
    channel: Option<Connection>,
}

impl Watched {
    async fn status(&mut self) -> Result<GetStatusResponse, CliError> {
        let asked = async {
            let mut client = ModelServiceClient::new(self.channel().await?);
            Ok(client.get_status(GetStatusRequest {}).await?.into_inner())
        };
        let answer = timeout(ANSWER_TIME, asked).await.unwrap_or_else(|_| {
            Err(CliError::Unavailable("the server does not answer".to_owned()))
        });
        if answer.is_err() {
            self.channel = None;
        }
        answer
    }

    /// Asks for the tree that is shown, if one is.
    async fn look_into_tree(&mut self, view: &mut View) {
        let Some(model) = view.tree_model() else { return };
        let asked = async {
            let mut client = StateServiceClient::new(self.channel().await?);
            let request = DescribeCacheRequest { model, nodes_max: Some(NODES_MAX) };
            Ok::<_, CliError>(client.describe_cache(request).await?.into_inner())
        };
        match timeout(ANSWER_TIME, asked).await {
            Ok(Ok(cache)) => view.see_tree(super::cache::tree::draw(&cache)),
            Ok(Err(error)) => view.see_tree(error.to_string()),
            Err(_) => view.see_tree("the server does not answer".to_owned()),
        }
    }

    async fn channel(&mut self) -> Result<Connection, CliError> {
        if let Some(channel) = &self.channel {
            return Ok(channel.clone());
        }
        let channel = self.server.connect().await?;
        self.channel = Some(channel.clone());
        Ok(channel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_move_open_and_end() {
        let mut view = View::new("here");
        let key = |code| KeyEvent::new(code, KeyModifiers::NONE);
        assert!(press(&mut view, key(KeyCode::Down)));
        assert!(press(&mut view, key(KeyCode::Char('x'))));
        assert!(!press(&mut view, key(KeyCode::Char('q'))));
        assert!(!press(&mut view, key(KeyCode::Esc)), "without a tree it ends");
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert!(!press(&mut view, interrupt));
        assert!(press(&mut view, key(KeyCode::Char('c'))));
    }
}
