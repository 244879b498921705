//! The way into the device thread: a bounded queue of commands, and a bell.
//!
//! The bell carries nothing: it says that something outside the queue changed (a reader made room,
//! a caller went away, a clock was turned) and lets a sleeping device thread look.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Why a command was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// As many commands wait as may.
    Full,
    /// The device thread is gone.
    Closed,
}

#[derive(Debug)]
struct State<C> {
    commands: VecDeque<C>,
    rung: bool,
    closed: bool,
}

/// A bounded queue that one thread empties.
#[derive(Debug)]
pub(crate) struct Mailbox<C> {
    state: Mutex<State<C>>,
    changed: Condvar,
    capacity: usize,
}

impl<C> Mailbox<C> {
    /// An empty mailbox for at most `capacity` commands.
    pub(crate) fn new(capacity: usize) -> Self {
        let state = State { commands: VecDeque::new(), rung: false, closed: false };
        Self { state: Mutex::new(state), changed: Condvar::new(), capacity }
    }

    /// Queues `command`, never blocking.
    pub(crate) fn push(&self, command: C) -> Result<(), Refused> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Refused::Closed);
        }
        if state.commands.len() >= self.capacity {
            return Err(Refused::Full);
        }
        state.commands.push_back(command);
        self.changed.notify_one();
        Ok(())
    }

    /// Queues `command` above the capacity too; for those who are few by a bound of their own.
    /// Gives it back if the device thread is gone.
    pub(crate) fn push_above_capacity(&self, command: C) -> Result<(), C> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(command);
        }
        state.commands.push_back(command);
        self.changed.notify_one();
        Ok(())
    }

    /// Wakes the device thread if it sleeps; otherwise its next sleep ends at once.
    pub(crate) fn ring(&self) {
        self.state.lock().rung = true;
        self.changed.notify_one();
    }

    /// Refuses commands from now on and drops those that are queued.
    pub(crate) fn close(&self) {
        let dropped = {
            let mut state = self.state.lock();
            state.closed = true;
            std::mem::take(&mut state.commands)
        };
        // Outside the lock: what a command holds may ring the bell when it is dropped.
        drop(dropped);
    }

    /// Moves all queued commands to `into` without waiting.
    pub(crate) fn take(&self, into: &mut VecDeque<C>) {
        let mut state = self.state.lock();
        state.rung = false;
        into.extend(state.commands.drain(..));
    }

    /// Sleeps until there is a command, the bell rings, or `timeout` has passed; whether there is
    /// something to look at.
    pub(crate) fn wait(&self, timeout: Duration) -> bool {
        let mut state = self.state.lock();
        let told = |state: &State<C>| !state.commands.is_empty() || state.rung;
        if !told(&state) {
            self.changed.wait_for(&mut state, timeout);
        }
        told(&state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_mailbox_refuses_and_keeps_the_order() {
        let mailbox = Mailbox::new(2);
        assert_eq!(mailbox.push(1), Ok(()));
        assert_eq!(mailbox.push(2), Ok(()));
        assert_eq!(mailbox.push(3), Err(Refused::Full));
        let mut taken = VecDeque::new();
        mailbox.take(&mut taken);
        assert_eq!(taken, [1, 2]);
        assert_eq!(mailbox.push(3), Ok(()));
    }

    #[test]
    fn a_closed_mailbox_refuses_and_drops_what_it_held() {
        let held = std::sync::Arc::new(());
        let mailbox = Mailbox::new(2);
        assert_eq!(mailbox.push(held.clone()), Ok(()));
        mailbox.close();
        assert_eq!(std::sync::Arc::strong_count(&held), 1);
        assert_eq!(mailbox.push(held), Err(Refused::Closed));
    }

    #[test]
    fn a_bell_rung_before_the_sleep_ends_it() {
        let mailbox = Mailbox::<()>::new(1);
        mailbox.ring();
        assert!(mailbox.wait(Duration::MAX));
    }
}
