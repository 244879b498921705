//! Both ends of the event channel of one request.
//!
//! The channel is bounded: a reader that falls behind pauses its own sequence and nothing else. The
//! last event has a place of its own, so that it can always be delivered.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::task::{Context, Poll};

use tokio::sync::mpsc;

use crate::error::EngineError;
use crate::event::{Event, FinishReason};
use crate::mailbox::Mailbox;
use crate::shared::Command;

/// Events a sequence may be ahead of its reader, the last one not counted.
pub(crate) const EVENTS_PER_SEQUENCE_MAX: usize = 64;

#[derive(Debug, Default)]
struct Signals {
    /// The caller wants no more tokens, but the account.
    stop: AtomicBool,
    /// The sequence waits for room in the channel; whoever makes room rings the bell.
    paused: AtomicBool,
}

/// The events of one request, as they come.
///
/// Dropping it at any time cancels the request: it is not part of another step, and its memory is
/// freed before the next one.
#[derive(Debug)]
pub struct Generation {
    events: mpsc::Receiver<Event>,
    signals: Arc<Signals>,
    mailbox: Arc<Mailbox<Command>>,
    tokens: usize,
    stopped_at: Option<usize>,
    ended: bool,
}

/// The engine's end of a [`Generation`]. Dropped without a last event, it sends
/// [`EngineError::Panicked`] where a panic drops it, else [`EngineError::Stopped`].
#[derive(Debug)]
pub(crate) struct EventSender {
    events: mpsc::Sender<Event>,
    last: Option<mpsc::OwnedPermit<Event>>,
    signals: Arc<Signals>,
}

/// Makes the two ends for one request.
pub(crate) fn channel(mailbox: Arc<Mailbox<Command>>) -> (EventSender, Generation) {
    let (sender, events) = mpsc::channel(EVENTS_PER_SEQUENCE_MAX + 1);
    let last = sender.clone().try_reserve_owned().expect("a new channel has room");
    let signals = Arc::new(Signals::default());
    let sender = EventSender { events: sender, last: Some(last), signals: signals.clone() };
    let generation =
        Generation { events, signals, mailbox, tokens: 0, stopped_at: None, ended: false };
    (sender, generation)
}

impl Generation {
    /// The next event; `None` after [`Event::Finished`] or [`Event::Failed`].
    ///
    /// May be dropped before it is ready; no event is lost.
    pub async fn next(&mut self) -> Option<Event> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// [`next`](Self::next), for those who implement a stream.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        while !self.ended {
            let event = match self.events.poll_recv(context) {
                Poll::Pending => return Poll::Pending,
                // Both ends of a channel outlive its last event, unless the device thread died.
                Poll::Ready(event) => event.unwrap_or(Event::Failed(EngineError::Stopped)),
            };
            self.resume_sequence();
            if let Some(event) = self.account(event) {
                return Poll::Ready(Some(event));
            }
        }
        Poll::Ready(None)
    }

    /// Ends the generation after the tokens read so far, as for a stop string: tokens that are
    /// already on their way are swallowed, and [`Event::Finished`] follows with
    /// [`FinishReason::Stopped`] and a usage that counts what was read.
    pub fn stop(&mut self) {
        if self.stopped_at.is_none() {
            self.stopped_at = Some(self.tokens);
            self.signals.stop.store(true, Ordering::Release);
            self.mailbox.ring();
        }
    }

    /// Applies a stop to what was on its way when it was asked for, and notes the end.
    fn account(&mut self, event: Event) -> Option<Event> {
        match event {
            Event::Token(_) if self.stopped_at.is_some() => None,
            Event::Token(token) => {
                self.tokens += 1;
                Some(Event::Token(token))
            }
            Event::Finished(mut finished) => {
                self.ended = true;
                if let Some(tokens) = self.stopped_at {
                    finished.reason = FinishReason::Stopped;
                    finished.usage.completion_tokens = tokens;
                }
                Some(Event::Finished(finished))
            }
            Event::Failed(error) => {
                self.ended = true;
                Some(Event::Failed(error))
            }
            Event::Started(started) => Some(Event::Started(started)),
        }
    }

    fn resume_sequence(&self) {
        // Pairs with the fence of `has_room`: either that sees the room just made, or this sees the
        // pause.
        fence(Ordering::SeqCst);
        if self.signals.paused.load(Ordering::Relaxed)
            && self.signals.paused.swap(false, Ordering::Relaxed)
        {
            self.mailbox.ring();
        }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.events.close();
        if !self.ended {
            self.mailbox.ring();
        }
    }
}

impl EventSender {
    /// Whether the caller dropped its end.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    /// Whether the caller asked for the end.
    pub(crate) fn is_stopped(&self) -> bool {
        self.signals.stop.load(Ordering::Acquire)
    }

    /// Whether one more event can be sent. If not, the reader rings the bell when it can.
    pub(crate) fn has_room(&self) -> bool {
        if self.events.capacity() > 0 {
            return true;
        }
        self.signals.paused.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let room = self.events.capacity() > 0;
        if room {
            self.signals.paused.store(false, Ordering::Relaxed);
        }
        room
    }

    /// Sends an event that is not the last one, where [`has_room`](Self::has_room) said yes.
    pub(crate) fn send(&self, event: Event) {
        // Fails only if the caller went away, which the next sweep sees.
        let _gone = self.events.try_send(event);
    }

    /// Sends the last event.
    pub(crate) fn end(mut self, event: Event) {
        self.send_last(event);
    }

    fn send_last(&mut self, event: Event) {
        if let Some(permit) = self.last.take() {
            permit.send(event);
        }
    }
}

impl Drop for EventSender {
    fn drop(&mut self) {
        let panicking = std::thread::panicking();
        let error = if panicking { EngineError::Panicked } else { EngineError::Stopped };
        self.send_last(Event::Failed(error));
    }
}
